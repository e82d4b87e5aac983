"""The only room that knows rich. stdout is data: what was asked for. stderr is talk: everything else."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from r1prov.common.units import GIB, MIB
from r1prov.output.pace import Pace, clock
from r1prov.runs.events import Event, HostFailed, HostUnreachable, Output, Recap, StepStarted, TaskDone, TaskStarted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from r1prov.common.errors import Problem
    from r1prov.hosts import Progress

PLAIN_EVERY_S = 10.0
PLAIN_EVERY_SHARE = 0.05
"""Where no terminal is, a long step says how far it is: after so many seconds, or this share of what it has taken."""

PLAIN_WIDTH = 120
"""Where no terminal says how wide it is, and COLUMNS does not either."""


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PLAIN_WIDTH
    return console


BAR_WIDTH = 12

_out = _console(stderr=False)
_err = _console(stderr=True)


def say(text: str = "", style: str = "") -> None:
    """A line of talk."""
    _err.print(Text(text, style=style), soft_wrap=True)


def write(text: str) -> None:
    """A piece of the answer, as it comes."""
    _out.out(text, end="", highlight=False)


def whisper(text: str) -> None:
    """A piece of what leads to the answer."""
    _err.print(Text(text, style="dim"), end="", soft_wrap=True)


def data(value: Any) -> None:
    """One JSON document on stdout."""
    _out.out(json.dumps(value, indent=2, ensure_ascii=False), highlight=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, talk: bool = False) -> None:
    """A table that was asked for, on stdout; as part of talk, on stderr. Columns whose name ends in `>` are right-aligned."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column.removesuffix(">"), justify="right" if column.endswith(">") else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(escape(cell) for cell in row))
    (_err if talk else _out).print(grid)


def problems(found: Iterable[Problem]) -> None:
    """What is wrong: where, what, and what to do next."""
    for problem in found:
        _err.print(Text.assemble((problem.where, "bold red"), ": ", problem.what), soft_wrap=True)
        _err.print(Text.assemble(("  -> ", "bold"), problem.remedy), soft_wrap=True)


def traceback() -> None:
    """The traceback of the exception at hand, for --debug."""
    _err.print_exception()


@dataclass
class _Step:
    """A step of one host as it is shown. Times by the controller's clock."""

    name: str
    number: int
    total: int
    started_s: float
    changes: int = 0
    tasks: int = 0

    @property
    def label(self) -> str:
        return f"[{self.number}/{self.total}] {self.name}"


@dataclass
class _Host:
    """What is known of one host."""

    name: str
    step: _Step | None = None
    task: str = ""
    end: str = ""
    style: str = ""
    progress: dict[str, Progress] = field(default_factory=dict)
    pace: dict[tuple[str, str], Pace] = field(default_factory=dict)
    last_said_s: float = 0.0


class LiveRun:
    """A run as it happens: one line per host on a terminal, lines that stay elsewhere.

    Events and progress may come from different threads.

    Args:
        hosts: their names, in the order to show.
        console: where to; the talk's console unless a test says otherwise.
        now: a clock in seconds.
        raw: show Ansible's own output instead.
        diffs: show how files change.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        *,
        console: Console | None = None,
        now: Callable[[], float] = time.monotonic,
        raw: bool = False,
        diffs: bool = False,
    ) -> None:
        self._console = console or _err
        self._now = now
        self._raw = raw
        self._diffs = diffs
        self._hosts = {name: _Host(name) for name in hosts}
        self._started_s = now()
        self._lock = threading.RLock()
        moving = self._console.is_terminal and not raw
        self._live = Live(get_renderable=self._lines, console=self._console, refresh_per_second=4) if moving else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def note(self, host: str, text: str) -> None:
        """A remark about a host, which stays."""
        self._console.print(Text(f"{host}: {text}", style="dim"))

    def event(self, event: Event) -> None:
        """Something happened."""
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
        """A long step tells how far it is."""
        with self._lock:
            host = self._host(progress.host)
            host.progress[progress.step] = progress
            pace = host.pace.setdefault(_part(progress), Pace())
            pace.add(progress.done, progress.updated)
            current = host.step and host.step.name == progress.step
            if not self._live and current and progress.state == "running":
                self._say_progress(host, progress)

    def _host(self, name: str) -> _Host:
        return self._hosts.setdefault(name, _Host(name))

    def _of_host(self, host: _Host, event: Event) -> None:
        if isinstance(event, StepStarted):
            self._leave(host, "")
            host.step = _Step(event.step, event.number, event.total, self._now())
            host.last_said_s = self._now()
            self._say(host, host.step.label)
        elif isinstance(event, TaskStarted):
            host.task = event.task
        elif isinstance(event, TaskDone) and host.step:
            host.step.tasks += 1
            host.step.changes += event.changed
            for warning in event.result.get("warnings", ()):
                self.note(host.name, warning)
        elif isinstance(event, HostFailed | HostUnreachable):
            what = "failed" if isinstance(event, HostFailed) else "lost"
            at = host.step.label if host.step else host.task
            host.end, host.style = f"{what} at {at}" if at else what, "bold red"
            self._say(host, host.end, host.style)

    def _leave(self, host: _Host, end: str) -> None:
        """The host leaves its step, or the run."""
        if host.step and not host.end:
            took = clock(self._now() - host.step.started_s)
            changes = f"{host.step.changes} change{'' if host.step.changes == 1 else 's'}"
            outcome = (
                f"{took}, {changes if host.step.changes else 'nothing to change'}" if host.step.tasks else "not needed"
            )
            self._say(host, f"{host.step.label}: {outcome}")
        if end and not host.end:
            host.end, host.style = f"{end} in {clock(self._now() - self._started_s)}", "green"
            self._say(host, host.end, host.style)

    def _say(self, host: _Host, text: str, style: str = "") -> None:
        if not self._live and not self._raw:
            self._console.print(Text.assemble((f"{host.name}  ", "bold"), (text, style)), soft_wrap=True)

    def _say_progress(self, host: _Host, progress: Progress) -> None:
        if not host.step:
            return
        pause_s = max(PLAIN_EVERY_S, PLAIN_EVERY_SHARE * (self._now() - host.step.started_s))
        if self._now() - host.last_said_s >= pause_s:
            host.last_said_s = self._now()
            share = f"{progress.done / progress.total:.0%}, " if progress.total else ""
            self._say(host, f"{host.step.label}: {progress.label} {share}{self._amounts(host, progress)}".rstrip())

    def _lines(self) -> Group:
        """What the terminal shows now."""
        with self._lock:
            grid = Table.grid(padding=(0, 1), expand=True)
            for ratio in (None, None, 1):
                grid.add_column(ratio=ratio, no_wrap=True, overflow="ellipsis")
            grid.add_column(width=BAR_WIDTH)
            grid.add_column(justify="right", no_wrap=True)
            grid.add_column(justify="right", no_wrap=True)
            for host in self._hosts.values():
                for row in self._rows(host):
                    grid.add_row(*row)
            return Group(grid)

    def _rows(self, host: _Host) -> Iterable[tuple[Any, ...]]:
        name = Text(host.name, style="bold")
        if host.end or not host.step:
            yield name, "", Text(host.end or host.task or "first contact", style=host.style), "", "", ""
            return
        elapsed = clock(self._now() - host.step.started_s)
        progress = host.progress.get(host.step.name)
        running = progress if progress and progress.state == "running" else None
        label = Text(host.step.label, style="cyan")
        if running:
            yield name, label, running.label, _bar(running), self._amounts(host, running), elapsed
        else:
            yield name, label, host.task, "", "", elapsed
        for other in host.progress.values():
            if other.state == "running" and other.step != host.step.name:
                beside = Text(f"meanwhile {other.step}", style="dim")
                yield "", beside, Text(other.label, style="dim"), _bar(other), self._amounts(host, other), ""

    def _amounts(self, host: _Host, progress: Progress) -> str:
        return _amounts(progress.done, progress.total, progress.unit, host.pace[_part(progress)])


class Meter:
    """One long step of this machine: a line that moves on a terminal, now and then a line elsewhere.

    Args:
        label: what is done.
        unit: what it is counted in, `bytes` or `steps`.
    """

    def __init__(self, label: str, unit: str = "bytes") -> None:
        self._label = label
        self._unit = unit
        self._pace = Pace()
        self._said_s = time.monotonic()
        self._text = Text(label)
        self._live = (
            Live(get_renderable=lambda: self._text, console=_err, refresh_per_second=4, transient=True)
            if _err.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, done: int, total: int) -> None:
        """So many are done, of so many."""
        now_s = time.monotonic()
        self._pace.add(done, now_s)
        self._text = Text(f"{self._label}: {done / total:.0%}, {_amounts(done, total, self._unit, self._pace)}")
        if not self._live and now_s - self._said_s >= PLAIN_EVERY_S:
            self._said_s = now_s
            _err.print(self._text, soft_wrap=True)


def _amounts(done: int, total: int, unit: str, pace: Pace) -> str:
    """How far a step is, how fast, and how long it takes still; what is not known is left out."""
    if unit == "bytes":
        return _bytes(done, total, pace)
    left_s = pace.left_s(total)
    left = f", {clock(left_s)} left" if left_s is not None else ""
    return f"{done} of {total}{left}" if total else str(done or "")


def _bytes(done: int, total: int, pace: Pace) -> str:
    """`51.2 of 130.6 GiB, 38.4 MiB/s, 35:12 left`; what is not known is left out."""
    unit, name = (GIB, "GiB") if max(done, total) >= GIB else (MIB, "MiB")
    of = f" of {total / unit:,.1f}" if total else ""
    rate = f", {pace.per_second / MIB:.1f} MiB/s" if pace.per_second is not None else ""
    left_s = pace.left_s(total)
    left = f", {clock(left_s)} left" if left_s is not None else ""
    return f"{done / unit:,.1f}{of} {name}{rate}{left}"


def _part(progress: Progress) -> tuple[str, str]:
    """What has a pace of its own; what a label says after a colon changes while the work goes on."""
    return progress.step, progress.label.partition(":")[0]


def _bar(progress: Progress) -> ProgressBar:
    return ProgressBar(total=progress.total or None, completed=progress.done, width=BAR_WIDTH, pulse=not progress.total)
