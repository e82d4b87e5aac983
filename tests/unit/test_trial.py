"""The trial of a version: what is told of engines that end, are restarted, or go on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest

from r1prov.common.errors import Problem, UnreachableError
from r1prov.hosts import Contact, HostConnection, Meeting
from r1prov.hosts.connection import Result
from r1prov.runs import trial
from r1prov.site import Host, SiteFile
from r1prov.site.site import Site


class Connection:
    """A host whose engine says of itself one after the other what it is given, and then the last of it for ever."""

    def __init__(self, name: str, *said: str) -> None:
        self.host, self.said = Host(name=name), list(said)

    def run(self, argv: Sequence[str], *_: object, **__: object) -> Result:
        if argv[0] == "test":
            return Result(0, "", "")
        said = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        if said == "away":
            raise UnreachableError(Problem(self.host.name, "is away", "wait"))
        state, _, start = said.partition(" ")
        return Result(0, f"ActiveState={state}\nInvocationID={start}\n", "")


ENDS = {
    "goes on": (["active a"], ""),
    "is restarted": (["active a", "active a", "active b"], "ended or stood still"),
    "ends": (["active a", "failed a"], "ended or stood still"),
    "has ended before": (["activating "], "ended or stood still"),
    "is away": (["active a", "away"], ""),
    "was never there": (["away"], ""),
}


@pytest.mark.parametrize(("said", "what"), ENDS.values(), ids=ENDS)
def test_an_engine_falls_where_another_start_of_it_runs(
    monkeypatch: pytest.MonkeyPatch, said: list[str], what: str
) -> None:
    monkeypatch.setattr(trial, "EVERY_S", 0.01)
    connections = {name: Connection(name, *of_it) for name, of_it in {"gpu1": said, "gpu2": ["active z"]}.items()}

    @contextlib.contextmanager
    def met(*_: Any) -> Iterator[Meeting]:
        yield Meeting({name: Contact(cast("HostConnection", each), {}, []) for name, each in connections.items()}, {})

    monkeypatch.setattr(trial, "met", met)
    hosts, told = [each.host for each in connections.values()], list[tuple[int, int]]()
    file = SiteFile.model_validate({"profile": "cpu", "hosts": [host.name for host in hosts]})
    site = Site.model_construct(path=None, file=file, profile=cast("Any", None), chosen={}, groups={})
    fallen = trial.stay_well(hosts, site, cast("Any", None), 1, lambda *each: told.append(each))
    assert list(fallen) == (["gpu1"] if what else [])
    assert all(what in each.what for each in fallen.values())
    assert told[-1] == (1, 1)
