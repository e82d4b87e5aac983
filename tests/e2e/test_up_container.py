"""A rented container from first boot to removal, with all that its platform does to it. The tests build on each other, in this order."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx
import pytest

from r1prov import lab
from r1prov.common.errors import Exit
from r1prov.lab.container import DATA
from r1prov.lab.hosts import LabHost
from tests.fixtures import ollama
from tests.fixtures.hub import Hub

from .conftest import fresh
from .page import Page
from .people import IN_HASTE, MODEL, QUESTION, Operator, told, untouched

pytestmark = pytest.mark.host
NAME = "e2e-container"
DATA_DIR = f"{DATA}/r1prov"
HOOK = "/etc/autodl.sh"
FOREIGN = f"echo begun >> {DATA}/somebody\nexit 0\n"
"""What somebody else has told the platform to run. r1prov is no part of it, and nothing behind it would run."""
EVE = {"email": "eve@example.com", "password": "correct-horse-9"}
CHAT = "What Eve has asked"
SERVICES = ("r1prov-embeddings", "r1prov-llama-server", "r1prov-open-webui")

# Caches that the lab shares among its hosts are mounted, so they are not the container's own. Packages of the distribution stay.
ALL = r"""
find / -xdev -path /proc -prune -o -path /var/cache/r1prov -prune -o -name '*r1prov*' -print
find /root /srv /opt /run -xdev -path '/run/utmp*' -prune -o -print
find DATA -mindepth 1 -not -name lost+found -print
ps -A -o user=,args= | grep -E 'r1prov|supervis' | grep -v grep || true
cat /etc/passwd /etc/group
cat /etc/autodl.sh
stat --format='%a %n' /root DATA
""".replace("DATA", DATA)
"""All that r1prov may leave on a container."""


@pytest.fixture(scope="module")
def host(bootable: None) -> Iterator[LabHost]:
    """A fresh container, with a line of somebody else in the script of the platform."""
    if missing := lab.requirements(container=True):
        pytest.skip("containers cannot be booted here: " + "; ".join(f"{p.where}: {p.what}" for p in missing))
    with fresh({NAME: "bookworm"}, container=True) as (host,):
        told(host, f"printf %s '{FOREIGN}' > {HOOK}")
        yield host


@pytest.fixture(scope="module")
def before(host: LabHost) -> str:
    """What there is on the container before r1prov comes."""
    return told(host, ALL)


@pytest.fixture(scope="module")
def renter(tmp_path_factory: pytest.TempPathFactory, host: LabHost, sources: dict[str, Any], before: str) -> Operator:
    """The person who has rented the container."""
    renter = Operator(tmp_path_factory.mktemp("renter"))
    renter.site([host], sources=sources, data_dir=DATA_DIR)
    return renter


def eventually(host: LabHost, script: str, limit_s: float = 120) -> str:
    """What a script prints when it succeeds at last."""
    deadline = time.monotonic() + limit_s
    while (done := lab.ssh(host, ["sh", "-ec", script])).returncode:
        assert time.monotonic() < deadline, f"{script}\n{done.stdout}\n{done.stderr}"
        time.sleep(0.2)
    return done.stdout.strip()


def assert_well(renter: Operator, host: LabHost, limit_s: float = 120) -> None:
    """Everything answers, sooner or later, and without help."""
    deadline = time.monotonic() + limit_s
    while (done := renter.run("status")).returncode:
        assert time.monotonic() < deadline, done.stdout + done.stderr
        time.sleep(0.5)
    assert "Paris" in renter.asks(host)


def assert_serves(renter: Operator, host: LabHost) -> None:
    """The engine answers, and the page, where Eve finds what she has asked."""
    assert_well(renter, host)
    with renter.opens(host) as doors:
        assert "Paris" in renter.logs_in(doors).ask(MODEL, QUESTION)
        eve = Page(doors["page"])
        assert eve.log_in(**EVE) == 200
        assert [chat["title"] for chat in eve.call("/api/v1/chats/")[1]] == [CHAT]


def weights_fetched(hub: Hub) -> int:
    """How many parts of the weights were fetched. Preflight only asks whether they are there."""
    return sum(request.method == "GET" and request.path.endswith(".gguf") for request in hub.requests)


def numbers(host: LabHost) -> str:
    """The numbers of all accounts and groups of r1prov."""
    return told(host, "grep -h ^r1prov /etc/passwd /etc/group | cut -d: -f1,3 | sort")


def unchanged(host: LabHost) -> AbstractContextManager[None]:
    """Expects that nothing is installed, configured or started while this lasts, but for the record of the run."""
    listed = "ps -A -o args= | grep -c supervis || true; find /root/autodl-tmp | sort; cat /etc/autodl.sh /etc/passwd"
    return untouched(host, listed, "/root/autodl-tmp")


@contextmanager
def on_a_full_disk(host: LabHost) -> Iterator[None]:
    """Leaves the data disk no room as long as this lasts."""
    room = "$(df --output=avail --block-size=1 DATA | tail -n 1)".replace("DATA", DATA)
    told(
        host, f"fallocate --length={room} {DATA}/big || true"
    )  # It takes all that there is, and may say that it was not enough.
    try:
        yield
    finally:
        told(host, f"rm {DATA}/big")


@contextmanager
def with_a_read_only_etc(host: LabHost) -> Iterator[None]:
    """Lets nobody write to /etc as long as this lasts."""
    lab.as_platform(host, ["mount", "-o", "bind,ro", "/etc", "/etc"])
    try:
        yield
    finally:
        lab.as_platform(host, ["mount", "-o", "remount,bind,rw", "/etc"])


def faults(renter: Operator, host: LabHost) -> list[str]:
    """What `up` refuses, which must be all that it does."""
    with unchanged(host):
        done = renter.run("up")
    assert done.returncode == Exit.PREFLIGHT, done.stderr
    return [problem["what"] for problem in renter.report["hosts"][host.name]["problems"]]


def test_what_would_not_last_is_refused_in_one_message(
    renter: Operator, host: LabHost, sources: dict[str, Any]
) -> None:
    with on_a_full_disk(host):
        (said,) = faults(renter, host)
    assert DATA in said
    with with_a_read_only_etc(host):
        (said,) = faults(renter, host)
    assert "/etc" in said
    renter.site([host], sources=sources)
    (said,) = faults(renter, host)
    assert "/srv/r1prov" in said
    renter.site([host], sources=sources, data_dir=DATA_DIR)


def test_a_user_who_is_not_root_and_has_no_sudo_is_told_so(
    renter: Operator, host: LabHost, sources: dict[str, Any]
) -> None:
    told(host, "useradd --create-home guest && cp -r /root/.ssh /home/guest/ && chown -R guest: /home/guest/.ssh")
    path = renter.site([host], sources=sources, data_dir=DATA_DIR)
    path.write_text(path.read_text().replace("user: root", "user: guest"))
    with unchanged(host):
        done = renter.does("up", code=Exit.UNREACHABLE)
    assert len(renter.report["hosts"][host.name]["problems"]) == 1, done.stderr
    assert "sudo" in done.stderr
    told(host, "userdel --remove guest 2> /dev/null")
    renter.site([host], sources=sources, data_dir=DATA_DIR)


def test_the_transfer_goes_on_when_the_controller_is_gone(renter: Operator, host: LabHost, hub: Hub) -> None:
    hub.faults.rate_bytes_s = 100_000
    running = renter.start("up", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    eventually(host, "grep -q '\"done\": [1-9]' /run/r1prov/weights/progress.json", 300)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    told(
        host, "setsid sh -c 'sleep 1; pkill --full \"sshd: root@notty\"' > /dev/null 2>&1 &"
    )  # Ansible keeps connections for a while.
    time.sleep(2)
    state = "r1prov-units show r1prov-weights.service --value --property"
    assert told(host, f"{state}=ActiveState,NRestarts").split() == ["active", "0"]
    hub.faults.rate_bytes_s = 0
    eventually(host, f'test "$({state}=SubState)" = exited', 300)
    assert told(host, f"{state}=Result,NRestarts").split() == ["success", "0"]


def test_the_next_run_leads_to_an_answer_and_a_page(renter: Operator, host: LabHost, hub: Hub) -> None:
    fetched = weights_fetched(hub)
    renter.does("up")
    assert weights_fetched(hub) == fetched
    with renter.opens(host) as doors:
        page = renter.logs_in(doors)
        assert page.call("/api/v1/auths/add", {"name": "Eve", "role": "user", **EVE})[0] == 200
        eve = Page(doors["page"])
        eve.log_in(**EVE)
        chat = {"title": CHAT, "messages": [], "history": {"messages": {}, "currentId": None}}
        assert eve.call("/api/v1/chats/new", {"chat": chat})[0] == 200
    assert_serves(renter, host)


def test_the_system_disk_holds_no_weights_no_programs_and_no_data(host: LabHost) -> None:
    # Of the folders of r1prov, the lab mounts its own over that of caches.
    left_out = " ".join(f"-path {path} -prune -o" for path in ("/var/cache/apt", "/var/lib/apt", "/var/cache/r1prov"))
    large = f"find /opt /srv /usr/local /var -xdev {left_out} -size +20M -print"
    assert told(host, large) == ""
    assert told(host, "readlink /opt/r1prov /var/lib/r1prov").split() == [
        f"{DATA_DIR}/host/opt",
        f"{DATA_DIR}/host/lib",
    ]


def test_a_second_run_changes_nothing(renter: Operator, host: LabHost) -> None:
    renter.does("up", "--full")
    assert renter.changes == {host.name: []}
    found = json.loads(renter.does("drift", "--json").stdout)["hosts"][host.name]
    assert found["state"] == "as wanted"
    assert found["asked"] > 40


def test_a_damaged_program_that_runs_the_units_is_named_with_what_it_hides_and_is_put_right(
    renter: Operator, host: LabHost
) -> None:
    """Nobody can tell how the services are then. They go on, and are not called away one by one."""
    program = "/usr/local/lib/r1prov-units/supervised/verbs.py"
    told(host, f"echo broken > {program}")
    found = json.loads(renter.does("drift", "--json", code=Exit.DRIFTED).stdout)["hosts"][host.name]
    assert [each["what"] for each in found["differences"]] == [f"{program} has another content than it should have"]
    assert found["unknown"] == "/usr/local/bin/r1prov-units does not work, so nobody can tell how the services are"
    renter.does("up")
    assert renter.report["hosts"][host.name]["starts"] == {}
    assert json.loads(renter.does("drift", "--json").stdout)["hosts"][host.name]["state"] == "as wanted"


def test_what_is_killed_comes_back(renter: Operator, host: LabHost) -> None:
    told_of = {
        unit: f'python3 -c \'import json; print(json.load(open("/run/r1prov/units/{unit}.service.json"))'
        for unit in SERVICES
    }
    found = {f"{unit}": f'{start}["MainPID"])\'' for unit, start in told_of.items()}
    found |= {f"the keeper of {unit}": f'{start}["KeeperPID"])\'' for unit, start in told_of.items()}
    found |= {
        "supervisord": "cat /run/r1prov/units/supervisord.pid",
        "the loop": "pgrep --full '[c]ommand.py loop'",
        "the guard": "pgrep --full '[c]ommand.py guard'",
    }
    for what, number in found.items():
        killed = told(host, f"number=$({number}); kill -KILL $number; echo $number")
        eventually(host, f"number=$({number}); test $number -gt 0 && test $number != {killed} && test -d /proc/$number")
        assert_well(renter, host)
        assert told(host, f"{number}").count("\n") == 0, what
    with renter.opens(host) as doors:
        assert "Paris" in renter.logs_in(doors).ask(MODEL, QUESTION)


def test_a_restart_brings_all_back_by_the_script_of_the_platform(renter: Operator, host: LabHost) -> None:
    assert FOREIGN in told(host, f"cat {HOOK}") + "\n"
    lab.restart(host)
    eventually(host, f"grep -q begun {DATA}/somebody")
    assert_serves(renter, host)
    renter.does("up")
    assert renter.changes == {host.name: []}


def test_the_engine_is_switched_and_switched_back(renter: Operator, host: LabHost) -> None:
    renter.does("engine", "ollama")
    states = "r1prov-units show r1prov-ollama.service r1prov-llama-server.service --property=ActiveState --value"
    assert told(host, states).split() == ["active", "inactive"]
    killed = told(host, "r1prov-units show r1prov-ollama.service --property=MainPID --value")
    told(host, f"kill -KILL {killed}")
    assert_well(renter, host)
    renter.does("upgrade", "--ollama", ollama.OTHER_VERSION, *IN_HASTE)
    assert ollama.OTHER_VERSION in told(host, "readlink /opt/r1prov/ollama/current")
    with renter.opens(host) as doors:
        page = renter.logs_in(doors)
        (model,) = page.models()
        assert "Paris" in page.ask(model, QUESTION)
    renter.does("engine", "llama-server")
    assert told(host, states).split() == ["inactive", "active"]
    assert_serves(renter, host)


def test_others_come_in_by_a_port_that_leads_outside(renter: Operator, host: LabHost, sources: dict[str, Any]) -> None:
    """Once the gateway ends TLS itself, under another port than people see, and once the platform does before it."""
    question = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    for name, port, tls in (
        (host.address, 6008, "local-authority"),
        ("u1.region.example.com", 6006, "external"),
    ):
        gateway = {"server_name": name, "port": port, "public_port": 8443, "tls": {"type": tls}}
        renter.site([host], sources=sources, data_dir=DATA_DIR, gateway=gateway)
        renter.does("up")
        with renter.opens(host) as doors:
            assert doors["gateway"] == f"https://{name}:8443"
            trust = ssl.create_default_context(cafile=doors["authority"]) if tls == "local-authority" else True
            inside = f"{'http' if tls == 'external' else 'https'}://{host.address}:{port}"
            with httpx.Client(base_url=inside, verify=trust, trust_env=False, timeout=60) as asking:
                key = {"Authorization": f"Bearer {renter.secret('api-key')}"}
                outside = {"Host": f"{name}:8443"}
                answer = asking.post("/v1/chat/completions", json=question, headers=outside | key)
                assert "Paris" in answer.json()["choices"][0]["message"]["content"]
                assert asking.post("/v1/chat/completions", json=question, headers=outside).status_code == 401
                assert "Open WebUI" in asking.get("/", headers=outside).text
                # Where the platform ends TLS, whoever names the inner port has come around it.
                around = asking.get("/", headers={"Host": f"{name}:{port}"}).status_code
                assert around == (421 if tls == "external" else 200)
    renter.site([host], sources=sources, data_dir=DATA_DIR)
    renter.does("up")
    with pytest.raises(httpx.ConnectError):
        httpx.get(inside, trust_env=False)


def test_the_other_verbs_work(renter: Operator, host: LabHost) -> None:
    old = renter.secret("api-key")
    renter.does("secrets", "rotate")
    assert renter.secret("api-key") != old
    with renter.opens(host) as doors:
        assert Page(doors["api"].removesuffix("/v1"), old).call("/v1/chat/completions", {"messages": []})[0] == 401
    assert_serves(renter, host)
    renter.does("bench", "--limit", "20s")
    renter.does("tune", "--yes", "--limit", "600s")
    assert_serves(renter, host)
    runs = json.loads(renter.does("history", host.name, "--json").stdout)["hosts"][host.name]["runs"]
    assert {"up", "engine", "secrets", "tune"} <= {run["verb"] for run in runs if run["state"] == "ok"}
    keys = [renter.secret(name) for name in ("api-key", "webui-admin-password", "webui-secret-key")]
    shown = "cat /var/lib/r1prov/units/log/* /tmp/autodl.sh.log; ps -A -o args=; cat /proc/[0-9]*/cmdline 2> /dev/null || true"
    logged = told(host, f"({shown}) | tr '\\0' ' '")
    assert "llama-server" in logged
    assert not [key for key in [old, *keys] if key.strip() in logged]


def test_built_anew_it_needs_no_byte_of_the_weights_and_loses_nothing(
    renter: Operator, host: LabHost, hub: Hub
) -> None:
    had, fetched = numbers(host), weights_fetched(hub)
    lab.rebuild(host)
    told(host, f"printf %s '{FOREIGN}' > {HOOK}")
    assert told(host, "ls /opt; getent passwd | grep r1prov || true") == ""
    renter.does("up")
    assert weights_fetched(hub) == fetched
    assert numbers(host) == had
    assert_serves(renter, host)
    renter.does("up", "--full")
    assert renter.changes == {host.name: []}


def test_down_has_failed_where_the_data_disk_is_away_and_goes_on_when_it_is_back(
    renter: Operator, host: LabHost
) -> None:
    told(host, "r1prov-units shutdown")
    # Without its table umount leaves no /run/mount, which the next test would take for r1prov's.
    lab.as_platform(host, ["umount", "--no-mtab", DATA])
    said = " ".join(renter.does("down", "--yes", code=Exit.RUN_FAILED).stderr.split())
    assert "the data disk is away: /opt/r1prov leads to" in said
    assert "What lies on it was not removed" in said
    left = "getent passwd | grep r1prov || ls /etc/systemd/system | grep r1prov || grep r1prov /etc/autodl.sh || true"
    assert told(host, left) == ""
    lab.restart(host)
    told(host, f"test -d {DATA_DIR}/models")


def test_down_leaves_nothing(renter: Operator, host: LabHost, before: str) -> None:
    told(host, f"rm {DATA}/somebody")
    renter.does("down", "--yes")
    after = told(host, ALL)
    assert sorted(set(after.splitlines()) ^ set(before.splitlines())) == []
    assert after == before
