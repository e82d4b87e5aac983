"""The progress of a run over its hosts."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from r1prov.output.amounts import amounts
from r1prov.output.console import err, lines
from r1prov.output.outlook import WORTH_SAYING_S, Outlook, outlook
from r1prov.output.pace import PLAIN_EVERY_S, Pace, clock
from r1prov.runs.events import (
    Event,
    HostAway,
    HostFailed,
    HostLooked,
    HostUnreachable,
    Output,
    Recap,
    StepStarted,
    TaskDone,
    TaskStarted,
)
from r1prov.runs.past import expected

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    from rich.console import Console

    from r1prov.hosts import Look, Progress
    from r1prov.runs.past import PastRun

PLAIN_EVERY_SHARE = 0.05
"""Without a terminal, a long step reports again after this share of the time it has taken, but not before `PLAIN_EVERY_S`."""

BAR_WIDTH = 12
"""The width of a progress bar in columns."""

WIDE = 100
"""From so many columns on, all that is known of a step stands on one line, with a bar."""

MEASURE = ("r1.prov.measurement", "r1.prov.smoke_bench")
"""The actions that measure. To Ansible a new result is a change."""

_SEVERAL = re.compile("[,;] ")

_moving: list[Live] = []
"""What moves on the terminal now."""


@contextlib.contextmanager
def still() -> Generator[None, None, None]:
    """Let nothing move on the terminal, so that a person can be asked something."""
    stopped = list(_moving)
    for live in stopped:
        live.stop()
    try:
        yield
    finally:
        for live in stopped:
            live.start()


@dataclass
class _Step:
    """A step that a host is in. Times are seconds of the controller's clock."""

    name: str
    number: int
    total: int
    started_s: float
    why: str = ""
    changes: int = 0
    measured: bool = False
    tasks: int = 0
    waits: set[str] = field(default_factory=set)

    @property
    def label(self) -> str:
        return f"[{self.number}/{self.total}] {self.name}{f' ({self.why})' if self.why else ''}"

    @property
    def outcome(self) -> str:
        """What came of it. What a measurement brings along for itself is no change of what serves."""
        if self.measured:
            return "measured"
        if not self.changes:
            return "nothing to change"
        return f"{self.changes} change{'' if self.changes == 1 else 's'}"


@dataclass
class _Host:
    """The state of one host as the display knows it."""

    name: str
    step: _Step | None = None
    task: str = ""
    end: str = ""
    style: str = ""
    entered: list[str] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)
    differences: set[str] = field(default_factory=set)
    built_anew: bool = False
    warnings: set[str] = field(default_factory=set)
    progress: dict[str, Progress] = field(default_factory=dict)
    pace: dict[tuple[str, str], Pace] = field(default_factory=dict)
    last_said_s: float = 0.0


BUILT_ANEW = "was built anew: what lay on its system disk is gone, and all of it is laid anew"
"""Said of a host, such as a container, instead of all that it has lost."""


class LiveRun:
    """The progress of a run.

    Each step that is over becomes a line that stays. On a terminal the steps that are under way, and how long the run still takes as
    far as that is known, move below. Elsewhere a long step reports now and then.

    Events and progress may come from different threads.

    Args:
        hosts: the names of the hosts, in the order to show.
        console: the console to print on; stderr by default.
        now: a clock in seconds.
        raw: show Ansible's own output instead.
        diffs: show how files change.
        past: host name -> earlier runs like this one, newest first.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        *,
        console: Console | None = None,
        now: Callable[[], float] = time.monotonic,
        raw: bool = False,
        diffs: bool = False,
        past: Mapping[str, Sequence[PastRun]] | None = None,
    ) -> None:
        self._console = console or err
        self._now = now
        self._raw = raw
        self._diffs = diffs
        self._past = past or {}
        self._hosts = {name: _Host(name) for name in hosts}
        self._started_s = now()
        self._flows_said_s = 0.0
        self._lock = threading.RLock()
        moving = self._console.is_interactive and not raw
        self._live = (
            Live(get_renderable=self._lines, console=self._console, refresh_per_second=4, transient=True)
            if moving
            else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
            _moving.append(self._live)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            _moving.remove(self._live)
            self._live.stop()
        for host in self._hosts.values():
            if host.step and not host.end:  # The run was stopped: where, is worth knowing.
                took = clock(self._now() - host.step.started_s)
                host.end = f"stopped in {host.step.label} after {took}"
                self._say(host, host.end, "yellow")

    def note(self, host: str, text: str) -> None:
        """Print a remark about a host. The remark stays on the screen."""
        lines(self._console, Text(f"{host}: {text}", style="dim"))

    def event(self, event: Event) -> None:
        """Show an event of the run."""
        with self._lock:
            if isinstance(event, Output):
                if self._raw or (self._diffs and event.is_diff):
                    self._console.out(event.text.strip("\r\n"), highlight=False)
            elif isinstance(event, Recap):
                for name, tally in event.hosts.items():
                    self._leave(self._host(name), "" if tally.failed or tally.unreachable else "done")
            elif hasattr(event, "host"):
                self._of_host(self._host(event.host), event)

    def progress(self, progress: Progress) -> None:
        """Show how far a long step is."""
        with self._lock:
            host = self._host(progress.host)
            host.progress[progress.step] = progress
            pace = host.pace.setdefault(_part(progress), Pace())
            pace.add(progress.done, progress.updated)
            current = host.step and host.step.name == progress.step
            if self._live or progress.state != "running":
                return
            if progress.sources:
                self._say_flows()
            elif current:
                self._say_progress(host, progress)

    def _host(self, name: str) -> _Host:
        return self._hosts.setdefault(name, _Host(name))

    def _of_host(self, host: _Host, event: Event) -> None:
        if isinstance(event, StepStarted):
            self._leave(host, "")
            host.step = _Step(event.step, event.number, event.total, self._now(), event.why)
            host.entered.append(event.step)
            host.last_said_s = self._now()
        elif isinstance(event, TaskStarted):
            host.task = event.task
        elif isinstance(event, TaskDone) and host.step:
            host.step.tasks += 1
            host.step.changes += event.changed
            host.step.measured |= event.changed and event.action in MEASURE and event.result.get("measured", True)
            if event.changed:
                host.changed.add(host.step.name)
            self._say_built_anew(host, event.built_anew)
            for difference in event.differences:
                if difference not in host.differences:
                    self._say_difference(host, difference, difference)
            self._warn(host, event.warnings)
        elif isinstance(event, HostAway):
            host.end, host.style = f"left out: {'; '.join(problem.what for problem in event.problems)}", "bold red"
            self._say(host, host.end, host.style)
        elif isinstance(event, HostLooked):
            self._looked(host, event.look)
        elif isinstance(event, HostFailed | HostUnreachable):
            what = "failed" if isinstance(event, HostFailed) else "lost"
            at = host.step.label if host.step else host.task
            host.end, host.style = f"{what} at {at}" if at else what, "bold red"
            self._say(host, host.end, host.style)

    def _looked(self, host: _Host, look: Look) -> None:
        """Print what a look at the host said."""
        if look.clean:
            host.end, host.style = f"nothing differs: {look.asked} questions in {look.seconds:.1f} s", "green"
            self._say(host, host.end, host.style)
        self._say_built_anew(host, look.built_anew)
        for each in look.differences:
            self._say_difference(host, each.what, f"{each.step}: {each.what}")
        if look.unknown:
            self._say(host, f"a look could not tell all: {look.unknown}", "yellow")
        self._warn(host, look.stays)

    def _say_built_anew(self, host: _Host, built_anew: bool) -> None:
        """Print, once, that a host was built anew."""
        if built_anew and not host.built_anew:
            host.built_anew = True
            self._say(host, BUILT_ANEW, "yellow")

    def _say_difference(self, host: _Host, difference: str, text: str) -> None:
        """Print a difference, which nobody needs to say again. Of a host that was built anew, one sentence stands for all of them."""
        host.differences.add(difference)
        if not host.built_anew:
            self._say(host, text, "yellow")

    def _warn(self, host: _Host, said: Iterable[str]) -> None:
        """Print warnings, each once: a look, and a step that looks before it acts, warn of the same."""
        for each in said:
            if each not in host.warnings:
                host.warnings.add(each)
                self.note(host.name, each)

    def _leave(self, host: _Host, end: str) -> None:
        """Print how the current step of the host ended and, if `end` is given, how the run ended for the host."""
        if host.step and not host.end:
            took = clock(self._now() - host.step.started_s)
            outcome = f"{took}, {host.step.outcome}" if host.step.tasks else "not needed"
            self._say(host, f"{host.step.label}: {outcome}{'' if end or self._live else self._rest(host)}")
        if end and not host.end:
            host.end, host.style = f"{end} in {clock(self._now() - self._started_s)}", "green"
            self._say(host, host.end, host.style)

    def _say(self, host: _Host, text: str, style: str = "") -> None:
        """Print a line that stays. On a terminal it comes above what moves."""
        if not self._raw:
            lines(self._console, Text.assemble((f"{host.name}  ", "bold"), (text, style)))

    def _outlook(self, host: _Host) -> Outlook:
        """How long the host still takes, as far as earlier runs and the pace of its work tell."""
        if not host.step:
            return Outlook()
        running = [progress for progress in host.progress.values() if progress.state == "running"]
        left = {each.step: host.pace[_part(each)].left_s(each.total) for each in running}
        return outlook(
            expected(self._past.get(host.name, ()), host.entered, host.changed),
            step=host.step.name,
            elapsed_s=self._now() - host.step.started_s,
            moving={step: seconds for step, seconds in left.items() if seconds is not None},
        )

    def _rest(self, host: _Host) -> str:
        """How long the host still takes, for the end of a line that stays; empty where that is not known, or soon over."""
        view = self._outlook(host)
        return "" if view.left_s is not None and view.left_s < WORTH_SAYING_S else view.text and f"; {view.text}"

    def _whole(self) -> str:
        """How long the run has taken, and how long it still takes: as long as the slowest host, if all are known."""
        elapsed = f"{clock(self._now() - self._started_s)} so far"
        views = {host.name: self._outlook(host) for host in self._hosts.values() if not host.end}
        known = [view for view in views.values() if view.left_s is not None]
        if known and len(known) == len(views):
            slowest = max(known, key=lambda view: view.left_s or 0.0)
            return f"{elapsed}; {slowest.text} ({slowest.because})"
        told = [
            f"{name + ', ' if len(self._hosts) > 1 else ''}{view.text} ({view.because})"
            for name, view in views.items()
            if view.left_s is None and view.text
        ]
        return "; ".join([elapsed, *told[:1]])

    def _say_progress(self, host: _Host, progress: Progress) -> None:
        if not host.step:
            return
        pause_s = max(PLAIN_EVERY_S, PLAIN_EVERY_SHARE * (self._now() - host.step.started_s))
        waits, is_told = progress.label.startswith("waiting"), progress.label in host.step.waits
        # That a step waits, and for whom, is said at once. It may wait for two in turn, and that is said once of each.
        if (waits and not is_told) or self._now() - host.last_said_s >= pause_s:
            host.last_said_s = self._now()
            if waits:
                host.step.waits.add(progress.label)
            again = f", {clock(self._now() - host.step.started_s)} so far" if is_told else ""
            share = f"{progress.done / progress.total:.0%}, " if progress.total else ""
            told = _joined(progress.label, f"{share}{self._amounts(host, progress)}", " ")
            self._say(host, f"{host.step.label}: {told}{again}")

    def _lines(self) -> Group:
        """Build the lines that the terminal shows now."""
        with self._lock:
            rows = [row for host in self._hosts.values() if not host.end for row in self._rows(host)]
            is_wide, flows = self._console.width >= WIDE, self._flows()
            parts: list[Table | Text] = [_grid(rows) if is_wide else _stack(rows)] if rows else []
            if flows:
                parts.append(_flow_grid(flows) if is_wide else _flow_stack(flows))
            return Group(*parts, Text(self._whole(), style="dim"))

    def _flows(self) -> list[_Flow]:
        """What flows to the hosts now."""
        return [
            _Flow(host.name, self._amounts(host, each), list(each.sources), each.verifying)
            for host in self._hosts.values()
            if not host.end
            for each in host.progress.values()
            if _flows(each)
        ]

    def _say_flows(self) -> None:
        """Print a line for all hosts to which something flows, now and then."""
        if self._now() - self._flows_said_s < PLAIN_EVERY_S:
            return
        self._flows_said_s = self._now()
        told = [
            f"{flow.host} {flow.amounts}, from {', '.join(flow.sources)}{flow.verifying and f', verifying {flow.verifying}'}"
            for flow in self._flows()
        ]
        lines(self._console, Text.assemble(("weights  ", "bold"), "; ".join(told)))

    def _rows(self, host: _Host) -> Iterable[_Row]:
        name = Text(host.name, style="bold")
        if not host.step:
            yield _Row(name, Text(), Text(host.task or "first contact"))
            return
        elapsed = clock(self._now() - host.step.started_s)
        progress = host.progress.get(host.step.name)
        running = progress if progress and progress.state == "running" and not _flows(progress) else None
        label = Text(host.step.label, style="cyan")
        if running:
            yield _Row(name, label, Text(running.label), running, self._amounts(host, running), elapsed)
        else:
            yield _Row(name, label, Text(host.task), took=elapsed)
        for other in host.progress.values():
            if other.state == "running" and other.step != host.step.name and not _flows(other):
                beside = Text(f"meanwhile {other.step}", style="dim")
                yield _Row(Text(), beside, Text(other.label, style="dim"), other, self._amounts(host, other))

    def _amounts(self, host: _Host, progress: Progress) -> str:
        return amounts(progress.done, progress.total, progress.unit, host.pace[_part(progress)])


@dataclass(frozen=True)
class _Row:
    """What moves: a host's step, or what goes on beside it."""

    host: Text
    step: Text
    what: Text
    progress: Progress | None = None
    amounts: str = ""
    took: str = ""


@dataclass(frozen=True)
class _Flow:
    """What flows to a host: how much, from where, and what of it is being verified."""

    host: str
    amounts: str
    sources: list[str]
    verifying: str


def _flows(progress: Progress) -> bool:
    """Whether bytes come from sources now. They have a table of their own, for all hosts."""
    return progress.state == "running" and bool(progress.sources)


def _flow_grid(flows: Iterable[_Flow]) -> Table:
    """A line for each host."""
    grid = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    for name in ("weights", "", "from", "verifying"):
        grid.add_column(Text(name), no_wrap=True, overflow="ellipsis")
    for flow in flows:
        grid.add_row(Text(flow.host, style="bold"), flow.amounts, ", ".join(flow.sources), flow.verifying)
    return grid


def _flow_stack(flows: Iterable[_Flow]) -> Text:
    """Short lines for each host."""
    shown = []
    for flow in flows:
        shown += [Text(f"{flow.host} weights", style="bold"), Text(f"  {flow.amounts}")]
        shown.append(Text(f"  from {', '.join(flow.sources)}"))
        shown += [Text(f"  verifying {flow.verifying}")] if flow.verifying else []
    return Text("\n", no_wrap=True, overflow="ellipsis").join(shown)


def _grid(rows: Iterable[_Row]) -> Table:
    """A line for each row."""
    grid = Table.grid(padding=(0, 1), expand=True)
    for ratio in (None, None, 1):
        grid.add_column(ratio=ratio, no_wrap=True, overflow="ellipsis")
    grid.add_column(width=BAR_WIDTH)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    for row in rows:
        bar = _bar(row.progress) if row.progress else ""
        grid.add_row(row.host, row.step, row.what, bar, row.amounts, row.took)
    return grid


def _stack(rows: Iterable[_Row]) -> Text:
    """Two short lines for each row: where a host is, and what goes on there."""
    shown = []
    for row in rows:
        where = Text(" ").join(part for part in (row.host, row.step, Text(row.took)) if part)
        what = _joined(row.what.plain, row.amounts, ", ")
        shown += [where, *([Text(f"  {what}", style=row.what.style)] if what else [])]
    return Text("\n", no_wrap=True, overflow="ellipsis").join(shown)


def _joined(label: str, amounts: str, by: str) -> str:
    """What goes on, and how far it is. Of a label with several parts the amounts come first, lest they seem to be one more of them."""
    if not label or not amounts:
        return label or amounts
    return f"{amounts}: {label}" if _SEVERAL.search(label) else f"{label}{by}{amounts}"


def _part(progress: Progress) -> tuple[str, str]:
    """Return the key of the pace. The label counts only up to its colon, because the rest changes while the work goes on."""
    return progress.step, progress.label.partition(":")[0]


def _bar(progress: Progress) -> ProgressBar:
    return ProgressBar(total=progress.total or None, completed=progress.done, width=BAR_WIDTH, pulse=not progress.total)
