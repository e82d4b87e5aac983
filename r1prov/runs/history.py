"""The history of hosts: what each run over a host was and how it ended, as the host and this machine keep it.

The lock begins the record of a run on the host, so it costs nothing and is there whatever happens later. How a run ended is known here
only, and is added to both. So each of several controllers sees the runs of all.
"""

from __future__ import annotations

import contextlib
import getpass
import inspect
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from r1prov.common import paths
from r1prov.common.errors import UnreachableError
from r1prov.hosts import at_once, met
from r1prov.hosts.asking import ask
from r1prov.runs.ansible import log_of
from r1prov.site import versions
from r1prov.site.select import last_applied
from r1prov.site.state import SiteState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from r1prov.common.errors import Problem
    from r1prov.decision import Decision
    from r1prov.hosts import HostConnection, Login
    from r1prov.runs.report import RunReport
    from r1prov.site import Host

LIMIT_S = 20


class Record(BaseModel):
    """One run over one host.

    Attributes:
        run: its name. It begins with the time, in UTC.
        command: the command line, which holds no secret.
        user: who started it.
        controller: the name of the machine from which it came.
        r1prov: the version of r1prov there; empty where that is not known.
        begun: when, ISO 8601 in UTC.
        ended: when; empty where that is not known.
        exit: the exit code of r1prov; None where it is not known how the run ended.
        result: of this host, as in a report (`HostReport`).
        message: what went wrong.
        before: engine, quant and versions of the last run before it that went well.
        after: the same of this run, where it went well.
        differences: what somebody had changed behind r1prov's back. Where the run went well, it has put that right.
        changed: how many tasks changed something.
        changes: the first of these tasks, as `step: task`.
        log: where Ansible's output lies on the controller, as long as it is kept.
    """

    run: str
    command: str
    user: str
    controller: str
    r1prov: str = ""
    begun: str
    ended: str = ""
    exit: int | None = None
    result: str = ""
    message: str = ""
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    differences: list[str] = []
    changed: int = 0
    changes: list[str] = []
    log: str = ""


@dataclass(frozen=True)
class History:
    """What is known of the runs over one host.

    Attributes:
        records: oldest first.
        away: why the records of the host itself are missing; empty where they are not.
        holder: the name of the run that holds the host just now; empty where none does.
    """

    records: list[Record]
    away: tuple[Problem, ...] = ()
    holder: str = ""

    def state(self, record: Record) -> str:
        """How a run ended, in a word or two."""
        if record.exit is not None:
            return record.result
        if record.run == self.holder:
            return "under way"
        if record.ended:
            return "ended"
        return "no end known" if self.away else "did not end"


def begin(state: SiteState, hosts: Iterable[Host], report: RunReport) -> None:
    """Keep here that a run over hosts has begun."""
    told = {
        "run": report.run,
        "command": report.command,
        "begun": report.started,
        "log": str(log_of(state.artifacts, report.run)),
    }
    told |= {"user": getpass.getuser(), "controller": platform.node()}
    for host in hosts:
        folder = state.history(host.name)
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        _files().begin(folder, told)


def end(decision: Decision, hosts: Sequence[Host], login: Login, report: RunReport) -> None:
    """Keep here and on the hosts how a run ended. A host that is away, or has been removed from, is not told."""
    state = SiteState.of(decision.site.path)
    outcomes = {host.name: outcome(decision, report, host.name, log_of(state.artifacts, report.run)) for host in hosts}
    for name, told in outcomes.items():
        _files().end(state.history(name), report.run, told)
    there = [host for host in hosts if report.hosts[host.name].result != "unreachable"]
    there = [host for host in there if not report.hosts[host.name].removal]

    def tell(name: str) -> None:
        with contextlib.suppress(UnreachableError):
            _ask(meeting.contacts[name].connection, {"run": report.run, "outcome": outcomes[name]})

    if there:
        with met(there, decision.site, login) as meeting:
            at_once(tell, [*meeting.contacts])


def outcome(decision: Decision, report: RunReport, name: str, log: Path) -> dict[str, Any]:
    """What is added to the record of a run when it has ended."""
    host = report.hosts[name]
    looked = [each["what"] for each in (host.looked or {}).get("differences", ())]
    is_well = host.result == "ok"
    own = decision.of(name)
    serves = {"engine": own.site.file.engine, "quant": own.quant.name}
    return {
        "ended": report.ended,
        "exit": report.exit,
        "result": host.result,
        "message": "; ".join(problem["what"] for problem in host.problems),
        "after": serves | versions.of(decision.site, name) if is_well and not host.removal else {},
        "differences": list(dict.fromkeys([*looked, *host.differences])),
        "changed": len(host.changes),
        "changes": host.changes,
        "log": str(log),
    }


def histories(path: Path | None, named: Sequence[str], login: Login) -> dict[str, History]:
    """What hosts and this machine keep of the runs over them.

    Args:
        path: the site file.
        named: the hosts; all of the site where none is named.
        login: how to reach them.

    Raises:
        SiteError: no site is known, or it has no such host.
    """
    site, hosts = last_applied(path, named)
    state = SiteState.of(site.path)
    ours = {host.name: _files().read(state.history(host.name)) for host in hosts}

    def read(name: str) -> History:
        try:
            said = _ask(meeting.contacts[name].connection, {})
        except UnreachableError as error:
            return History(merged(ours[name]), error.problems)
        return History(merged(ours[name], said["records"]), holder=_living(said["holder"]))

    with met(hosts, site, login) as meeting:
        found = dict(zip(meeting.contacts, at_once(read, [*meeting.contacts]), strict=True))
        found |= {name: History(merged(ours[name]), error.problems) for name, error in meeting.away.items()}
    return {host.name: found[host.name] for host in hosts}


def merged(*kept: Iterable[Mapping[str, Any]]) -> list[Record]:
    """The records of several places, each run once, oldest first. What a later place says counts, where it says something."""
    runs: dict[str, dict[str, Any]] = {}
    for documents in kept:
        for each in documents:
            said = {name: value for name, value in each.items() if value not in ("", None)}
            runs[each["run"]] = runs.get(each["run"], {}) | said
    records = []
    for run in runs.values():
        with contextlib.suppress(ValidationError):  # Somebody has written another thing there.
            records.append(Record.model_validate(run))
    return sorted(records, key=lambda record: record.run)


def _living(holder: Mapping[str, Any]) -> str:
    """The name of the run that holds a host, unless it has certainly ended."""
    return "" if paths.module_util("lock_holder").is_dead(holder) else str(holder.get("record", ""))


def _files() -> Any:
    return paths.module_util("run_history")


def _ask(connection: HostConnection, job: dict[str, Any]) -> dict[str, Any]:
    return ask(connection, inspect.getsource(_files()), job, "its history cannot be read", LIMIT_S)
