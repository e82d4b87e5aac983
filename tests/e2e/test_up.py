"""From two fresh servers to an answer, and what must hold after it. The tests build on each other, in this order."""

from __future__ import annotations

import getpass
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
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
from tests.cuda import ask_memory, fullsize
from tests.fixtures.hub import Hub

from .conftest import HUB_TOKEN
from .people import MODEL, Operator, told, untouched

pytestmark = pytest.mark.host
UNIT = "r1prov-llama-server"
PROCESS = f"systemctl show --property=MainPID {UNIT}"
MEASURED = "/var/lib/r1prov/smoke_bench/last.json"


LOCKER = """
import fcntl, os, time
held, open_files = set(), []
while True:
    for root in ("opt", "etc", "srv", "run", "var/cache", "var/lib"):
        for folder, _, files in os.walk(f"/{root}/r1prov"):
            for path in {folder, *(f"{folder}/{name}" for name in files)} - held:
                try:
                    file = os.open(path, os.O_RDONLY)
                    open_files.append(file)
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held.add(path)
                except OSError:
                    pass
    time.sleep(0.2)
"""
"""What a local user may do: lock all files and folders that can be opened, as soon as they are there."""


@pytest.fixture(scope="module", autouse=True)
def site(operator: Operator, pair: list[LabHost], sources: dict[str, Any]) -> Path:
    return operator.site(pair, sources=sources)


def on_all(pair: list[LabHost], script: str) -> list[str]:
    """What a shell script prints on each host, one after the other."""
    return [told(host, script) for host in pair]


def test_one_command_turns_fresh_servers_into_an_answering_model(operator: Operator, pair: list[LabHost]) -> None:
    talk = operator.does("up").stderr
    assert all(host.name in talk for host in pair)
    assert all(operator.changes[host.name] for host in pair)


def test_the_hub_saw_its_token_with_every_request_for_a_file(hub: Hub) -> None:
    # Preflight only looks whether the hub answers, for which it needs no token.
    assert {request.token for request in hub.requests if "/resolve/" in request.path} == {HUB_TOKEN}


def test_the_model_answers_a_question(operator: Operator, pair: list[LabHost]) -> None:
    for host in pair:
        done = operator.does("ask", "--host", host.name, "What is the capital of France? Answer in one short sentence.")
        assert "Paris" in done.stdout
        assert "tokens/s" in done.stderr


def test_an_answer_ends_at_its_limit_and_says_so(operator: Operator, pair: list[LabHost]) -> None:
    asked = ("ask", "--host", pair[0].name, "--max-tokens", "5", "Tell me a long story.")
    done = operator.does(*asked)
    assert "at the limit of 5 tokens" in done.stderr
    assert "--max-tokens 10" in done.stderr
    told_as_json = json.loads(operator.does(*asked, "--json").stdout)
    assert (told_as_json["finish_reason"], told_as_json["rates"]["decode_tokens"]) == ("length", 5)


def test_the_units_name_the_model_that_is_served(pair: list[LabHost]) -> None:
    script = "systemctl show --property=Description --value r1prov-llama-server r1prov-ollama | grep ."
    assert on_all(pair, script) == [f"{MODEL} on llama.cpp\n{MODEL} on Ollama"] * len(pair)


def test_the_benchmark_is_on_host_and_controller(operator: Operator, pair: list[LabHost]) -> None:
    for host in pair:
        kept = json.loads((operator.folder / ".r1prov" / "reports" / f"{host.name}.json").read_text())
        assert "Paris" in kept["question"]["answer"]
        assert json.loads(told(host, f"cat {MEASURED}")) == kept


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
    compared = 0
    for setting in sample:
        asked = lab.ssh(host, [*program, "--model", f"/var/tmp/{file.name}", *setting.arguments])
        try:
            host_use = memory(layout.model(quant, mla=mla), parse(setting.arguments, cards=0), ()).host
        except RefusedError:
            assert asked.returncode, f"{setting.arguments}: {asked.stdout}"
            continue
        figures = [int(word) for word in asked.stdout.split()[-3:]]
        foreseen = [value // MIB for value in (host_use.weights, host_use.kv, host_use.compute)]
        assert figures == foreseen, f"{setting.arguments}: {asked.stderr}"
        compared += 1
    assert compared
    told(host, f"rm /var/tmp/{file.name}")


def plain(operator: Operator, *options: str) -> str:
    """What plain ansible-playbook says of the playbook `up`, which must end well."""
    program, inventory = Path(sys.executable).with_name("ansible-playbook"), operator.folder / ".r1prov" / "inventory"
    argv = [program, "-i", inventory, "playbooks/up.yml", *options]
    done = subprocess.run(argv, cwd=paths.collection().resolve(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_plain_ansible_playbook_finds_nothing_to_change(operator: Operator, pair: list[LabHost]) -> None:
    measured = on_all(pair, f"stat -c %Y {MEASURED}")
    said = plain(operator)
    for host in pair:
        assert f"{host.name}: nothing differs (" in said
    assert "TASK [r1.prov.preflight" not in said
    said = plain(operator, "--skip-tags", "look")
    recap = said.split("PLAY RECAP")[1]
    assert recap.count("changed=0 ") == len(pair), said
    assert recap.count("failed=0 ") == len(pair)
    assert on_all(pair, f"stat -c %Y {MEASURED}") == measured


def test_plain_ansible_playbook_mends_what_differs_and_leaves_the_rest(operator: Operator, pair: list[LabHost]) -> None:
    file = "/etc/security/limits.d/r1prov-operators.conf"
    told(pair[0], f"chmod 0666 {file}")
    said = plain(operator)
    assert f"{pair[0].name}: {file} has the mode 0666, and should have 0644 (mended by operators)" in said
    assert f"{pair[1].name}: nothing differs (" in said
    assert told(pair[0], f"stat -c %a {file}").strip() == "644"
    changed = re.findall(r"^changed: \[(\S+)\]", said, re.MULTILINE)
    assert set(changed) == {pair[0].name}
    assert "nothing differs" in plain(operator)


def test_status_tells_what_runs(operator: Operator, pair: list[LabHost]) -> None:
    hosts = json.loads(operator.does("status", "--json").stdout)["hosts"]
    assert set(hosts) == {host.name for host in pair}
    assert all(host["health"] == "ok" for host in hosts.values())


def test_no_secret_is_in_logs_files_or_processes(operator: Operator, pair: list[LabHost]) -> None:
    keys = [path.read_text().strip() for path in (operator.folder / ".r1prov" / "secrets").iterdir()]
    assert len(keys) == 3
    keys.append(HUB_TOKEN)
    for host in pair:
        shown = told(host, "journalctl --no-pager; ps -ef; systemctl cat 'r1prov-*'")
        assert all(part in shown for part in ("systemd[1]: Started", "llama-server", "ExecStart="))
        readable = "find /etc/r1prov /var/lib/r1prov /run/r1prov -type f -perm /044"
        text = told(host, f"{readable} -exec cat {{}} +")
        assert text
        assert not [key for key in keys if key in shown or key in text]
    left = [path for path in operator.folder.rglob("*") if path.is_file() and "secrets" not in path.parts]
    assert left
    assert not [path for path in left for key in keys if key in path.read_text(errors="ignore")]


def test_others_can_write_to_nothing_that_was_made(pair: list[LabHost]) -> None:
    made = "/opt/r1prov /etc/r1prov /usr/local/lib/r1prov-* /var/cache/r1prov /var/lib/r1prov /run/r1prov /srv"
    # find ends with 1, because there are folders that it may not enter.
    loose = (
        f"runuser -u nobody -- find {made} -perm /022 -not -type l 2> /dev/null || true; find /tmp /var/tmp -name 'uv*'"
    )
    assert on_all(pair, loose) == [""] * len(pair)
    models = "find /srv/r1prov/ollama /srv/r1prov/models/SmolLM2* -type f -size +1M"
    assert all(on_all(pair, models))
    assert on_all(pair, f"runuser -u nobody -- {models} 2> /dev/null || true") == [""] * len(pair)
    assert on_all(pair, "stat -c %a /var/lib/r1prov/open-webui /var/lib/r1prov/weights") == ["700\n700"] * len(pair)


def test_after_a_reboot_everything_is_up_by_itself(operator: Operator, pair: list[LabHost]) -> None:
    started = "systemctl show --property=UserspaceTimestampMonotonic,UserspaceTimestamp"
    before = on_all(pair, started)
    for host in pair:
        lab.ssh(host, ["systemctl", "reboot"])  # the connection may end before the answer
    deadline = time.monotonic() + 600
    for host, booted in zip(pair, before, strict=True):
        while (now := lab.ssh(host, ["sh", "-ec", started])).returncode or now.stdout.strip() == booted:
            assert time.monotonic() < deadline, f"{host.name} did not come back"
            time.sleep(1)
    while (done := operator.run("status")).returncode:  # engine and page
        assert time.monotonic() < deadline, done.stdout
        time.sleep(2)
    for host in pair:
        assert "Paris" in operator.asks(host)


FLIP = """
import os, pathlib, sys
file = max(pathlib.Path("/srv/r1prov/models").glob("*/*.gguf"), key=lambda path: path.stat().st_size)
times = file.stat()
content = bytearray(file.read_bytes())
content[len(content) // 2] ^= 1
with file.open("r+b") as stream:
    stream.write(content)
os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
print(file)
"""
"""What a disk does: it changes a bit of a file, and keeps size and times."""


def test_weights_are_shown_mended_while_the_engine_answers_and_pruned(
    operator: Operator, pair: list[LabHost], hub: Hub
) -> None:
    """One host is enough for that."""
    host, (number, _) = pair[0], hub.url.rpartition("/")[2].split(":")
    before = lying(operator, host)
    (served,) = (row for row in before if row["state"] == "served")
    assert {source.split(":")[0] for source in served["came"]["from"]} == {number}
    assert served["verified"]["result"] == "whole"
    assert datetime.now(UTC) - datetime.fromisoformat(served["verified"]["at"]) < timedelta(hours=3)
    right, engine = (told(host, command) for command in (f"sha256sum {served['path']}", PROCESS))

    assert told(host, f"python3 -c {shlex.quote(FLIP)}") == served["path"]
    found = json.loads(operator.does("weights", "verify", host.name, "--json", code=Exit.DAMAGED).stdout)
    (row,) = (row for row in found["hosts"][host.name]["files"] if row["state"] == "damaged")
    assert (row["path"], len(row["places"]), row["mended"]) == (served["path"], 1, False)
    assert {row["verified"]["result"] for row in lying(operator, host) if row["path"] == served["path"]} == {"damaged"}

    mending = operator.start("weights", "verify", host.name, "--mend", "--json", stdout=subprocess.PIPE)
    assert "Paris" in operator.asks(host)
    mended = json.loads(mending.communicate(timeout=300)[0])["hosts"][host.name]
    assert mending.returncode == Exit.OK
    assert (mended["result"], [row["mended"] for row in mended["files"]].count(True)) == ("whole", 1)
    assert 0 < mended["fetched_bytes"] < 32 * MIB
    assert (told(host, f"sha256sum {served['path']}"), told(host, PROCESS)) == (right, engine)

    orphan = f"{Path(served['path']).parent}/.incoming/{'0' * 64}"
    told(host, f"printf x > {orphan}; chown r1prov-weights: {orphan}")
    would = json.loads(operator.does("weights", "prune", host.name, "--check", "--json").stdout)["hosts"][host.name]
    assert [(row["path"], row["state"]) for row in would["surplus"]] == [(orphan, "orphan")]
    told(host, f"ls {orphan}")
    gone = json.loads(operator.does("weights", "prune", host.name, "--yes", "--json").stdout)["hosts"][host.name]
    assert [row["path"] for row in gone["removed"]] == [orphan]
    assert [row["path"] for row in lying(operator, host)] == [row["path"] for row in before]
    # Cards hold what the engine has read of the damaged file. The run in a later test starts it again.
    drift = json.loads(operator.does("drift", host.name, "--json", code=Exit.DRIFTED).stdout)
    told_of = [each["what"] for each in drift["hosts"][host.name]["differences"]]
    assert f"{UNIT}.service: it was started with something else than is there now" in told_of


def lying(operator: Operator, host: LabHost) -> list[dict[str, Any]]:
    """What `r1prov weights status` says of the files on a host."""
    return list(json.loads(operator.does("weights", "status", host.name, "--json").stdout)["hosts"][host.name]["files"])


def test_a_bit_that_a_disk_has_changed_is_found_while_the_engine_serves(
    operator: Operator, pair: list[LabHost]
) -> None:
    """The next test runs `up`, which mends it."""
    first, second = pair
    file = told(first, f"python3 -c {shlex.quote(FLIP)}").strip()
    engine = told(first, PROCESS)
    done = operator.does("weights", "verify", "--json", code=Exit.DAMAGED)
    found = json.loads(done.stdout)
    assert (found["schema"], found["exit"]) == (1, Exit.DAMAGED)
    assert {name: host["result"] for name, host in found["hosts"].items()} == {
        first.name: "damaged",
        second.name: "whole",
    }
    assert [row["path"] for row in found["hosts"][first.name]["files"] if row["state"] == "damaged"] == [file]
    assert f"{file} is damaged: 1 piece is not what it was: bytes " in " ".join(done.stderr.split())
    deep = json.loads(operator.does("drift", first.name, "--deep", "--json", code=Exit.DRIFTED).stdout)
    assert any(
        each["step"] == "weights" and each["what"].startswith(f"{file} is damaged: 1 piece is not what it was: bytes ")
        for each in deep["hosts"][first.name]["differences"]
    )
    assert told(first, PROCESS) == engine


def runs_over(operator: Operator, host: LabHost, *more: str) -> list[dict[str, Any]]:
    """The history of a host."""
    found = json.loads(operator.does("history", host.name, "--json", *more).stdout)["hosts"][host.name]
    assert found["complete"]
    return list(found["runs"])


def stopped(operator: Operator, pair: list[LabHost], number: signal.Signals, step: str) -> tuple[int, str]:
    """Starts a run, and sends it a signal once all hosts are in a step. Only SIGINT goes to the whole group, as from a terminal.

    Returns:
        Its exit code, and what it said.
    """
    running = operator.start("up", stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert running.stderr
    talk = ""
    while not all(re.search(rf"^{host.name} .*\] {step}", talk, re.MULTILINE) for host in pair):
        line = running.stderr.readline()
        assert line, talk
        talk += line
    (os.killpg if number == signal.SIGINT else os.kill)(running.pid, number)
    talk += running.communicate(timeout=300)[1]
    return running.returncode, talk


def test_after_ctrl_c_or_a_kill_the_next_run_goes_on_and_repairs_what_had_drifted(
    operator: Operator, pair: list[LabHost]
) -> None:
    """All the while a local user locks whatever there is to lock, and other hosts of the site are away."""
    first, second = pair
    on_all(pair, f"systemctl stop {UNIT}; rm -rf /opt/r1prov/llama.cpp")
    on_all(
        pair, f"systemd-run --quiet --unit=stranger --uid=nobody -p LimitNOFILE=400000 python3 -c {shlex.quote(LOCKER)}"
    )
    told(first, f"systemctl disable {UNIT}")
    told(second, f"echo '# drift' >> /etc/systemd/system/{UNIT}.service; rm /etc/r1prov/llama-server/api-key")
    lock = "cat /run/r1prov/lock.json || true"
    # Whatever step that is: with what the compiler has kept, a whole compilation may be over before it is shown.
    killed = stopped(operator, pair, signal.SIGKILL, "(?!preflight)")[0]
    assert killed == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while subprocess.run(["pgrep", "--full", f"{operator.folder}/.r1prov/inventory"], check=False).returncode == 0:
        assert time.monotonic() < deadline, "Ansible goes on without r1prov"
        time.sleep(0.2)
    assert all(on_all(pair, lock))  # the next run takes it over
    for number in (signal.SIGTERM, signal.SIGINT):
        code, talk = stopped(operator, pair, number, "(?!preflight)")
        assert code == Exit.INTERRUPTED, talk
        assert "again" in talk
        assert all(re.search(f"{host.name} was in .*, and is not locked", talk) for host in pair), talk
        assert on_all(pair, lock) == ["", ""]
    ended = [(run["verb"], run["state"], run["exit"]) for run in runs_over(operator, first)[-3:]]
    assert ended == [("up", "did not end", None), *[("up", "unfinished", Exit.INTERRUPTED)] * 2]
    away = ["10.209.0.254", "no-such-host.invalid"]
    with operator.has_also(*away):  # nobody has that address
        before = runs_over(operator, first)[-1]
        operator.does("up", "--require-all", code=Exit.UNREACHABLE)
        assert runs_over(operator, first)[-1] == before  # Not even a lock was taken.
        ended = operator.does("up", code=Exit.UNREACHABLE).stderr
        assert {name: host["result"] for name, host in operator.report["hosts"].items()} == {
            **dict.fromkeys(away, "unreachable"),
            **dict.fromkeys((host.name for host in pair), "ok"),
        }
        assert all(f"{name}: " in ended for name in away)
        seen = json.loads(operator.does("status", "--json", code=Exit.UNREACHABLE).stdout)["hosts"]
        assert [host["health"] for host in seen.values()] == ["unreachable", "unreachable", "ok", "ok"]
    assert on_all(pair, "systemctl is-active stranger; systemctl stop stranger") == ["active"] * len(pair)
    assert on_all(pair, f"systemctl is-enabled {UNIT}; systemctl is-active {UNIT}") == ["enabled\nactive"] * 2
    assert "drift" not in told(second, f"cat /etc/systemd/system/{UNIT}.service")
    assert told(second, "cat /etc/r1prov/llama-server/api-key") == operator.secret("api-key").strip()
    assert "Paris" in operator.asks(second)
    operator.does("weights", "verify", first.name)


def test_the_next_run_changes_nothing_and_measures_nothing(operator: Operator, pair: list[LabHost]) -> None:
    measured = on_all(pair, f"stat -c %Y {MEASURED}")
    expected = [expectations(operator, host) for host in pair]
    operator.does("up", "--full")
    assert operator.changes == {host.name: [] for host in pair}
    assert on_all(pair, f"stat -c %Y {MEASURED}") == measured
    assert [expectations(operator, host) for host in pair] == expected, (
        "the run before, which changed something, expects something else"
    )


def expectations(owner: Operator, host: LabHost) -> list[str]:
    """What the last run expects of a host, where a digest stands for each secret whatever its salt is."""
    kept = json.loads((owner.folder / ".r1prov" / "looks" / f"{host.name}.json").read_text())["expectations"]
    return sorted(re.sub(r"r1prov-digest:[^\"]*", "digest", json.dumps(each, sort_keys=True)) for each in kept)


DRIFT = {
    "chmod 0777 /etc/r1prov/network": "/etc/r1prov/network has owner and mode 0:0 0777, and should have 0:0 0755",
    "chown nobody /opt/r1prov/open-webui": "/opt/r1prov/open-webui has owner and mode ",
    "echo '# more' >> /usr/local/lib/r1prov-await-ready": "/usr/local/lib/r1prov-await-ready has another content",
    "rm /etc/security/limits.d/r1prov-operators.conf": "/etc/security/limits.d/r1prov-operators.conf",
    "chmod 0644 /etc/r1prov/llama-server/api-key": "/etc/r1prov/llama-server/api-key ",
    "echo another > /etc/r1prov/embeddings/api-key": "/etc/r1prov/embeddings/api-key ",
    "usermod --shell /bin/bash r1prov-door": "r1prov-door",
    "systemctl disable --quiet --now r1prov-open-webui": "r1prov-open-webui.service does not run",
    "echo '# more' >> /etc/systemd/system/r1prov-ollama.service": "r1prov-ollama.service",
    "rm /opt/r1prov/llama.cpp/current/bin/llama-bench": "bin/llama-bench is gone",
    "mkdir /etc/systemd/system/r1prov-llama-server.service.d\n"
    "printf '[Service]\\nIPAddressAllow=any\\n' > /etc/systemd/system/r1prov-llama-server.service.d/x.conf": (
        "r1prov-llama-server.service.d/x.conf changes IPAddressAllow"
    ),
}
"""What is put wrong on a host, and what is said of it."""


def test_drift_is_named_by_one_look_and_mended(operator: Operator, pair: list[LabHost]) -> None:
    first, second = pair
    clean = json.loads(operator.does("drift", "--json").stdout)["hosts"]
    assert {host["state"] for host in clean.values()} == {"as wanted"}
    assert min(host["asked"] for host in clean.values()) > 40
    told(second, "\n".join(DRIFT))
    drifted = json.loads(operator.does("drift", "--json", code=Exit.DRIFTED).stdout)["hosts"]
    assert drifted[first.name]["state"] == "as wanted"
    said = [each["what"] for each in drifted[second.name]["differences"]]
    for what, words in DRIFT.items():
        assert any(words in each for each in said), f"{what}: {said}"
    talk = operator.does("up").stderr
    hosts = operator.report["hosts"]
    assert hosts[first.name]["ok"] == 0, "Ansible ran on a host where nothing differs"
    assert hosts[first.name]["looked"]["differences"] == hosts[first.name]["changes"] == []
    assert hosts[second.name]["changes"]
    assert all(words in talk for words in DRIFT.values())
    (last,) = runs_over(operator, second, "--last", "1")
    assert (last["verb"], last["state"], last["user"], Path(last["log"]).is_file()) == (
        "up",
        "ok",
        getpass.getuser(),
        True,
    )
    assert all(any(words in each for each in last["differences"]) for words in DRIFT.values())
    there = json.loads(told(second, f"cat /var/lib/r1prov/history/{last['run']}.json"))
    assert (there["exit"], there["after"], there["changes"]) == (0, last["after"], last["changes"])
    assert operator.secret("api-key").strip() not in told(second, "cat /var/lib/r1prov/history/*")
    assert last["run"] not in [run["run"] for run in runs_over(operator, first)], (
        "a host without a run has none in its history"
    )
    assert {host["state"] for host in json.loads(operator.does("drift", "--json").stdout)["hosts"].values()} == {
        "as wanted"
    }
    assert told(second, "cat /etc/r1prov/embeddings/api-key") == operator.secret("api-key").strip()
    assert "Paris" in operator.asks(second)


def test_a_host_that_another_run_holds_is_left_to_it(operator: Operator, pair: list[LabHost]) -> None:
    """Two runs that race for the lock are in roles/preflight/molecule."""
    holder = {"run": "theirs", "user": "eve", "controller": "desk", "controller_id": "elsewhere", "pid": 1}
    holder |= {"pid_started": "", "command": "r1prov up", "since": "2026-01-01T00:00:00+00:00"}
    lock = "/run/r1prov/lock.json"
    told(pair[0], f"cat > {lock} <<'END'\n{json.dumps(holder)}\nEND")
    with untouched(pair[0]):
        talk = operator.does("up", pair[0].name, code=Exit.LOCKED).stderr
    assert "eve@desk" in talk
    assert "--break-lock" in talk
    assert f"{pair[0].name}: eve@desk has been at work on it" in operator.does("status").stderr
    assert json.loads(told(pair[0], f"cat {lock}")) == holder
    told(pair[0], f"rm {lock}")


def test_a_process_that_holds_a_lock_is_named(operator: Operator, pair: list[LabHost]) -> None:
    """Only root can."""
    lock = "/run/r1prov/.lock"
    told(pair[0], f"systemd-run --quiet --unit=holder flock {lock} sleep infinity")
    told(pair[0], f"until ! flock --nonblock {lock} true; do sleep 0.1; done")
    with untouched(pair[0]):
        talk = operator.does("up", "--full", pair[0].name, code=Exit.LOCKED).stderr
    pid = told(pair[0], "systemctl show --value --property=MainPID holder; systemctl stop holder").strip()
    assert f"flock (process {pid} of root) holds {lock}" in " ".join(talk.split())


def test_all_that_the_profile_finds_wrong_is_said_at_once_and_nothing_is_changed(
    pair: list[LabHost], sources: dict[str, Any], tmp_path: Path
) -> None:
    other = Operator(tmp_path)
    other.site(pair[:1], sources=sources, profile="4x4090", service={"port": 22})
    with untouched(pair[0]):
        talk = other.does("up", code=Exit.PREFLIGHT).stderr
    for problem in ("gpu_count", "ram", "port 22", "sshd of ssh.service"):
        assert problem in talk
