"""`r1prov tune` on a real host. What is best on a busy lab host means little: that the service comes back and keeps it is what counts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from r1prov import lab
from r1prov.common.errors import Exit
from r1prov.lab.hosts import LabHost

from .conftest import Operator
from .test_up import ended

pytestmark = pytest.mark.host
UNIT = "/etc/systemd/system/r1prov-llama-server.service"
HEALTH = "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health')"


@pytest.fixture(scope="module")
def host(sources: dict[str, Any]) -> Iterator[LabHost]:
    """A host of its own: that it pauses must disturb nobody."""
    lab.down("e2e-tune")
    yield lab.up("e2e-tune", "trixie")
    lab.down("e2e-tune")


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    return Operator(tmp_path_factory.mktemp("owner"))


@pytest.fixture(scope="module")
def keys(sources: dict[str, Any]) -> dict[str, Any]:
    """A context so short that the measured prompt is."""
    small = {"open_webui": {"enabled": False}, "ollama": {"enabled": False}, "context_per_slot": 512}
    return {"sources": sources, **small}


@pytest.fixture(scope="module", autouse=True)
def served(owner: Operator, host: LabHost, keys: dict[str, Any]) -> None:
    """Before there is a service, there is nothing to tune; then there is."""
    owner.site([host], **keys)
    assert "run `r1prov up` first" in ended(owner.run("tune", "--yes"), Exit.UNHEALTHY)
    ended(owner.run("up"))


@pytest.fixture
def kept(owner: Operator, host: LabHost) -> Path:
    """Where the site keeps what its host was tuned to."""
    return owner.folder / ".r1prov" / "tuned" / f"{host.name}.json"


def answers(host: LabHost) -> bool:
    return lab.ssh(host, ["python3", "-c", HEALTH]).returncode == 0


def changes(owner: Operator) -> list[str]:
    return [change for each in owner.report()["hosts"].values() for change in each["changes"]]


def unit_file(host: LabHost) -> str:
    return lab.ssh(host, ["cat", UNIT]).stdout


def wait_for(host: LabHost, condition: str, limit_s: float = 120) -> None:
    deadline = time.monotonic() + limit_s
    while lab.ssh(host, ["sh", "-c", condition]).returncode:
        assert time.monotonic() < deadline, condition
        time.sleep(1)


def pretend_one_thread_is_best(host: LabHost, kept: Path) -> None:
    """The controller has lost what was measured, and the host remembers it otherwise."""
    script = (
        "import json; p = '/var/lib/r1prov/tune/result.json'; r = json.load(open(p));"
        " r['chosen'] = {**r['measured'][0]['chosen'], 'threads': '1'}; json.dump(r, open(p, 'w'))"
    )
    assert lab.ssh(host, ["python3", "-c", script]).returncode == 0
    kept.unlink(missing_ok=True)


def test_it_says_what_it_would_do_and_asks(owner: Operator, host: LabHost, kept: Path) -> None:
    talk = ended(owner.run("tune", "--check"))
    assert "settings to measure, within 20m" in talk
    assert "micro-batch 512 as planned, micro-batch 256" in talk
    talk = ended(owner.run("tune"), Exit.USAGE)
    assert "will not answer while that is measured, for up to 20m" in talk
    assert "say --yes" in talk
    assert not kept.exists()
    assert answers(host)


def test_ctrl_c_ends_the_pause(owner: Operator, host: LabHost, kept: Path) -> None:
    # Tests that run in the background of a shell have inherited that Ctrl-C is ignored.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "r1prov.cli", "tune", "--yes"]
    environment = {**os.environ, "XDG_STATE_HOME": str(owner.folder / "state")}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        command, cwd=owner.folder, env=environment, text=True, start_new_session=True, **pipes
    ) as running:
        wait_for(host, "systemctl is-active r1prov-tune | grep -q activating")
        assert not answers(host)
        os.killpg(running.pid, signal.SIGINT)
        _, talk = running.communicate(timeout=120)
    assert running.returncode == Exit.INTERRUPTED
    assert "Run the same command again" in talk
    wait_for(host, "systemctl is-active --quiet r1prov-llama-server")
    assert answers(host)
    assert not kept.exists()


def test_it_measures_keeps_the_best_and_serves_with_it(owner: Operator, host: LabHost, kept: Path) -> None:
    done = owner.run("tune", "--yes", "--json")
    talk = ended(done)
    found = json.loads(done.stdout)["hosts"][host.name]
    assert found == json.loads(kept.read_text())
    assert "the plan's own" in talk
    assert f"kept: {found['reason']}" in talk
    assert all(each["decode_tokens_per_second"] > 0 for each in found["measured"] if not each["failed"])
    assert found["served"]
    assert answers(host)


def test_again_there_is_nothing_to_do(owner: Operator, host: LabHost, kept: Path) -> None:
    before = kept.read_text()
    started = lab.ssh(host, ["systemctl", "show", "r1prov-llama-server", "--property=InvocationID"]).stdout
    assert "--force measures again" in ended(owner.run("tune"))
    assert kept.read_text() == before
    ended(owner.run("up"))
    assert changes(owner) == []
    assert f"{host.name}: tuned: " in ended(owner.run("status"))
    assert lab.ssh(host, ["systemctl", "show", "r1prov-llama-server", "--property=InvocationID"]).stdout == started


def test_what_the_host_has_measured_is_kept_without_another_pause(owner: Operator, host: LabHost, kept: Path) -> None:
    pretend_one_thread_is_best(host, kept)
    talk = ended(owner.run("tune", "--yes"))
    assert "threads 1 kept" in talk
    assert "--threads 1" in unit_file(host)


def test_another_plan_is_served_as_planned_until_the_old_one_is_back(
    owner: Operator, host: LabHost, keys: dict[str, Any], kept: Path
) -> None:
    owner.site([host], **keys | {"context_per_slot": 1024})
    assert "is tuned for another plan" in ended(owner.run("up"))
    assert "--threads" not in unit_file(host)
    owner.site([host], **keys)
    ended(owner.run("up"))
    assert "--threads 1" in unit_file(host)


def test_what_does_not_serve_gives_way_to_the_plan(owner: Operator, host: LabHost, kept: Path) -> None:
    program = "/opt/r1prov/llama.cpp/current/bin/llama-server"
    picky = f'#!/bin/sh\ncase "$*" in *"--threads 1"*) echo out of memory; exit 1;; esac\nexec {program}.real "$@"\n'
    lab.ssh(host, ["sh", "-c", f"mv {program} {program}.real; printf '%s' '{picky}' > {program}; chmod 755 {program}"])
    pretend_one_thread_is_best(host, kept)
    talk = ended(owner.run("tune", "--yes"), Exit.RUN_FAILED)
    assert f"{host.name}: back to the plan's own setting" in talk
    assert not kept.exists()
    assert "--threads" not in unit_file(host)
    assert answers(host)


def test_down_takes_it_away(owner: Operator, host: LabHost) -> None:
    ended(owner.run("down", "--yes"))
    find = "find /etc /usr/local /var/lib -xdev -name '*r1prov*'"
    assert lab.ssh(host, ["sh", "-c", find]).stdout == ""
