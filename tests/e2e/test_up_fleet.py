"""Three fresh servers that are one service: a door with the page, and two engines, of which the second one joins and leaves under load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from r1prov import lab
from r1prov.common.errors import Exit
from r1prov.lab.hosts import LabHost
from tests.fixtures import engine, saying

from .conftest import fresh
from .crowd import Crowd
from .page import Page
from .people import MODEL, QUESTION, Operator, told
from .test_up_gateway import open_ports

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def hosts(bootable: None) -> Iterator[list[LabHost]]:
    """The door and two engines, with llama.cpp and the model on them already."""
    image = engine.image("bookworm", saying.to_stderr)
    with fresh({f"e2e-fleet-{name}": "bookworm" for name in ("front", "one", "two")}, image) as made:
        yield made


@pytest.fixture(scope="module")
def site(owner: Operator, hosts: list[LabHost], sources: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What each host does, by its name."""
    front, one, two = hosts
    return {
        front.name: {"does": ["door", "page"]},
        one.name: {"does": ["engine"], "private": one.address, "group": "all"},
        two.name: {"does": ["engine"], "private": two.address, "group": "all"},
    }


def write(
    owner: Operator, hosts: list[LabHost], duties: dict[str, dict[str, Any]], sources: dict[str, Any], **group: Any
) -> None:
    """Writes a site of some of the hosts. `group` has more keys of the group of engines."""
    gateway = {"server_name": hosts[0].address, "tls": {"type": "local-authority"}}
    groups = {"all": {"slots": 1, **group}}
    owner.site(hosts, duties=duties, sources=sources, gateway=gateway, groups=groups)


@pytest.fixture(scope="module")
def fleet(
    owner: Operator, hosts: list[LabHost], site: dict[str, dict[str, Any]], sources: dict[str, Any]
) -> list[LabHost]:
    """The door and one engine, set up."""
    write(owner, hosts[:2], site, sources)
    owner.does("up")
    return hosts


@pytest.fixture
def crowd(owner: Operator, fleet: list[LabHost]) -> Crowd:
    """People at the door."""
    return Crowd(f"https://{fleet[0].address}", owner.secret("api-key"), trust(owner))


def trust(owner: Operator) -> str:
    return str(owner.folder / ".r1prov" / "authority" / "authority.crt")


def engines(owner: Operator, front: LabHost) -> dict[str, str]:
    """What the door says of its engines."""
    found = json.loads(owner.run("status", "--json").stdout)["hosts"][front.name]
    return {name: engine["state"] for name, engine in found["balancer"]["engines"].items()}


def test_page_and_api_answer_at_the_door(owner: Operator, fleet: list[LabHost]) -> None:
    front = fleet[0]
    page = Page(f"https://{front.address}", trust=trust(owner))
    assert page.log_in("admin@example.com", owner.secret("webui-admin-password")) == 200
    assert "Paris" in page.ask(MODEL, QUESTION)
    assert "Paris" in owner.does("ask", QUESTION).stdout
    units = told(front, "systemctl list-unit-files --no-legend --plain 'r1prov-*' | cut -d' ' -f1")
    assert not {"r1prov-llama-server.service", "r1prov-ollama.service", "r1prov-weights.service"} & {*units.split()}


def test_nothing_differs_after_that(owner: Operator, fleet: list[LabHost]) -> None:
    assert owner.does("drift").returncode == 0
    owner.does("up")
    assert not any(owner.changes.values())


def test_an_engine_joins_under_load(
    owner: Operator, fleet: list[LabHost], site: dict[str, dict[str, Any]], sources: dict[str, Any], crowd: Crowd
) -> None:
    write(owner, fleet, site, sources)
    with crowd.asking(2):
        owner.does("up")
    assert crowd.failed == []
    assert crowd.whole > 5
    assert engines(owner, fleet[0]) == {fleet[1].name: "UP", fleet[2].name: "UP"}


def test_others_reach_what_is_offered_only(fleet: list[LabHost], neighbour: LabHost) -> None:
    assert open_ports(fleet[0], seen_from=neighbour) == ["22", "443"]
    assert open_ports(fleet[1], seen_from=neighbour) == ["22", "7443"]


def test_nobody_notices_that_all_engines_are_restarted(
    owner: Operator, fleet: list[LabHost], site: dict[str, dict[str, Any]], sources: dict[str, Any], crowd: Crowd
) -> None:
    write(owner, fleet, site, sources, context_per_slot=1536)
    since = [told(host, "systemctl show --value --property InvocationID r1prov-llama-server") for host in fleet[1:]]
    with crowd.asking(3):
        owner.does("up")
    assert crowd.failed == []
    assert crowd.whole > 5
    now = [told(host, "systemctl show --value --property InvocationID r1prov-llama-server") for host in fleet[1:]]
    assert all(before != after for before, after in zip(since, now, strict=True))
    assert engines(owner, fleet[0]) == {fleet[1].name: "UP", fleet[2].name: "UP"}
    assert owner.does("drift").returncode == 0


def test_a_drained_engine_gets_no_request_until_it_is_put_back(
    owner: Operator, fleet: list[LabHost], crowd: Crowd
) -> None:
    one, two = fleet[1:]
    with crowd.asking(2):
        assert f"{two.name} gets no new requests" in owner.does("drain", two.name).stderr
        owner.does("up", "--full", two.name)
        assert f"{two.name} is drained" in owner.run("status").stderr
        questions = decoded(two)
        told(one, "sleep 20")
        assert decoded(two) - questions <= 2, "nobody but its watcher asks for a token"
        owner.does("undrain", two.name)
        told(one, "sleep 20")
        assert decoded(two) - questions > 50
    assert crowd.failed == []
    assert "it has no engine" in owner.does("drain", fleet[0].name, code=Exit.SITE).stderr


def decoded(host: LabHost) -> int:
    """How many steps the engine of a host has computed."""
    program = (
        "import re, urllib.request as web; key = open('/etc/r1prov/llama-server/api-key').read().strip();"
        " asked = web.Request('http://127.0.0.1:8000/metrics', headers={'Authorization': 'Bearer ' + key});"
        " print(re.search(r'^llamacpp:n_decode_total (\\S+)', web.urlopen(asked).read().decode(), re.M)[1])"
    )
    return int(float(told(host, f'python3 -c "{program}"')))


def test_an_engine_that_is_killed_costs_no_request_that_has_not_begun(
    owner: Operator, fleet: list[LabHost], crowd: Crowd
) -> None:
    with crowd.asking(4):
        told(fleet[2], "systemctl kill --signal KILL r1prov-llama-server; sleep 10")
    # One slot, so one answer was in flight there.
    assert len(crowd.failed) <= 1, crowd.failed
    assert crowd.whole > 5


def test_a_host_that_is_away_stops_nobody(owner: Operator, fleet: list[LabHost], crowd: Crowd) -> None:
    told(fleet[1], "chmod 0777 /etc/r1prov/network")
    lab.halt(fleet[2])
    try:
        with crowd.asking(2):
            assert fleet[2].name in owner.does("up", code=Exit.UNREACHABLE).stderr
        assert owner.report["hosts"][fleet[1].name]["result"] == "ok"
        assert crowd.failed == []
    finally:
        lab.boot(fleet[2])


def test_an_engine_leaves_under_load(
    owner: Operator, fleet: list[LabHost], site: dict[str, dict[str, Any]], sources: dict[str, Any], crowd: Crowd
) -> None:
    write(owner, fleet[:2], site, sources, context_per_slot=1536)  # as before: the other one must not be restarted
    with crowd.asking(2):
        owner.does("up")
    assert crowd.failed == []
    assert engines(owner, fleet[0]) == {fleet[1].name: "UP"}
