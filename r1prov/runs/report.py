"""The report of a run, as a value that JSON can say (`schema` 1). Every report is kept with the site, the newest also as `last.json`."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from r1prov.common.errors import (
    DamagedError,
    Exit,
    LockedError,
    PreflightError,
    Problem,
    R1provError,
    RunError,
    UnhealthyError,
    UnreachableError,
    together,
)
from r1prov.common.files import write_whole
from r1prov.runs.events import (
    Event,
    Finished,
    HostAway,
    HostFailed,
    HostLooked,
    HostUnreachable,
    Output,
    Recap,
    StepStarted,
    TaskDone,
)
from r1prov.runs.expectations import expectations_of, once

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from r1prov.hosts.looking import Expectation
    from r1prov.machines.profile import Published

SCHEMA = 1


@dataclass
class HostReport:
    """What a run did on one host.

    Attributes:
        result: `ok`, `failed`, `unreachable` (from the first contact on, or later), or `unfinished` where the run was stopped.
        ok: how many tasks went well.
        changed: how many tasks changed something.
        changes: the names of these tasks, as `step: task`.
        starts: the seconds until each unit that was started or restarted was ready. For so long a running service pauses.
        steps: each step with its seconds, in the order of the run. A step that is entered twice stands there twice.
        differences: what somebody had changed behind r1prov's back, in a sentence each. The run has put it right, or would in a check.
        built_anew: whether a platform has built the host anew, as a container. Most of what differs was lost then.
        warnings: what is worth a look although it stopped nothing.
        problems: what stopped the run, each with `where`, `what` and `remedy`.
        benchmark: the last result of the role smoke_bench (docs/benchmark.md). It is from before where nothing changed.
        compared: with what the rate was compared where an upgrade asks for one, in words; empty where nothing was compared.
        tuning: what the role measure found of settings (roles/measure/files/r1prov-measure/measuring/settings.py).
        modes: what the role measure says of modes (docs/benchmark.md).
        removal: what the module removal says that it removes, or would, and what stays: its keys `removed`, `kept`, `in_use` and `away`.
        verified: what `r1prov weights verify` read: `seconds`, and of each of `files` its `path`, `bytes`, `sha256`, `state`
            (`whole` or `damaged`), `why`, and the `places` of the damage.
        pruned: what `r1prov weights prune` has removed and what is in use: the keys `removed` and `in_use` of the module weights.
        looked: what a look before the run said: `asked` (the number of questions), `seconds`, `differences`, each with `step`, `task`
            and `what`, `unknown`, why that is not all, and `built_anew`. Where it says nothing of the first two, the run left the host out.
    """

    result: str = "unfinished"
    ok: int = 0
    changed: int = 0
    changes: list[str] = field(default_factory=list)
    starts: dict[str, float] = field(default_factory=dict)
    steps: list[tuple[str, float]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    built_anew: bool = False
    warnings: list[str] = field(default_factory=list)
    problems: list[dict[str, str]] = field(default_factory=list)
    benchmark: dict[str, Any] | None = None
    compared: str = ""
    tuning: dict[str, Any] | None = None
    modes: dict[str, Any] | None = None
    removal: dict[str, Any] | None = None
    verified: dict[str, Any] | None = None
    pruned: dict[str, Any] | None = None
    looked: dict[str, Any] | None = None

    def warn(self, said: Iterable[str]) -> None:
        """Take note of warnings, each once: a look, and a step that looks before it acts, warn of the same."""
        self.warnings.extend(each for each in said if each not in self.warnings)


@dataclass
class RunReport:
    """The report of one run over a site.

    Times are ISO 8601 in UTC. `run` is its name in the histories of hosts. `check` says that nothing was changed. `exit` is the exit
    code of r1prov, `ansible_exit` that of Ansible.
    """

    command: str
    site: str
    profile: str
    quant: str
    started: str
    hosts: dict[str, HostReport]
    schema: int = SCHEMA
    run: str = ""
    check: bool = False
    ended: str = ""
    exit: int = Exit.INTERRUPTED
    ansible_exit: int | None = None
    log: str = ""

    @property
    def changed_hosts(self) -> list[str]:
        """The names of the hosts on which something was changed."""
        return [name for name, host in self.hosts.items() if host.changes]

    def with_result(self, *results: str) -> list[str]:
        """The names of the hosts that ended so."""
        return [name for name, host in self.hosts.items() if host.result in results]

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON document."""
        return asdict(self)

    def write(self, folder: Path, kind: str) -> Path:
        """Keep the report as `KIND-TIME.json` and as `last.json`. Returns the path of the former."""
        text = json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n"
        path = write_whole(folder / f"{kind}-{self.started.replace(':', '')}.json", text)
        write_whole(folder / "last.json", text)
        return path


def now() -> str:
    """The time now, as reports write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def last_start_s(folder: Path, host: str, unit: str) -> float | None:
    """The seconds that a unit of a host took to be ready when it was last started; None where no kept report tells."""
    for path in sorted(folder.glob("up-*.json"), reverse=True):
        found = json.loads(path.read_text())["hosts"].get(host, {}).get("starts", {}).get(unit)
        if found is not None:
            return float(found)
    return None


class Recorder:
    """Turns the events of a run into its report."""

    def __init__(self, report: RunReport) -> None:
        self.report = report
        self._away: list[R1provError] = []
        self._errors: list[R1provError] = []
        self._cut_off: dict[str, R1provError] = {}
        self._complaint = ""
        self._step: dict[str, tuple[str, float]] = {}
        self._expectations: dict[str, list[Expectation]] = {}

    def event(self, event: Event, at_s: float) -> None:
        """Take note of what happened at `at_s` seconds of a steady clock."""
        if isinstance(event, StepStarted):
            self._leave(event.host, at_s)
            self._step[event.host] = (event.step, at_s)
        elif isinstance(event, TaskDone):
            host = self._host(event.host)
            self._expectations.setdefault(event.host, []).extend(expectations_of(event))
            if event.changed:
                host.changes.append(f"{event.step}: {event.task}" if event.step else event.task)
            host.differences.extend(each for each in event.differences if each not in host.differences)
            host.built_anew |= event.built_anew
            host.warn(event.warnings)
            if event.result.get("start_s"):
                host.starts[event.result["unit"].removesuffix(".service")] = event.result["start_s"]
            if event.step == "smoke_bench" and event.result.get("result") and not _is_of_the_door(event, host):
                host.benchmark = event.result["result"]
                host.compared = event.result.get("compared", "")
            if event.step == "measure" and "chosen" in (event.result.get("result") or {}):
                host.tuning = event.result["result"]
            self._measured(event)
            self._removed(event)
            host.verified = event.result.get("verified") or host.verified
            host.pruned = event.result.get("pruned") or host.pruned
        elif isinstance(event, HostLooked):
            self._looked(event)
        elif isinstance(event, HostAway | HostFailed | HostUnreachable):
            self._trouble(event)
        elif isinstance(event, Recap):
            self._end(event, at_s)
        elif isinstance(event, Output) and "[ERROR]: " in event.text:
            self._complaint = event.text.partition("[ERROR]: ")[2].splitlines()[0]
        elif isinstance(event, Finished):
            self.report.ansible_exit, self.report.log, self.report.ended = event.code, str(event.log), now()

    def expectations(self, name: str) -> list[Expectation]:
        """What the tasks of the run expect of a host, each question once; nothing unless all of them went well."""
        host = self.report.hosts.get(name)
        return once(self._expectations.get(name, [])) if host and host.result == "ok" else []

    def error(self) -> R1provError | None:
        """What went wrong on the hosts, as one error; None where nothing did."""
        errors = self._away + self._errors
        if not self._errors and self.report.ansible_exit:
            what = self._complaint or f"ended with {self.report.ansible_exit}"
            errors.append(RunError(Problem("ansible-playbook", what, f"all that it said: {self.report.log}")))
        return together(errors)

    def places(self, was_locked: Mapping[str, bool]) -> dict[str, str]:
        """Say where the run of each host was when it was stopped, as a predicate.

        Args:
            was_locked: of each host that was released afterwards, whether the run still held it.
        """
        return {name: self._place(name, was_locked.get(name)) for name in self.report.hosts}

    def _place(self, name: str, was_locked: bool | None) -> str:
        if self.report.hosts[name].problems:
            return "could not be reached" if self.report.hosts[name].result == "unreachable" else "has failed"
        if self.report.hosts[name].result == "ok":  # It came to its end, or there was nothing to do.
            return "is done"
        place = f"was in {self._step[name][0]}" if name in self._step else "was not begun"
        if was_locked is None:
            return (
                f"{place}, and may still be locked. The next run from this machine takes that lock over; one from another machine "
                "needs --break-lock"
            )
        return "is done" if name in self._step and not was_locked else f"{place}, and is not locked"

    def _host(self, name: str) -> HostReport:
        return self.report.hosts.setdefault(name, HostReport())

    def _trouble(self, event: HostAway | HostFailed | HostUnreachable) -> None:
        host = self._host(event.host)
        if isinstance(event, HostAway):
            host.result = "unreachable"
            error: R1provError = UnreachableError(*event.problems)
            self._away.append(error)
        else:
            error = failure(event)
            if isinstance(event, HostUnreachable):
                self._forget_cut_off(event.host)
            elif _is_cut_off(event.result):
                self._cut_off[event.host] = error
            self._errors.append(error)
        if isinstance(event, HostFailed):
            host.differences.extend(each for each in event.differences if each not in host.differences)
            host.verified = event.result.get("verified")
            self._measured(event)
            self._removed(event)
        host.problems.extend(asdict(problem) for problem in error.problems)

    def _forget_cut_off(self, name: str) -> None:
        """A host that goes down ends its modules first. That the host is lost says all, then."""
        if error := self._cut_off.pop(name, None):
            self._errors.remove(error)
            host, untold = self._host(name), [asdict(problem) for problem in error.problems]
            host.problems = [problem for problem in host.problems if problem not in untold]

    def _looked(self, event: HostLooked) -> None:
        host, found = self._host(event.host), asdict(event.look)
        del found["benchmark"]  # It has a place of its own in the report.
        del found["diffs"]  # A look before a run has none.
        host.looked = found
        host.built_anew |= event.look.built_anew
        host.warn(event.look.stays)
        if event.look.clean:
            host.result = "ok"
            host.benchmark = event.look.benchmark
            host.steps = [("look", event.look.seconds)]

    def _measured(self, event: TaskDone | HostFailed) -> None:
        """Take note of the modes that were measured, also before something went wrong."""
        if event.step == "measure" and "modes" in (event.result.get("result") or {}):
            self._host(event.host).modes = event.result["result"]

    def _removed(self, event: TaskDone | HostFailed) -> None:
        """Take note of what was removed, also where something could not be."""
        if event.step == "removal" and "removed" in event.result:
            self._host(event.host).removal = {key: event.result[key] for key in ("removed", "kept", "in_use", "away")}

    def _leave(self, name: str, at_s: float) -> None:
        if name in self._step:
            step, since_s = self._step.pop(name)
            self._host(name).steps.append((step, round(at_s - since_s, 1)))

    def _end(self, recap: Recap, at_s: float) -> None:
        for name, tally in recap.hosts.items():
            self._leave(name, at_s)
            host = self._host(name)
            host.ok, host.changed = tally.ok, tally.changed
            host.result = "unreachable" if tally.unreachable else "failed" if tally.failed else "ok"


_HOST_KEY_REFUSED = ("Host key verification failed", "because Host Key checking is enabled")
"""What ssh says when it refuses a host key, and what Ansible says instead where it has a password."""


def _offered_key(message: str) -> str:
    """The key that ssh has refused, and where the accepted key stands, as far as ssh says it, as the rest of a sentence."""
    offered = re.search(r"SHA256:[\w+/]+", message)
    accepted = re.search(r"Offending \S+ key in (\S.*:\d+)", message)
    return (f": it offers {offered[0]}" if offered else "") + (f", not what {accepted[1]} says" if accepted else "")


_OF_LOOPS = "All items completed"
"""Ansible says this of a task with a loop, whatever has become of it."""


def failure(event: HostFailed | HostUnreachable) -> R1provError:
    """The error that a failed task stands for."""
    message = event.message if isinstance(event, HostUnreachable) else str(event.result.get("msg", ""))
    if any(words in message for words in _HOST_KEY_REFUSED):
        return UnreachableError(
            Problem(
                event.host,
                f"its host key is not one that this site has accepted{_offered_key(message)}",
                "if the host was not installed anew, someone may sit between you and the host. If it was, run the same "
                "command again: its first contact says how to forget the old key",
            )
        )
    if isinstance(event, HostUnreachable):
        # Ansible begins with what it was about to do, and ssh ends with the reason.
        lines = [line.strip() for line in event.message.splitlines() if line.strip() not in ("", _OF_LOOPS)]
        reason = lines[-1].rpartition("ssh: ")[2] if lines else "no reason given"
        reason = reason.removeprefix("Task failed: ").rstrip(":.")
        return UnreachableError(
            Problem(event.host, f"the connection is lost: {reason}", "run the same command again to go on")
        )
    if found := event.result.get("problems"):
        return PreflightError(*(Problem(event.host, f"{p['check']}: {p['what']}", p["remedy"]) for p in found))
    if found := event.result.get("verified"):
        remedy = "`r1prov up` brings it anew, and keeps it until then"
        damaged = [file for file in found["files"] if file["why"]]
        return DamagedError(
            *(Problem(event.host, f"{file['path']} is damaged: {file['why']}", remedy) for file in damaged)
        )
    what, _, remedy = _message(event.result).partition(" Remedy: ")
    if event.result.get("locked"):
        return LockedError(Problem(event.host, what.removeprefix(event.host).strip(" ."), remedy.rstrip(".")))
    kind = UnhealthyError if event.step == "smoke_bench" else RunError
    where = f"{event.host}, {event.step}" if event.step else event.host
    if fixed := _FIXED.search(what):
        path = fixed[1] or fixed[2]
        what = f"not even root may change {path}"
        remedy = (
            f"`lsattr -d {path}` on the host shows an i or an a where somebody has told the file system so, "
            f"`chattr -i -a {path}` takes that back; then run the same command again"
        )
    told = f"{event.task}: {what}".strip()
    return kind(Problem(where, told, remedy or "mend it, then run the same command again to go on"))


_FIXED = re.compile(r"Operation not permitted: b?'[^']*' -> b?'([^']+)'|Operation not permitted: b?'([^']+)'")
"""What Python says of a file that the file system lets nobody change, with the name that it is about."""


def _is_of_the_door(event: TaskDone, host: HostReport) -> bool:
    """Whether a host with an engine of its own, which was measured, was asked as the door to all engines, too."""
    return bool(host.benchmark) and event.result["result"]["subject"]["engine"] == "balancer"


def _is_cut_off(result: dict[str, Any]) -> bool:
    """Whether a module has ended without an answer that Ansible can read."""
    return "module_stdout" in result


def _message(result: dict[str, Any]) -> str:
    """The words of a result that say most: the message of the module, then the last lines of the program that it ran."""
    if "censored" in result:
        return "failed; what it said is hidden, for it may hold a secret"
    message = str(result.get("msg") or "failed").strip()
    if _is_cut_off(result):
        message = "it ended on the host without an answer"
    if message == "One or more items failed":
        failed = [item for item in result.get("results", []) if item.get("failed")]
        return "; ".join(_message(item) for item in failed)
    said = str(result.get("stderr") or result.get("module_stderr") or result.get("stdout") or "").strip().splitlines()
    return "\n".join([message, *said[-5:]])


def benchmark_rows(benchmarks: dict[str, dict[str, Any]], published: Iterable[Published]) -> list[tuple[str, str, str]]:
    """Rows of what was measured, then of what others published for such a machine: a label, prompt and decode rate (tokens/s)."""
    rows = []
    for host, benchmark in benchmarks.items():
        alone = benchmark["sweep"][0]  # One user and 64 tokens: the answer to the question is too short to tell a rate.
        prompt, decode = alone["prompt_tokens_per_second_each"], alone["decode_tokens_per_second_each"]
        rows.append((f"{host}, {benchmark['subject']['engine']}", f"{prompt:.1f}", f"{decode:.2f}"))
        if page := benchmark.get("page"):
            rows.append((f"{host}, through the page", "", f"{page['decode_tokens_per_second']:.2f}"))
        rows += [
            (f"{host}, {level['users']} at once", "", f"{level['decode_tokens_per_second_total']:.2f}")
            for level in benchmark["sweep"]
            if level["users"] > 1
        ]
    rows += [(f"published: {figure.what}", "", f"{figure.decode_tokens_per_second:.2f}") for figure in published]
    return rows
