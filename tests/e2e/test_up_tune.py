"""`r1prov tune` on a real host. What is best on a busy lab host means little: that the service comes back and keeps it is what counts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from r1prov import lab
from r1prov.common.errors import Exit
from r1prov.lab.hosts import LabHost
from tests.fixtures import engine, saying

from .conftest import fresh
from .people import Operator, told

pytestmark = pytest.mark.host
UNIT = "/etc/systemd/system/r1prov-llama-server.service"
HEALTH = "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health')"
STARTED = "systemctl show r1prov-llama-server --property=InvocationID"


@pytest.fixture(scope="module")
def host(bootable: None) -> Iterator[LabHost]:
    """A host of its own, for that it pauses must disturb nobody; its engine is compiled already."""
    with fresh({"e2e-tune": "bookworm"}, engine.image("bookworm", saying.to_stderr)) as (host,):
        yield host


@pytest.fixture(scope="module")
def tuner(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    return Operator(tmp_path_factory.mktemp("tuner"))


@pytest.fixture(scope="module")
def keys(sources: dict[str, Any]) -> dict[str, Any]:
    """A context so short that the measured prompt is."""
    small = {"open_webui": {"enabled": False}, "ollama": {"enabled": False}, "context_per_slot": 512}
    return {"sources": sources, **small}


@pytest.fixture(scope="module", autouse=True)
def served(tuner: Operator, host: LabHost, keys: dict[str, Any]) -> None:
    """Before there is a service, there is nothing to tune; then there is."""
    tuner.site([host], **keys)
    assert "run `r1prov up` first" in tuner.does("tune", "--yes", code=Exit.UNHEALTHY).stderr
    tuner.does("up")


@pytest.fixture
def kept(tuner: Operator, host: LabHost) -> Path:
    """Where the site keeps what its host was tuned to."""
    return tuner.folder / ".r1prov" / "tuned" / f"{host.name}.json"


def answers(host: LabHost) -> bool:
    return lab.ssh(host, ["python3", "-c", HEALTH]).returncode == 0


def wait_for(host: LabHost, condition: str, limit_s: float = 300) -> None:
    deadline = time.monotonic() + limit_s
    while lab.ssh(host, ["sh", "-c", condition]).returncode:
        assert time.monotonic() < deadline, condition
        time.sleep(0.5)


def pretend_two_threads_are_best(host: LabHost, kept: Path) -> None:
    """The controller has lost what was measured, and the host remembers it otherwise."""
    script = (
        "import json; p = '/var/lib/r1prov/measure/settings.json'; r = json.load(open(p));"
        " r['chosen'] = {**r['measured'][0]['chosen'], 'threads': '2'}; json.dump(r, open(p, 'w'))"
    )
    told(host, f'python3 -c "{script}"')
    kept.unlink(missing_ok=True)


def test_it_says_what_it_would_do_and_asks(tuner: Operator, host: LabHost, kept: Path) -> None:
    talk = tuner.does("tune", "--check").stderr
    assert "settings to measure, within 20m" in talk
    assert "micro-batch 512 as planned, micro-batch 256" in talk
    talk = tuner.does("tune", code=Exit.USAGE).stderr
    assert "will not answer while that is measured, for up to 20m" in talk
    assert "say --yes" in talk
    assert not kept.exists()
    assert answers(host)


def test_ctrl_c_ends_the_pause(tuner: Operator, host: LabHost, kept: Path) -> None:
    running = tuner.start("tune", "--yes", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(host, "systemctl is-active r1prov-measure | grep -q activating")
    wait_for(host, "systemctl is-active r1prov-llama-server | grep -q inactive")
    assert not answers(host)
    os.killpg(running.pid, signal.SIGINT)
    _, talk = running.communicate(timeout=300)
    assert running.returncode == Exit.INTERRUPTED, talk
    assert "Run the same command again" in talk
    wait_for(host, "systemctl is-active --quiet r1prov-llama-server")
    assert answers(host)
    assert not kept.exists()


def test_it_measures_keeps_the_best_and_serves_with_it(tuner: Operator, host: LabHost, kept: Path) -> None:
    done = tuner.does("tune", "--yes", "--json")
    talk = done.stderr
    found = json.loads(done.stdout)["hosts"][host.name]
    assert found == json.loads(kept.read_text())
    assert "the plan's own" in talk
    assert f"kept: {found['reason']}" in talk
    rates = [each["decode_tokens_per_second"] for each in found["measured"] if not each["failed"]]
    assert len(rates) > 1
    assert min(rates) > 0
    assert found["served"]
    assert answers(host)


def test_again_there_is_nothing_to_do(tuner: Operator, host: LabHost, kept: Path) -> None:
    before = kept.read_text()
    started = told(host, STARTED)
    assert "--force measures again" in tuner.does("tune").stderr
    assert kept.read_text() == before
    tuner.does("up")
    assert tuner.changes == {host.name: []}
    assert f"{host.name}: tuned: " in tuner.does("status").stderr
    assert told(host, STARTED) == started


def test_what_the_host_has_measured_is_kept_without_another_pause(tuner: Operator, host: LabHost, kept: Path) -> None:
    pretend_two_threads_are_best(host, kept)
    talk = tuner.does("tune", "--yes").stderr
    assert "threads 2 kept" in talk
    assert "--threads 2" in told(host, f"cat {UNIT}")


def test_another_plan_is_served_as_planned_until_the_old_one_is_back(
    tuner: Operator, host: LabHost, keys: dict[str, Any], kept: Path
) -> None:
    tuner.site([host], **keys | {"context_per_slot": 1024})
    assert "is tuned for another plan" in tuner.does("up").stderr
    assert "--threads 1" in told(host, f"cat {UNIT}")
    tuner.site([host], **keys)
    tuner.does("up")
    assert "--threads 2" in told(host, f"cat {UNIT}")


def test_what_does_not_serve_gives_way_to_the_plan(tuner: Operator, host: LabHost, kept: Path) -> None:
    program = "/opt/r1prov/llama.cpp/current/bin/llama-server"
    picky = f'#!/bin/sh\ncase "$*" in *"--threads 2"*) echo out of memory; exit 1;; esac\nexec {program}.real "$@"\n'
    told(host, f"mv {program} {program}.real; printf '%s' '{picky}' > {program}; chmod 755 {program}")
    pretend_two_threads_are_best(host, kept)
    talk = tuner.does("tune", "--yes", code=Exit.RUN_FAILED).stderr
    assert f"{host.name}: back to the plan's own setting" in talk
    assert not kept.exists()
    assert "--threads 1" in told(host, f"cat {UNIT}")
    assert answers(host)


def test_down_takes_it_away(tuner: Operator, host: LabHost) -> None:
    ours = "find /etc /usr/local /var/lib -xdev -name '*r1prov*'"
    assert told(host, ours)
    tuner.does("down", "--yes")
    assert told(host, ours) == ""
