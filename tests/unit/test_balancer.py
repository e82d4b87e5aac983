"""Tests of the balancer's configuration, its keys and its figures. roles/balancer/molecule asks a real one."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pytest
import yaml
from ansible_collections.r1.prov.plugins.module_utils import balancer_drained, locks
from ansible_collections.r1.prov.plugins.modules import engine_drained
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
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/balancer"
GATEWAY = {"server_name": "r1.example.com", "tls": {"type": "local-authority"}}
MADE = {
    "__balancer_etc": "/etc/r1prov/balancer",
    "__balancer_run": "/run/r1prov/balancer",
    "__balancer_kept": "/var/lib/r1prov/balancer",
}


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
# pxname,svname,qcur,qmax,scur,smax,slim,stot,status,weight,
engines,gpu1,1,1,2,2,2,9,UP,1,
engines,gpu2,0,0,0,0,3,0,DOWN,1,
engines,gpu3,0,0,1,1,1,1,UP,0,
engines,BACKEND,4,4,3,3,820,9,UP,2,

"""
STAT_BEFORE = """\
# pxname,svname,qcur,qmax,scur,smax,slim,stot,status,weight,
engines,gpu1,0,0,0,2,2,9,UP,1,
engines,gpu3,0,0,1,1,1,1,UP,1,
engines,BACKEND,0,4,1,3,820,9,UP,3,

"""
TABLE = """\
# table: keys, type: string, size:4096, used:2
0x7f0: key=ann use=3 exp=2073599893 shard=0 conn_cur=3 http_req_cnt=12 bytes_out_cnt=5070
0x7f1: key=site use=0 exp=2073599893 conn_cur=0 http_req_cnt=1 bytes_out_cnt=0

"""
WORKERS = """\
#<PID>          <type>          <reloads>       <uptime>        <version>
100             master          1 [failed: 0]   0d00h10m47s     2.6.12-1+deb12u4
# workers
12              worker          0               0d00h00m01s     2.6.12-1+deb12u4
# old workers
11              worker          1               0d00h10m47s     2.6.12-1+deb12u4
# programs

"""
STATE = """\
1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight and so on
6 engines 1 gpu1 127.0.0.1 2 0 1 1 608 15 3 3 6 0 0 1 - 8000 - 0 0 - - 0
6 engines 2 gpu2 127.0.0.1 0 0 1 1 608 15 3 0 6 0 0 1 - 8000 - 0 0 - - 0
6 engines 3 gpu3 - 2 0 0 1 608 15 3 3 6 0 0 1 - 0 - 0 0 - - 0

"""


@dataclass
class Haproxy:
    """Something that answers at a socket as HAProxy's master does: one command for each connection, when whoever asks has said all."""

    path: Path
    heard: list[str] = field(default_factory=list)
    answers: dict[str, str] = field(
        default_factory=lambda: {
            "show proc": WORKERS,
            "@!12 show stat engines 6 -1": STAT,
            "@!11 show stat engines 6 -1": STAT_BEFORE,
            "@!12 show table keys": TABLE,
            "@!12 show servers state engines": STATE,
        }
    )

    def serve(self, door: socket.socket) -> None:
        with suppress(OSError):  # The door is closed when the test is over.
            while True:
                with door.accept()[0] as opened:
                    command = b"".join(iter(lambda: opened.recv(100), b"")).decode().strip()
                    self.heard.append(command)
                    opened.sendall(self.answers.get(command, "\n").encode())


@pytest.fixture
def balancer(tmp_path: Path) -> Iterator[Haproxy]:
    haproxy = Haproxy(tmp_path / "master.sock")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(haproxy.path))
        door.listen()
        threading.Thread(target=haproxy.serve, args=(door,), daemon=True).start()
        yield haproxy


def test_figures(balancer: Haproxy) -> None:
    found = paths.module_util("balancer_figures").figures(balancer.path)
    assert found == {
        "waiting": 5,
        "answering": 4,
        "slots": 6,
        "engines": {
            "gpu1": {"state": "UP", "drained": False, "answering": 2, "waiting": 1},
            "gpu2": {"state": "DOWN", "drained": False, "answering": 0, "waiting": 0},
            "gpu3": {"state": "UP", "drained": True, "answering": 2, "waiting": 0},
        },
        "keys": {"ann": {"requests": 12, "open": 3, "bytes": 5070}, "site": {"requests": 1, "open": 0, "bytes": 0}},
    }
    assert show.who_waits("front", {"balancer": found}) == [
        "front: the balancer cannot reach gpu2",
        "front: gpu3 is drained, so it gets no new requests, and 2 answers are still in flight",
        "front: 5 requests wait for one of 6 slots",
    ]


def test_no_balancer_has_no_figures(tmp_path: Path) -> None:
    assert paths.module_util("balancer_figures").figures(tmp_path / "none") is None
    assert show.who_waits("gpu1", {"balancer": None}) == []


def test_who_is_drained_is_told_all_workers_and_kept_for_the_next_ones(balancer: Haproxy, tmp_path: Path) -> None:
    file = tmp_path / "kept/drained"
    here = balancer_drained.Balancer(balancer.path, file, tmp_path / "lock")
    here.drain("gpu1")
    here.drain("gpu3")
    lines = [line.split() for line in file.read_text().splitlines()]
    assert lines[0] == ["1"]
    assert [(line[1], line[3], line[7], line[18]) for line in lines[1:]] == [
        ("engines", "gpu1", "0", "8000"),
        ("engines", "gpu3", "0", "0"),
    ]
    assert balancer_drained.recorded(file) == ["gpu1", "gpu3"]
    # The balancer goes on saying what it said.
    assert [here.is_so("gpu1", drained=each) for each in (True, False)] == [False, False]
    assert here.is_so("gpu3", drained=True)
    assert (here.in_flight("gpu1"), here.in_flight("gpu3")) == (3, 2)
    assert (here.is_well("gpu1"), here.is_well("gpu2")) == (True, False)
    here.put_back("gpu1")
    assert balancer_drained.recorded(file) == ["gpu3"]
    told = [command for command in balancer.heard if "set server" in command]
    assert told[:2] == [f"@!{pid} set server engines/gpu1 weight 0" for pid in (12, 11)]
    assert told[-2:] == [f"@!{pid} set server engines/gpu1 weight 100%" for pid in (12, 11)]


def test_a_run_puts_back_what_it_has_drained_and_no_person(balancer: Haproxy, tmp_path: Path) -> None:
    file = tmp_path / "drained"
    here = balancer_drained.Balancer(balancer.path, file, tmp_path / "lock")
    here.drain("gpu3")
    assert here.drain_for_run("gpu3")
    assert here.drain_for_run("gpu1")
    assert here.drain_for_run("gpu1")  # A run that was cut off had drained it.
    assert (balancer_drained.recorded(file), balancer_drained.by_run(file)) == (["gpu1", "gpu3"], ["gpu1"])
    here.drain("gpu1")
    assert balancer_drained.by_run(file) == []
    here.put_back("gpu1")
    assert (balancer_drained.recorded(file), balancer_drained.by_run(file)) == (["gpu3"], [])


def test_nobody_drains_an_engine_before_the_balancer_knows_of_the_last_one(
    balancer: Haproxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = balancer_drained.Balancer(balancer.path, tmp_path / "drained", tmp_path / "lock")
    ask, told = balancer_drained.ask, []

    def asked(command: str, path: Path) -> str:
        if "set server" in command:
            with pytest.raises(locks.LockedError), locks.alone(tmp_path / "lock", lambda _: None, 0):
                pass
            told.append(command)
        return str(ask(command, path))

    monkeypatch.setattr(balancer_drained, "ask", asked)
    here.drain_for_run("gpu1")
    here.put_back("gpu1")
    here.drain("gpu1")
    assert len(told) == 6


def test_the_last_engine_that_gets_requests_waits_for_those_that_come_back(balancer: Haproxy, tmp_path: Path) -> None:
    here = balancer_drained.Balancer(balancer.path, tmp_path / "drained", tmp_path / "lock")
    here.drain_for_run("gpu3")  # The balancer tells that it is drained, and gpu2 is down.
    assert not here.drain_for_run("gpu1")
    assert here.drain_for_run("gpu2"), "it answers nobody"
    assert here.drain_for_run("gpu1", in_turn=False)
    here.put_back("gpu1")
    here.put_back("gpu2")
    here.put_back("gpu3")
    here.drain("gpu3")
    assert here.drain_for_run("gpu1"), "what a person has drained does not come back by itself"


def test_an_engine_that_the_balancer_does_not_have_is_named(balancer: Haproxy, tmp_path: Path) -> None:
    here = balancer_drained.Balancer(balancer.path, tmp_path / "drained", tmp_path / "lock")
    with pytest.raises(balancer_drained.DrainError, match=r"has no engine gpu9\. Remedy: it has gpu1, gpu2, gpu3"):
        here.drain("gpu9")
    assert not (tmp_path / "drained").exists()
    away = balancer_drained.Balancer(tmp_path / "none", tmp_path / "drained", tmp_path / "lock")
    with pytest.raises(balancer_drained.DrainError, match="no balancer answers on this host"):
        away.drain("gpu1")


class _Ended(Exception):  # noqa: N818 - no error
    pass


@pytest.fixture
def module(balancer: Haproxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """The module engine_drained, which returns its answer."""
    answer: dict[str, Any] = {}

    class Module:
        check_mode = False

        def __init__(self, params: dict[str, Any]) -> None:
            self.params = {"name": "", "engines": [], "limit_s": 0, "for_run": False} | params

        def exit_json(self, **result: Any) -> None:
            answer.update(result)
            raise _Ended

        def fail_json(self, **result: Any) -> None:
            answer.update(result, failed=True)
            raise _Ended

    def run(**params: Any) -> dict[str, Any]:
        answer.clear()
        monkeypatch.setattr(engine_drained, "AnsibleModule", lambda **_: Module(params))
        with suppress(_Ended):
            engine_drained.main()
        return dict(answer)

    file = tmp_path / "kept/drained"
    here = balancer_drained.Balancer(balancer.path, file, tmp_path / "lock")
    monkeypatch.setattr(engine_drained, "FILE", file)
    monkeypatch.setattr(engine_drained, "Balancer", lambda: here)
    monkeypatch.setattr(engine_drained, "SURE_S", 0)
    return run


def test_who_drains_an_engine_is_told_that_answers_are_still_in_flight(module: Callable[..., dict[str, Any]]) -> None:
    answer = module(state="drained", name="gpu1")
    assert (answer["failed"], answer["changed"], answer["answering"]) == (True, True, 3)
    assert answer["msg"].startswith(
        "gpu1 gets no new requests, but after 0 s some of its answers are still in flight. "
    )
    assert module(state="ready", name="gpu1")["drained"] == []


def test_an_engine_that_is_away_stays_drained(module: Callable[..., dict[str, Any]]) -> None:
    assert "failed" not in module(state="drained", name="gpu2")
    answer = module(state="ready", name="gpu2")
    assert answer["msg"].startswith("gpu2 stays drained, because the balancer cannot reach it after 0 s. Remedy: ")
    known = [{"name": "gpu2", "address": "127.0.0.1:8000"}]
    assert module(state="kept", engines=known)["drained"] == ["gpu2"]
    assert module(state="kept", engines=known)["changed"] is False
    assert module(state="kept", engines=[])["drained"] == []


def test_what_must_last_begins_anew_when_it_is_not_so(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(balancer_drained.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(balancer_drained.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    assert balancer_drained.within(10, lambda: True, 3)
    assert now[0] == 3
    assert balancer_drained.within(10, lambda: now[0] > 5, 3)  # It was well for two seconds of a look that is over.
    assert 8 < now[0] <= 9
    assert not balancer_drained.within(10, lambda: False)
    assert 18 < now[0] <= 20


def test_an_engine_that_is_gone_or_moved_is_not_drained_where_it_was() -> None:
    addresses = {"gpu1": "127.0.0.1:9000", "gpu2": "unix@/run/x.sock"}
    kept = balancer_drained.record(["gpu1", "gone"], ["gone"], addresses)
    assert kept == "1\n0 engines 0 gpu1 - 2 0 0 1 0 1 0 3 6 0 0 0 - 9000 - 0 0 - - 0\n"


def test_a_run_goes_on_where_there_is_no_door_yet(module: Callable[..., dict[str, Any]]) -> None:
    nothing = {"changed": False, "due": False, "answering": 0, "drained": []}
    assert module(state="drained", name="gpu9", for_run=True) == nothing
    assert module(state="ready", name="gpu1", for_run=True) == nothing


def test_what_a_run_has_drained_comes_back_only_when_it_answers(module: Callable[..., dict[str, Any]]) -> None:
    assert module(state="drained", name="gpu2", for_run=True)["drained"] == ["gpu2"]
    answer = module(state="ready", name="gpu2", for_run=True)
    assert answer["msg"].startswith("gpu2 stays drained, because the balancer cannot reach it after 0 s. Remedy: ")
