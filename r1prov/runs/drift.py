"""Says what a run would change on hosts, and changes nothing itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from r1prov.hosts import Difference, Look
from r1prov.runs.diffs import file_diffs
from r1prov.runs.events import HostFailed, TaskDone
from r1prov.runs.run import play, prepare
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.decision import Decision
    from r1prov.hosts import FileDiff, Login
    from r1prov.runs.early import Early
    from r1prov.runs.events import Event
    from r1prov.runs.report import HostReport
    from r1prov.runs.run import Request, Watcher
    from r1prov.site import Host


def drift(
    decision: Decision,
    hosts: Sequence[Host],
    login: Login,
    request: Request,
    watcher: Watcher,
    *,
    early: Early | None = None,
) -> dict[str, Look]:
    """Look at hosts. Where no run has shown yet what is expected of a host, Ansible checks it, which takes as long as a run.

    With `request.diff` Ansible also checks hosts on which something differs, because it knows what files shall hold.

    Args:
        decision: from `settle`.
        hosts: whom to look at.
        login: how to reach them.
        request: of a check of `up`.
        watcher: told what happens.
        early: looks that go on already.

    Returns:
        Host name -> what differs there, or why that cannot be told.
    """
    prepared = prepare(decision, hosts, login, watcher, looks=True, early=early)
    found = dict(prepared.looks)
    found |= {each.host: _untold("; ".join(problem.what for problem in each.problems)) for each in prepared.away}
    rest = [host for host in prepared.targets if host.name not in found]
    differ = [host for host in prepared.targets if request.diff and host.name in found and found[host.name].differences]
    if rest or differ:
        for host in rest:
            watcher.note(
                host.name,
                "nothing is kept of a run over it that asked the same and went well, so Ansible checks it in full",
            )
        seen = _Seen(watcher)
        report = play(replace(prepared, targets=rest + differ, away=(), looks={}), login, request, seen).report
        found |= {host.name: _checked(report.hosts[host.name]) for host in rest}
        found |= {name: replace(found[name], diffs=tuple(diffs.values())) for name, diffs in seen.diffs.items()}
    return {host.name: found[host.name] for host in hosts}


def read(
    decision: Decision, hosts: Sequence[Host], login: Login, request: Request, watcher: Watcher
) -> dict[str, Look]:
    """Read all files of the releases on hosts, and the weights. No file is changed, and what is damaged is mended by the next `up`.

    Args:
        decision: from `settle`, of the site as it was last applied: it says what was brought to the hosts.
        hosts: whom to read. Of those to which no run from here has brought everything, that is said.
        login: how to reach them.
        request: of the playbook `read`.
        watcher: told what happens.

    Returns:
        Host name -> what is damaged there, or why that cannot be told.
    """
    state = SiteState.of(decision.site.path)
    there = [host for host in hosts if state.settled(host.name)]
    why = "no run of `up` from here has gone well to its end there, so nothing says which files to read"
    found = {host.name: _untold(why) for host in hosts if host not in there}
    if there:
        seen = _Seen(watcher)
        report = play(prepare(decision, there, login, seen), login, request, seen).report
        for host in there:
            found[host.name] = _read(report.hosts[host.name], seen.differences.get(host.name, []))
    return found


class _Seen:
    """Keeps which task has named each difference and shown each file, and passes on what it is told."""

    def __init__(self, watcher: Watcher) -> None:
        self.differences: dict[str, list[Difference]] = {}
        self.diffs: dict[str, dict[str, FileDiff]] = {}
        self.note, self.progress = watcher.note, watcher.progress
        self._watcher = watcher

    def event(self, event: Event) -> None:
        """Something happened."""
        if isinstance(event, TaskDone | HostFailed):
            damaged = [f"{file['path']} is damaged: {file['why']}" for file in _files(event.result) if file["why"]]
            found = [Difference(event.step, event.task, what) for what in (*event.differences, *damaged)]
            self.differences.setdefault(event.host, []).extend(found)
        if isinstance(event, TaskDone):
            for each in file_diffs(event):
                self.diffs.setdefault(event.host, {}).setdefault(each.path, each)
        self._watcher.event(event)


def _files(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What a task says of weights that it has read."""
    files: list[dict[str, Any]] = (result.get("verified") or {}).get("files", [])
    return files


def _read(report: HostReport, differences: list[Difference]) -> Look:
    """What came of reading a host. That it has failed where weights are damaged is no reason why something would not be known."""
    why = "" if report.result == "ok" or report.verified else _why(report, "reading")
    return Look(asked=0, seconds=_seconds(report), differences=tuple(differences), unknown=why)


def both(look: Look, read: Look) -> Look:
    """What a look and the reading of all files say together."""
    known = {each.what for each in look.differences}
    return replace(
        look,
        seconds=round(look.seconds + read.seconds, 1),
        differences=(*look.differences, *(each for each in read.differences if each.what not in known)),
        unknown="; ".join(filter(None, (look.unknown, read.unknown))),
    )


def _untold(why: str) -> Look:
    return Look(asked=0, seconds=0.0, unknown=why)


def _checked(report: HostReport) -> Look:
    """What a check by Ansible says of a host."""
    found = []
    for change in report.changes:
        step, _, task = change.partition(": ")
        found.append(Difference(step, task, f"a run would do this: {task}"))
    why = "" if report.result == "ok" and not report.problems else _why(report, "check")
    told = tuple(found)
    return Look(asked=report.ok, seconds=_seconds(report), differences=told, unknown=why, stays=tuple(report.warnings))


def _why(report: HostReport, what: str) -> str:
    """Why a run over a host has not told all."""
    return "; ".join(problem["what"] for problem in report.problems) or f"the {what} did not come to its end"


def _seconds(report: HostReport) -> float:
    return round(sum(seconds for _, seconds in report.steps), 1)
