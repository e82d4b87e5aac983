"""Tests of looks that go on while a run is decided. The hosts are made up."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from r1prov.common.errors import Problem, UnreachableError
from r1prov.hosts import Contact, Expectation, HostConnection, Login, Look, Meeting, Result, StrangerError, first
from r1prov.runs import early, expectations
from r1prov.runs.early import Early
from r1prov.site.select import select
from r1prov.site.state import SiteState


class Connection:
    """A connection that can be closed."""

    closed = False

    def __init__(self, host: Any) -> None:
        self.host = host

    def close(self) -> None:
        self.closed = True


EXPECTED = [Expectation("gateway", "Write it", "ansible.modules.file", {"path": "/x"})]
ANSWER = Look(asked=1, seconds=0.1)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r1prov.yml").write_text("profile: demo\nhosts: [gpu1]\n")
    monkeypatch.setattr(early, "look", lambda _connection, expected: ANSWER if expected == EXPECTED else None)
    return select(None, ())


def met(monkeypatch: pytest.MonkeyPatch, away: dict[str, UnreachableError] | None = None) -> list[Login]:
    """Lets the first contact be this. Returns the logins with which hosts were met."""
    logins = []

    def meet(hosts: Any, _site: Any, login: Login, meanwhile: Callable[[HostConnection], None]) -> Meeting:
        logins.append(login)
        if away:
            return Meeting({}, away)
        connection = cast(HostConnection, Connection(hosts[0]))
        meanwhile(connection)
        return Meeting({"gpu1": Contact(connection, {}, [])}, {})

    monkeypatch.setattr(early, "meet", meet)
    return logins


def test_an_answer_counts_only_where_the_run_is_made_of_the_same(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    met(monkeypatch)
    wanted, hosts = site
    expectations.keep(SiteState.of(wanted.path), "gpu1", "one", EXPECTED)
    begun = Early(wanted, hosts, Login())
    meeting = begun.meeting()
    assert meeting
    assert [*meeting.contacts] == ["gpu1"]
    assert begun.looks("one") == {"gpu1": ANSWER}
    assert begun.looks("two") == {}


def test_nobody_is_met_early_of_whom_nothing_is_kept(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logins = met(monkeypatch)
    begun = Early(*site, Login())
    assert begun.meeting() is None
    assert not logins


def test_a_person_is_not_asked_early(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, hosts = site
    expectations.keep(SiteState.of(wanted.path), "gpu1", "one", EXPECTED)
    stranger = StrangerError.__new__(StrangerError)
    logins = met(monkeypatch, {"gpu1": stranger})
    begun = Early(wanted, hosts, Login(confirm=lambda *_: True))
    assert begun.meeting() is None
    assert [login.confirm for login in logins] == [None]
    met(monkeypatch, {"gpu1": UnreachableError(Problem("gpu1", "is off", "switch it on"))})
    meeting = Early(wanted, hosts, Login()).meeting()
    assert meeting
    assert [*meeting.away] == ["gpu1"]


class Told(Connection):
    """A connection to a host that answers the first contact."""

    def __init__(self, user: str, kept: list[str]) -> None:
        self.host, self.user, self.sudo, self.asked = SimpleNamespace(name="gpu1"), user, None, kept

    def run(self, argv: list[str], *_: Any, **__: Any) -> Result:
        self.asked.append(argv[0])
        how = "root" if self.user == "root" else "passwordless"
        basics = f"system=Linux\nmachine=x86_64\ninit=systemd\nboot=running\npython=3.11.2\nsudo={how}\n"
        return Result(0, basics if argv[0] == "sh" else "{}", "")


@pytest.mark.parametrize(("user", "order"), [("root", ["look", "sh", "python3"]), ("admin", ["sh", "look", "python3"])])
def test_who_is_root_already_looks_at_once(user: str, order: list[str]) -> None:
    asked: list[str] = []
    first._look_around(cast(HostConnection, Told(user, asked)), lambda _: asked.append("look"))
    assert asked == order


def test_what_is_decided_leaves_the_way_to_the_hosts_a_head_start(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logins = met(monkeypatch)
    wanted, hosts = site
    expectations.keep(SiteState.of(wanted.path), "gpu1", "one", EXPECTED)
    slow, begun = early.meet, time.monotonic()

    def meet(*arguments: Any) -> Meeting:
        time.sleep(0.1)
        return slow(*arguments)

    monkeypatch.setattr(early, "meet", meet)
    monkeypatch.setattr(early, "_HEAD_START_S", 10)
    Early(wanted, hosts, Login())
    assert len(logins) == 1
    assert time.monotonic() - begun < 5
