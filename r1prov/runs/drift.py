"""Says what a run would change on hosts, and changes nothing itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from r1prov.hosts import Difference, Look
from r1prov.runs.run import play, prepare

if TYPE_CHECKING:
    from collections.abc import Sequence

    from r1prov.decision import Decision
    from r1prov.hosts import Login
    from r1prov.runs.report import HostReport
    from r1prov.runs.run import Request, Watcher
    from r1prov.site import Host


def drift(
    decision: Decision, hosts: Sequence[Host], login: Login, request: Request, watcher: Watcher
) -> dict[str, Look]:
    """Look at hosts. Where no run has shown yet what is expected of a host, Ansible checks it, which takes as long as a run.

    Args:
        decision: from `settle`.
        hosts: whom to look at.
        login: how to reach them.
        request: of a check of `up`.
        watcher: told what happens.

    Returns:
        Host name -> what differs there, or why that cannot be told.
    """
    prepared = prepare(decision, hosts, login, watcher, looks=True)
    found = dict(prepared.looks)
    found |= {each.host: _untold("; ".join(problem.what for problem in each.problems)) for each in prepared.away}
    if rest := [host for host in prepared.targets if host.name not in found]:
        for host in rest:
            watcher.note(
                host.name,
                "nothing is kept of a run over it that asked the same and went well, so Ansible checks it in full",
            )
        report = play(replace(prepared, targets=rest, away=(), looks={}), login, request, watcher).report
        found |= {host.name: _checked(report.hosts[host.name]) for host in rest}
    return {host.name: found[host.name] for host in hosts}


def _untold(why: str) -> Look:
    return Look(asked=0, seconds=0.0, unknown=why)


def _checked(report: HostReport) -> Look:
    """What a check by Ansible says of a host."""
    found = []
    for change in report.changes:
        step, _, task = change.partition(": ")
        found.append(Difference(step, task, f"a run would do this: {task}"))
    seconds = round(sum(seconds for _, seconds in report.steps), 1)
    why = "; ".join(problem["what"] for problem in report.problems) or (
        "" if report.result == "ok" else "the check did not come to its end"
    )
    told = tuple(found)
    return Look(asked=report.ok, seconds=seconds, differences=told, unknown=why, stays=tuple(report.warnings))
