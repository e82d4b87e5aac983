"""From two fresh servers to an answer, and what must hold after it. The tests build on each other, in this order."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from r1prov import lab
from r1prov.common import paths
from r1prov.common.errors import Exit
from r1prov.common.units import MIB
from r1prov.lab.hosts import LabHost
from r1prov.models import layout
from r1prov.offload.arguments import parse
from r1prov.offload.memory import memory
from r1prov.offload.setting import RefusedError
from r1prov.site import TESTED_LLAMA_CPP
from tests.cuda import ask_memory, fullsize

from .conftest import Operator
from .offline import artefacts

pytestmark = pytest.mark.host
UNIT = "r1prov-llama-server"
GOLDEN = Path(__file__).parents[1] / "golden" / "services"
"""What lies on a server of each GPU profile."""
QUESTION = "What is the capital of France? Answer in one short sentence."


@pytest.fixture(scope="module", autouse=True)
def site(operator: Operator, pair: list[LabHost], sources: dict[str, Any], wheels: Future[Path]) -> Path:
    return operator.site(pair, sources=sources)


def ended(done: subprocess.CompletedProcess[str], code: Exit = Exit.OK) -> str:
    """The talk of a run that must have ended with `code`."""
    assert done.returncode == code, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done.stderr


def on_all(pair: list[LabHost], *argv: str) -> list[str]:
    with ThreadPoolExecutor() as pool:
        return [done.stdout for done in pool.map(lambda host: lab.ssh(host, argv), pair)]


def changed(operator: Operator) -> dict[str, int]:
    return {host: tally["changed"] for host, tally in operator.report()["hosts"].items()}


def assert_nothing_changed(operator: Operator) -> None:
    """On the hosts, that is: a controller that is new to them fetches the last benchmark."""
    changes = {change for host in operator.report()["hosts"].values() for change in host["changes"]}
    assert changes <= {"smoke_bench: Bring the result to the controller"}


def test_one_command_turns_fresh_servers_into_an_answering_model(operator: Operator, pair: list[LabHost]) -> None:
    talk = ended(operator.run("up"))
    assert all(host.name in talk for host in pair)
    assert all(count > 0 for count in changed(operator).values())


def test_the_model_answers_a_question(operator: Operator, pair: list[LabHost]) -> None:
    for host in pair:
        done = operator.run("ask", "--host", host.name, QUESTION)
        ended(done)
        assert "Paris" in done.stdout
        assert "tokens/s" in done.stderr


def test_the_benchmark_is_on_host_and_controller(operator: Operator, pair: list[LabHost]) -> None:
    for host in pair:
        kept = json.loads((operator.folder / ".r1prov" / "reports" / f"{host.name}.json").read_text())
        assert "Paris" in kept["question"]["answer"]
        assert json.loads(lab.ssh(host, ["cat", "/var/lib/r1prov/smoke_bench/last.json"]).stdout) == kept


def test_the_second_run_changes_nothing_and_measures_nothing(operator: Operator, pair: list[LabHost]) -> None:
    before = on_all(pair, "stat", "-c", "%Y", "/var/lib/r1prov/smoke_bench/last.json")
    ended(operator.run("up"))
    assert set(changed(operator).values()) == {0}
    assert on_all(pair, "stat", "-c", "%Y", "/var/lib/r1prov/smoke_bench/last.json") == before


@pytest.mark.parametrize("mla", [False, True], ids=["legacy", "latent"])
def test_the_hosts_engine_says_of_memory_what_the_planner_does(
    pair: list[LabHost], tmp_path: Path, *, mla: bool
) -> None:
    """Settings that tests/data does not hold, asked anew, so that data and planner cannot go stale together. A host here has no card."""
    host, quant = pair[0], "UD-IQ1_S"
    file = fullsize.write(tmp_path / f"{quant}-{mla}.gguf", quant, mla=mla)
    with subprocess.Popen(["tar", "--sparse", "-C", tmp_path, "-c", file.name], stdout=subprocess.PIPE) as sent:
        subprocess.run([*host.ssh_argv(), "tar", "-x", "-C", "/var/tmp"], stdin=sent.stdout, check=True)
    sample = [
        s for s in ask_memory.settings(seed=2026, count_each=120) if (s.model, s.mla, s.cards) == (quant, mla, ())
    ]
    assert len(sample) >= 4
    program = ["/opt/r1prov/llama.cpp/current/bin/llama-fit-params", "--fit-print", "on", "--fit", "off"]
    for setting in sample:
        asked = lab.ssh(host, [*program, "--model", f"/var/tmp/{file.name}", *setting.arguments])
        try:
            host_use = memory(layout.model(quant, mla=mla), parse(setting.arguments, cards=0), ()).host
        except RefusedError:
            assert asked.returncode, f"{setting.arguments}: {asked.stdout}"
            continue
        told = [int(word) for word in asked.stdout.split()[-3:]]
        foreseen = [value // MIB for value in (host_use.weights, host_use.kv, host_use.compute)]
        assert told == foreseen, f"{setting.arguments}: {asked.stderr}"
    lab.ssh(host, ["rm", f"/var/tmp/{file.name}"])


def test_plain_ansible_playbook_does_the_same(operator: Operator, pair: list[LabHost]) -> None:
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            "-i",
            operator.folder / ".r1prov" / "inventory",
            "playbooks/up.yml",
        ],
        cwd=paths.collection().resolve(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    recap = done.stdout.split("PLAY RECAP")[1]
    assert recap.count("changed=0 ") == len(pair)
    assert recap.count("failed=0 ") == len(pair)


def test_status_tells_what_runs(operator: Operator, pair: list[LabHost]) -> None:
    done = operator.run("status", "--json")
    ended(done)
    hosts = json.loads(done.stdout)["hosts"]
    assert set(hosts) == {host.name for host in pair}
    assert all(host["health"] == "ok" for host in hosts.values())


def test_no_secret_is_in_logs_files_or_processes(operator: Operator, pair: list[LabHost]) -> None:
    keys = [path.read_text().strip() for path in (operator.folder / ".r1prov" / "secrets").iterdir()]
    assert len(keys) == 3
    for shown in on_all(pair, "sh", "-c", "journalctl --no-pager; ps -ef; systemctl cat 'r1prov-*'"):
        assert len(shown) > 1000
        assert not [key for key in keys if key in shown]
    readable = on_all(pair, "find", "/etc/r1prov", "/var/lib/r1prov", "/run/r1prov", "-type", "f", "-perm", "/044")
    for host, files in zip(pair, readable, strict=True):
        text = lab.ssh(host, ["cat", *files.split()]).stdout
        assert not [key for key in keys if key in text]
    left = [path for path in operator.folder.rglob("*") if path.is_file() and "secrets" not in path.parts]
    assert left
    assert not [path for path in left for key in keys if key in path.read_text(errors="ignore")]


def test_after_a_reboot_everything_is_up_by_itself(operator: Operator, pair: list[LabHost]) -> None:
    booted = on_all(pair, "cat", "/proc/sys/kernel/random/boot_id", "/proc/1/stat")
    on_all(pair, "systemctl", "reboot")
    deadline = time.monotonic() + 180
    healthy = set()
    while len(healthy) < len(pair):
        assert time.monotonic() < deadline, f"only {healthy} came back"
        time.sleep(2)
        for host in pair:
            state = lab.ssh(
                host, ["sh", "-c", f"cat /proc/sys/kernel/random/boot_id /proc/1/stat; systemctl is-active {UNIT}"]
            )
            if state.stdout.endswith("\nactive\n") and state.stdout.removesuffix("active\n") not in booted:
                healthy.add(host.name)
    while (done := operator.run("status")).returncode:  # the page too, by itself
        assert time.monotonic() < deadline, done.stdout
        time.sleep(2)
    for host in pair:
        done = operator.run("ask", "--host", host.name, QUESTION)
        assert "Paris" in ended(done) + done.stdout


def test_drift_is_repaired(operator: Operator, pair: list[LabHost]) -> None:
    first, second = pair
    lab.ssh(first, ["systemctl", "disable", "--now", UNIT])
    lab.ssh(
        second,
        ["sh", "-c", f"echo '# drift' >> /etc/systemd/system/{UNIT}.service; rm /etc/r1prov/llama-server/api-key"],
    )
    ended(operator.run("up"))
    assert all(count > 0 for count in changed(operator).values())
    assert [state.strip() for state in on_all(pair, "systemctl", "is-enabled", UNIT)] == ["enabled", "enabled"]
    ended(operator.run("up"))
    assert set(changed(operator).values()) == {0}


def test_a_new_controller_takes_over(
    pair: list[LabHost], sources: dict[str, Any], operator: Operator, tmp_path: Path
) -> None:
    colleague = Operator(tmp_path)
    colleague.site(pair, sources=sources)
    ended(colleague.run("up"))
    assert_nothing_changed(colleague)
    keys = [(o.folder / ".r1prov" / "secrets" / "api-key").read_text() for o in (operator, colleague)]
    assert keys[0] == keys[1]


def test_two_runs_at_once_do_not_meet_on_a_host(
    pair: list[LabHost], sources: dict[str, Any], operator: Operator, tmp_path: Path
) -> None:
    colleague = Operator(tmp_path)
    colleague.site(pair[:1], sources=sources)
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda who: who.run("up"), (operator, colleague)))
    codes = sorted(done.returncode for done in runs)
    assert codes in ([Exit.OK, Exit.LOCKED], [Exit.OK, Exit.OK]), "\n".join(done.stderr for done in runs)


def test_an_unreachable_host_is_named_and_nothing_is_changed(
    operator: Operator, pair: list[LabHost], sources: dict[str, Any], tmp_path: Path
) -> None:
    other = Operator(tmp_path)
    other.site(pair[:1], sources=sources)
    path = tmp_path / "r1prov.yml"
    path.write_text(path.read_text().replace("hosts:\n", "hosts:\n- root@10.209.0.254\n- no-such-host.invalid\n"))
    done = other.run("up")
    talk = ended(done, Exit.UNREACHABLE)
    assert "10.209.0.254" in talk
    assert "no-such-host.invalid" in talk
    assert not (tmp_path / ".r1prov" / "reports" / "last.json").exists()


def test_hardware_below_the_profile_is_refused_with_everything_at_once(
    pair: list[LabHost], sources: dict[str, Any], tmp_path: Path
) -> None:
    other = Operator(tmp_path)
    other.site(pair[:1], sources=sources, profile="4x4090")
    before = lab.ssh(pair[0], ["sh", "-c", "find /etc /opt /srv /usr -newermt '-5 seconds' | sort"]).stdout
    talk = ended(other.run("up"), Exit.PREFLIGHT)
    for check in ("gpu_count", "ram"):
        assert check in talk
    assert before == ""


def files_shown(talk: str) -> dict[str, str]:
    """New files of our services that a `--check --diff` shows, by name: units, and what an engine or web server reads."""
    shown = re.findall(r"^\+\+\+ after: \S*/(\S+)\n@@ .* @@\n((?:\+.*\n)+)", talk, re.MULTILINE)
    ours = re.compile(r"r1prov-.*\.service|.*\.j2")
    return {
        name.removesuffix(".j2"): re.sub(r"^\+", "", text, flags=re.MULTILINE)
        for name, text in shown
        if ours.fullmatch(name) and name != "r1prov-weights.service"  # its addresses are this machine's
    }


def assert_golden(files: dict[str, str], golden: Path) -> None:
    if os.environ.get("R1PROV_GOLDEN") == "write":
        golden.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (golden / name).write_text(text)
    assert files == {path.name: path.read_text() for path in golden.iterdir()}


def test_the_gpu_profiles_pass_a_check_run_on_a_fresh_host(
    sources: dict[str, Any], pair: list[LabHost], tmp_path: Path
) -> None:
    lab.down("e2e-gpu")
    fresh = lab.up("e2e-gpu")
    try:
        other = Operator(tmp_path)
        for profile in ("4x4090", "4xh800"):
            other.site(
                [fresh],
                sources=sources,
                profile=profile,
                override=["gpu_count", "ram", "floor", "disk", "driver", "cpu"],
            )
            assert_golden(files_shown(ended(other.run("up", "--check", "--diff"))), GOLDEN / profile)
    finally:
        lab.down("e2e-gpu")


def test_a_taken_port_is_named(sources: dict[str, Any], pair: list[LabHost], tmp_path: Path) -> None:
    other = Operator(tmp_path)
    other.site(pair[:1], sources=sources, service={"port": 22})
    talk = ended(other.run("up"), Exit.PREFLIGHT)
    assert "port 22" in talk
    assert "sshd of ssh.service" in talk


def test_ctrl_c_says_how_to_go_on_and_the_next_run_does(
    operator: Operator, pair: list[LabHost], sources: dict[str, Any]
) -> None:
    on_all(pair, "sh", "-c", f"systemctl stop {UNIT}; rm -rf /opt/r1prov/llama.cpp")
    running = subprocess.Popen(
        # Tests that run in the background of a shell have inherited that Ctrl-C is ignored.
        ["env", "--default-signal=INT", sys.executable, "-m", "r1prov.cli", "up"],
        cwd=operator.folder,
        env={**os.environ, **operator.environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    talk = ""
    while "] llama_cpp" not in talk:
        line = running.stderr.readline()
        assert line, talk
        talk += line
    os.killpg(running.pid, signal.SIGINT)
    talk += running.communicate(timeout=120)[1]
    assert running.returncode == Exit.INTERRUPTED, talk
    assert "again" in talk
    ended(operator.run("up"))
    assert [state.strip() for state in on_all(pair, "systemctl", "is-active", UNIT)] == ["active", "active"]


def test_without_the_outside_the_artefacts_at_hand_are_enough(
    wheels: Future[Path], pair: list[LabHost], tmp_path: Path
) -> None:
    lab.down("e2e-off")
    fresh = lab.up("e2e-off")
    lab.cut(fresh)
    try:
        other = Operator(tmp_path)
        with artefacts(tmp_path / "artefacts", like=pair[0], wheels=wheels.result()) as at_hand:
            other.site([fresh], sources=at_hand, versions={"llama_cpp": TESTED_LLAMA_CPP["pypi"]})
            ended(other.run("up"))
        measured = json.loads((tmp_path / ".r1prov" / "reports" / f"{fresh.name}.json").read_text())
        assert all("Paris" in measured[door]["answer"] for door in ("question", "page"))
    finally:
        lab.down("e2e-off")


def test_the_wheel_brings_everything_it_needs(pair: list[LabHost], sources: dict[str, Any], tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    root = paths.collection().resolve()
    shutil.copytree(
        root, tmp_path / "src", ignore=shutil.ignore_patterns(".git", ".collections", ".venv"), symlinks=True
    )
    built = subprocess.run(
        [uv, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "-o", tmp_path, tmp_path / "src"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run(
        [uv, "pip", "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True, capture_output=True
    )
    other = Operator(tmp_path, {"PYTHONPATH": str(tmp_path / "site")})
    other.site(pair[:1], sources=sources)
    ended(other.run("up"))
    assert_nothing_changed(other)
