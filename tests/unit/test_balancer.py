"""Tests of the balancer's configuration, its keys and its figures. roles/balancer/molecule asks a real one."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pytest
import yaml
from loader import Loader

from r1prov import inventory, site
from r1prov.cli import show
from r1prov.common import paths
from r1prov.common.errors import SiteError
from r1prov.decision import decide
from r1prov.runs import secrets
from r1prov.site import named_keys
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/balancer"
GATEWAY = {"server_name": "r1.example.com", "tls": {"type": "local-authority"}}
MADE = {"__balancer_etc": "/etc/r1prov/balancer", "__balancer_run": "/run/r1prov/balancer"}


def configuration(**keys: object) -> str:
    """What the role writes for a site with a gateway."""
    chosen = site.load(None, profile="4x4090", hosts=["gpu1"], gateway=GATEWAY, **keys)
    values = yaml.load(inventory.rendered(decide(chosen))["group_vars/all.yml"], Loader=Loader)
    values |= {"__balancer_slots": sum(engine["slots"] for engine in values["balancer_engines"])}
    defaults = yaml.safe_load((ROOT / "roles/balancer/defaults/main.yml").read_text())
    return rendered("haproxy.cfg.j2", MADE | defaults | values)


def rendered(template: str, values: dict[str, Any]) -> str:
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string((ROOT / "roles/balancer/templates" / template).read_text()).render(values)


def test_the_configuration_is_the_golden_one() -> None:
    golden = GOLDEN / "haproxy.cfg"
    if os.environ.get("R1PROV_GOLDEN") == "write":
        golden.write_text(configuration(slots=3))
    assert configuration(slots=3) == golden.read_text()


def test_ollama_is_told_no_key() -> None:
    other = configuration(slots=3, engine="ollama").splitlines()
    golden = (GOLDEN / "haproxy.cfg").read_text().splitlines()
    assert [line.strip() for line in other if line not in golden] == [
        "http-request del-header Authorization",
        "option httpchk GET /api/version",
        "server engine 127.0.0.1:11434 id 1 maxconn 3",
        "server engine 127.0.0.1:11434 track engines/engine",
    ]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteState:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return SiteState.of(None)


def add(state: SiteState, name: str) -> str:
    key, new = named_keys.made(name)
    named_keys.keep(state, named_keys.with_one(named_keys.kept(state), new))
    return key


def revoke(state: SiteState, name: str) -> None:
    named_keys.keep(state, named_keys.without(named_keys.kept(state), name))


def test_a_key_is_shown_once_and_kept_as_its_digest(state: SiteState) -> None:
    key = add(state, "ann")
    add(state, "bob")
    assert len(key) > 43
    assert key not in state.keys.read_text()
    assert state.keys.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in named_keys.kept(state)] == ["ann", "bob"]
    revoke(state, "ann")
    assert [each.name for each in named_keys.kept(state)] == ["bob"]


@pytest.mark.parametrize(
    ("do", "name", "says"),
    [
        (add, "ann", "another key has this name"),
        (add, "site", "the site's own key has this name"),
        (add, "two words", "is no name for a key"),
        (add, "", "is no name for a key"),
        (add, "#x", "is no name for a key"),
        (revoke, "bob", "the site has no key of this name. Remedy: it has: ann"),
        (revoke, "site", "the services of the site need its own key"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_changed(state: SiteState, do: Any, name: str, says: str) -> None:
    add(state, "ann")
    before = state.keys.read_text()
    with pytest.raises(SiteError) as refused:
        do(state, name)
    (problem,) = refused.value.problems
    assert f"{problem.what}. Remedy: {problem.remedy}".startswith(says)
    assert state.keys.read_text() == before


def test_a_damaged_file_is_named(state: SiteState) -> None:
    state.keys.write_text("[{")
    with pytest.raises(SiteError, match="is damaged"):
        named_keys.kept(state)


def test_another_controller_takes_the_keys_over(state: SiteState, monkeypatch: pytest.MonkeyPatch) -> None:
    add(state, "ann")
    kept = named_keys.kept(state)
    own = named_keys.NamedKey(named_keys.OWN, "0" * 64)
    text = rendered("keys.map.j2", {"balancer_keys": [vars(each) for each in (*kept, own)]})
    assert named_keys.on_host(text) == kept
    state.keys.unlink()
    monkeypatch.setattr(secrets, "read_secret", lambda _, path: text if path == named_keys.ON_HOST else None)
    secrets.provide(site.load(None, profile="demo", hosts=["gpu1"], gateway=GATEWAY), [object()])  # type: ignore[list-item]
    assert named_keys.kept(state) == kept


STAT = """\
# pxname,svname,qcur,qmax,scur,smax,slim,stot,status,
engines,gpu1,1,1,2,2,2,9,UP,
engines,gpu2,0,0,0,0,3,0,DOWN,
engines,BACKEND,4,4,2,2,820,9,UP,

"""
TABLE = """\
# table: keys, type: string, size:4096, used:2
0x7f0: key=ann use=3 exp=2073599893 shard=0 conn_cur=3 http_req_cnt=12 bytes_out_cnt=5070
0x7f1: key=site use=0 exp=2073599893 conn_cur=0 http_req_cnt=1 bytes_out_cnt=0

"""


@pytest.fixture
def balancer(tmp_path: Path) -> Iterator[Path]:
    """The socket of something that tells figures as HAProxy does: one command for each connection."""
    path = tmp_path / "figures.sock"
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))
        door.listen()

        def tell() -> None:
            for _ in range(2):
                with door.accept()[0] as opened:
                    opened.sendall((STAT if b"stat" in opened.recv(100) else TABLE).encode())

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        yield path


def test_figures(balancer: Path) -> None:
    found = paths.module_util("balancer_figures").figures(balancer)
    assert found == {
        "waiting": 5,
        "answering": 2,
        "slots": 5,
        "engines": {"gpu1": "UP", "gpu2": "DOWN"},
        "keys": {"ann": {"requests": 12, "open": 3, "bytes": 5070}, "site": {"requests": 1, "open": 0, "bytes": 0}},
    }
    assert show.who_waits("front", {"balancer": found}) == [
        "front: the balancer cannot reach gpu2",
        "front: 5 requests wait for one of 5 slots",
    ]


def test_no_balancer_has_no_figures(tmp_path: Path) -> None:
    assert paths.module_util("balancer_figures").figures(tmp_path / "none") is None
    assert show.who_waits("gpu1", {"balancer": None}) == []
