"""Two fresh servers that hold one model together: an engine that is the door, too, and a worker that lends it its memory and processor."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from r1prov import lab
from r1prov.common.errors import Exit
from r1prov.lab.hosts import LabHost
from r1prov.machines import profile
from tests.fixtures import engine, saying

from .conftest import fresh
from .crowd import Crowd
from .people import QUESTION, Operator, told
from .test_up_gateway import open_ports

pytestmark = pytest.mark.host

AGAIN_S = 60
"""So soon an answer comes again after a worker was killed, beside what loading this small model takes."""


@pytest.fixture(scope="module")
def pool(bootable: None, owner: Operator, sources: dict[str, Any]) -> Iterator[list[LabHost]]:
    """The engine and its worker, set up. Both have llama.cpp already."""
    image = engine.image("bookworm", saying.to_stderr)
    with fresh({f"e2e-pool-{name}": "bookworm" for name in ("one", "two")}, image) as made:
        one, two = made
        kind = yaml.safe_load(profile.source("demo"))
        kind["machine"] |= {"hosts": 2, "network": {"gbit_per_s": 10}}
        (owner.folder / "two.yml").write_text(yaml.safe_dump(kind, sort_keys=False))
        duties = {
            one.name: {"does": ["engine", "door"]},
            two.name: {"does": ["worker"], "private": two.address},
        }
        gateway = {"server_name": one.address, "tls": {"type": "local-authority"}}
        without = {"open_webui": {"enabled": False}, "ollama": {"enabled": False}}
        owner.site(made, duties=duties, sources=sources, gateway=gateway, profile="two.yml", **without)
        owner.does("up")
        yield made


@pytest.fixture
def crowd(owner: Operator, pool: list[LabHost]) -> Crowd:
    """People at the door."""
    trust = str(owner.folder / ".r1prov" / "authority" / "authority.crt")
    return Crowd(f"https://{pool[0].address}", owner.secret("api-key"), trust)


def started(host: LabHost, unit: str) -> str:
    """What tells one start of a unit from another."""
    return told(host, f"systemctl show --value --property InvocationID {unit}")


def answers_within(owner: Operator, seconds: float) -> bool:
    """Whether the engine answers again so soon."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if "Paris" in owner.run("ask", QUESTION).stdout:
            return True
        time.sleep(2)
    return False


def test_the_engine_answers_with_a_part_of_the_model_on_the_worker(owner: Operator, pool: list[LabHost]) -> None:
    one, two = pool
    assert "Paris" in owner.does("ask", QUESTION).stdout
    log = told(one, "journalctl --unit r1prov-llama-server --output cat")
    lent = [line for line in log.splitlines() if "RPC0" in line and "model buffer size" in line]
    assert lent, log[-3000:]
    assert float(lent[-1].split("=")[-1].split()[0]) > 10, "MiB of the model"
    assert not told(two, "find /srv/r1prov/models -name '*.gguf.json'").split(), "the worker has no weights of its own"


def test_nothing_differs_after_that(owner: Operator, pool: list[LabHost]) -> None:
    assert owner.does("drift").returncode == 0
    owner.does("up")
    assert not any(owner.changes.values())


def test_status_tells_who_lends_to_whom(owner: Operator, pool: list[LabHost]) -> None:
    one, two = pool
    found = json.loads(owner.run("status", "--json").stdout)["hosts"]
    assert [found[host.name]["health"] for host in pool] == ["ok", "ok"]
    assert (found[one.name]["lends_to"], found[two.name]["lends_to"]) == ("", one.name)
    assert f"lends to {one.name}" in owner.run("status").stdout


def test_others_reach_the_tunnel_only(pool: list[LabHost], neighbour: LabHost) -> None:
    assert open_ports(pool[0], seen_from=neighbour) == ["22", "443"]
    assert open_ports(pool[1], seen_from=neighbour) == ["22", "7443"]


def test_a_worker_that_is_killed_is_used_again_without_a_person(owner: Operator, pool: list[LabHost]) -> None:
    told(pool[1], "systemctl kill --signal KILL r1prov-rpc-server")
    assert answers_within(owner, AGAIN_S)
    assert owner.does("drift").returncode == 0


def test_the_engine_leaves_the_door_before_its_worker_is_restarted(
    owner: Operator, pool: list[LabHost], crowd: Crowd
) -> None:
    one, two = pool
    before = started(two, "r1prov-rpc-server")
    told(two, "sed -i 's/^Description=.*/Description=changed/' /etc/systemd/system/r1prov-rpc-server.service")
    with crowd.asking(2):
        owner.does("up")
    assert started(two, "r1prov-rpc-server") != before
    # There is no other engine that could answer meanwhile. But nobody's answer breaks off.
    assert crowd.cut == 0, crowd.failed
    assert crowd.whole > 2
    engines = json.loads(owner.run("status", "--json").stdout)["hosts"][one.name]["balancer"]["engines"]
    assert not engines[one.name]["drained"]


def test_the_engine_waits_for_a_worker_that_is_away(owner: Operator, pool: list[LabHost]) -> None:
    two = pool[1]
    lab.halt(two)
    try:
        assert f"{two.name} cannot be reached" in " ".join(owner.does("up", code=Exit.RUN_FAILED).stderr.split())
        assert not answers_within(owner, 5)
    finally:
        lab.boot(two)
    assert answers_within(owner, 2 * AGAIN_S)


def test_what_measures_one_host_is_refused(owner: Operator, pool: list[LabHost]) -> None:
    for words in (("tune", "--yes"), ("bench", "--modes", "cpu")):
        said = " ".join(owner.does(*words, code=Exit.SITE).stderr.split())
        assert f"it holds one model together with {pool[1].name}" in said
