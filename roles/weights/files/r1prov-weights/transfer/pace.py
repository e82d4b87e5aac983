"""How many connections help, and to which sources: arithmetic on rates that were measured while connections were added and taken away."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LEVELS = (4, 8, 16, 24)
LEVELS_OF_A_DISK_THAT_TURNS = (4, 8)
FIRST = 8
STAFFED_S = 3.0  # so long it is waited for new connections to bring something
LEFT_S = 20.0  # and so long for others to end
SETTLE_S = 0.3  # their first moments tell nothing
MEASURE_S = 0.6
GAIN = 1.10  # more connections, or another source, have to bring so much more
LOSS = 0.97  # fewer connections have to bring as much as this
EACH = 0.8  # where each of more connections still brings so much of what each brought before, fewer would bring less
AGAIN_S = 60.0  # so long what was found holds
SLOW = 0.2  # a source whose connections bring less than this part of what those of the fastest bring is left
LONG_S = 5.0  # where there is no work for all, another source is tried if the rest takes longer than this
CAP_S = 120.0  # so long a server that did not want so many connections is not asked for more


@dataclass
class Trial:
    """A change that is being measured, and what there was before."""

    counts: list[int]
    rate: float
    least: float  # what it has to bring, as a multiple of that
    kind: str  # up, down or join
    source: int


@dataclass
class Pace:
    """How many connections each source has.

    It begins with a few, then goes to the most, and keeps what helps. Then it tries the other sources, and then whether fewer do as well.

    Attributes:
        most: the most connections that each source may ever have.
        joins: the sources that may be used beside others. A folder of the host is used alone.
        levels: the numbers of connections, in rising order, that are tried.
    """

    most: Sequence[int]
    joins: Sequence[bool]
    levels: Sequence[int] = LEVELS
    counts: list[int] = field(default_factory=list)
    _trial: Trial | None = None
    _todo: list[tuple[str, int]] = field(default_factory=list)
    _lead: int = -1
    _changed_s: float = 0
    _from: tuple[float, list[int]] | None = None
    _again_s: float = 0
    _caps: dict[int, tuple[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * len(self.most)

    def lead(self, source: int, now: float) -> None:
        """Says that a source brings a file. Where it has no connections yet, trying begins with it."""
        if self.counts[source]:
            return
        first, room = FIRST if FIRST in self.levels else self.levels[0], self.levels[-1] - sum(self.counts)
        self.counts[source] = self._bounded(source, max(min(first, room), self.levels[0]), now)
        self._lead, self._trial, self._from, self._changed_s = source, None, None, now
        self._todo, self._again_s = self._plan(source), now + AGAIN_S

    def leave(self, source: int, now: float) -> None:
        """Says that a source brings nothing any more."""
        if self.counts[source]:
            self.counts[source], self._trial, self._from, self._changed_s = 0, None, None, now

    def cap(self, source: int, connections: int, now: float) -> None:
        """Says that a server did not want more than so many connections."""
        self._caps[source] = (max(connections, 1), now + CAP_S)
        self.counts[source] = min(self.counts[source], max(connections, 1))
        self._trial, self._from = None, None

    def observe(
        self, now: float, received: Sequence[int], running: Sequence[int], *, is_busy: bool, left_bytes: float
    ) -> None:
        """Takes note of how it goes, and decides.

        Args:
            now: the time in seconds.
            received: how many bytes each source has brought since the beginning.
            running: how many connections to each bring something.
            is_busy: whether there was work for all connections. Else other numbers of them tell nothing.
            left_bytes: how many bytes are still to come.
        """
        if self._lead < 0:
            return
        if self._from is None:
            passed, rows = now - self._changed_s, list(zip(running, self.counts, strict=True))
            has_come = all(has >= wanted for has, wanted in rows) or passed >= STAFFED_S
            goes = self._trial and self._trial.kind == "down"  # Else those that still bring their ranges do no harm.
            has_gone = not goes or all(has <= wanted for has, wanted in rows) or passed >= LEFT_S
            if (has_come and has_gone and passed >= SETTLE_S) or (not is_busy and passed >= STAFFED_S):
                self._from = (now, list(received))
            return
        since, before = self._from
        if now - since < MEASURE_S:
            return
        rates = [(bytes_now - then) / (now - since) for bytes_now, then in zip(received, before, strict=True)]
        self._from = (now, list(received))
        if is_busy or left_bytes > LONG_S * sum(rates):
            self._judge(now, rates, running, is_busy=is_busy)

    def _judge(self, now: float, rates: list[float], running: Sequence[int], *, is_busy: bool) -> None:
        total, trial = sum(rates), self._trial
        self._trial = None
        if trial and total < trial.rate * trial.least:
            self.counts, total = trial.counts, trial.rate
        elif trial and trial.kind == "up":
            if total / sum(self.counts) >= EACH * trial.rate / max(sum(trial.counts), 1):
                self._todo = [row for row in self._todo if row[0] != "down"]
        elif trial and trial.kind == "down":
            # Perhaps still fewer do, and perhaps others have a use for what they leave.
            beside = [("up", other) for other, has in enumerate(self.counts) if has and other != self._lead]
            self._todo = [("down", self._lead), *beside]
        elif trial:
            self._todo.insert(0, ("up", trial.source))
            self._leave_slow(rates, running)
        if not self._todo and now >= self._again_s:
            self._todo, self._again_s = self._plan(self._lead), now + AGAIN_S
        for row in list(self._todo):
            if not self._trial and (is_busy or row[0] == "join"):
                self._todo.remove(row)
                self._try(*row, total, now)

    def _plan(self, source: int) -> list[tuple[str, int]]:
        others = [other for other in range(len(self.most)) if other != source and self.joins[other]]
        return [("up", source), *(("join", other) for other in others if self.joins[source]), ("down", source)]

    def _try(self, kind: str, source: int, total: float, now: float) -> None:
        has, room = self.counts[source], self.levels[-1] - sum(self.counts)
        if kind == "up":
            wanted = self._bounded(source, has + room, now)
        elif kind == "down":
            wanted = max((level for level in self.levels if level < has), default=has)
        else:
            wanted = has or self._bounded(source, max(self.levels[0], room // 2), now)
        if wanted == has:
            return
        before, self.counts = self.counts, list(self.counts)
        self.counts[source] = wanted
        if kind == "join":  # The others make room.
            while sum(self.counts) > self.levels[-1]:
                fullest = max(range(len(self.counts)), key=lambda index: self.counts[index])
                self.counts[fullest] -= 1
        self._trial = Trial(before, total, LOSS if kind == "down" else GAIN, kind, source)
        self._changed_s, self._from = now, None

    def _leave_slow(self, rates: list[float], running: Sequence[int]) -> None:
        """Takes the connections from sources beside which others are far faster, and gives them to the fastest."""
        each = [
            rate / max(count, 1) if wanted else 0
            for rate, count, wanted in zip(rates, running, self.counts, strict=True)
        ]
        fastest = max(range(len(each)), key=lambda index: each[index])
        freed = 0
        for source, rate in enumerate(each):
            if self.counts[source] and rate < SLOW * each[fastest]:
                freed, self.counts[source] = freed + self.counts[source], 0
        if freed:
            self._lead = fastest
            self._todo = [("up", fastest), *(row for row in self._todo if row[0] == "join")]

    def _bounded(self, source: int, wanted: int, now: float) -> int:
        cap, until = self._caps.get(source, (wanted, 0))
        return min(wanted, self.most[source], *([cap] if now < until else []))
