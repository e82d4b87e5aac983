"""Judges by what was seen of an engine, look after look, whether it lives. It asks nobody and reads no clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

MISSES = 2
"""So many in a row, and the engine does not live."""
QUIET_S = 25.0
"""An engine that uses no processor has missed once after so long."""
BUSY_S = 45.0
"""One that does has missed once after so long, at least."""
BATCHES = 1.5
"""One that computes has missed once after the time of so many full batches of a prompt. It counts a batch when that is over."""
BEFORE_KNOWN_S = 900.0
"""One that computes has missed once after so long as long as nobody knows how fast it reads prompts."""
BUSY = 0.05
"""Who uses more than this part of one processor computes."""
READING = 1.0
"""Who has more page faults a second than this that wait for the disk reads its model."""
SLOWER = 0.9
"""A prompt that was read slowly is forgotten by this part with each other one, because the next deep one is as slow."""
COARSE = 1e8
"""llama-server shows six digits of a counter. From this number on it may stand for longer than an engine that computes may."""
GAP_S = 45.0
"""Between two looks pass some seconds. Where it was more than this, the watcher was stopped or the host slept, and nothing follows."""


class State(Enum):
    """How an engine answers."""

    DOWN = "down"
    """Nobody listens: it is stopped, or pauses for a measurement."""
    LOADING = "loading"
    UNKNOWN = "cannot be judged"
    SILENT = "silent"
    """It takes the question and does not answer."""
    ANSWERS = "answers"


class Token(Enum):
    """What has become of the token that the engine was asked for."""

    NONE = 0
    ASKED = 1
    CAME = 2
    FAILED = 3
    """The engine answered with an error of its own."""


@dataclass(frozen=True)
class Effort:
    """What the processes of an engine have used since they began: seconds of a processor, and page faults that waited for the disk.

    Attributes:
        seconds: of all processors together.
        faults: how many.
        waits: whether one of their threads waits for the disk or a driver right now. No signal ends it meanwhile.
    """

    seconds: float = 0.0
    faults: int = 0
    waits: bool = False


@dataclass(frozen=True)
class Seen:
    """What one look has seen.

    Attributes:
        at_s: when, by a clock that goes on while the host sleeps and that nobody sets.
        state: how the engine answers.
        why: what to say where it cannot be judged.
        work: counters that grow while it works. The first one grows with each step.
        requests: how many it has in hand, of others.
        prompt_s: how long it took for a token of a prompt, where it has just read one.
        token: what has become of the token.
        effort: what its processes have used.
        is_severed: whether it has lost the connection to another machine that holds a part of the model.
    """

    at_s: float
    state: State
    why: str = ""
    work: tuple[float, ...] = ()
    requests: int = 0
    prompt_s: float | None = None
    token: Token = Token.NONE
    effort: Effort = field(default_factory=Effort)
    is_severed: bool = False


@dataclass(frozen=True)
class Rules:
    """What holds for one kind of engine.

    Attributes:
        counts: whether it tells of its work, so that a request in hand without work is a reason to worry.
        idle_s: how long it has to be idle until it is asked for a token.
        batch: the tokens of a prompt that it computes at once.
        start_s: how long it may be silent where nobody has seen it answer: it may be about to start.
        is_spread: whether other machines compute for it, so that it may compute without the processors of this one.
    """

    counts: bool
    idle_s: float
    batch: int
    start_s: float
    is_spread: bool = False


@dataclass(frozen=True)
class Finding:
    """What follows from a look.

    Attributes:
        state: in words.
        asks: whether the engine shall be asked for a token now.
        misses: how many in a row.
        is_dead: whether it has missed too often.
        is_severed: whether it has lost a machine without which it cannot compute, and would end with the next question.
    """

    state: str
    asks: bool = False
    misses: int = 0
    is_dead: bool = False
    is_severed: bool = False


class Judge:
    """What is known of an engine so far.

    Attributes:
        alive_s: when it was seen alive last; None where it was not.
        by: by what.
        prompt_s: how long it takes for a token of a prompt; None where nobody knows.
    """

    def __init__(self, rules: Rules, prompt_s: float | None = None) -> None:
        self._rules = rules
        self.prompt_s = prompt_s
        self.alive_s: float | None = None
        self.by = ""
        self._before: Seen | None = None
        self._work: tuple[float, ...] | None = None
        self._is_known = False
        self._failed = 0
        self._forget()

    def _forget(self) -> None:
        """Begins to count anew."""
        self._still_s: float | None = None
        self._quiet_s: float | None = None
        self._idle_s: float | None = None

    def look(self, seen: Seen) -> Finding:
        """What follows from this look and those before it."""
        before, self._before = self._before, seen
        if seen.prompt_s:
            self.prompt_s = max(seen.prompt_s, SLOWER * (self.prompt_s or 0.0))
        if before and seen.at_s - before.at_s > GAP_S:
            self._forget()
            before = None
        if seen.state in (State.DOWN, State.LOADING, State.UNKNOWN):
            self._forget()
            self._failed = 0
            self._is_known = self._is_known and seen.state == State.UNKNOWN
            return Finding(seen.why or seen.state.value)
        if seen.is_severed:
            return Finding("has lost a worker", is_severed=True)
        self._is_known = self._is_known or seen.state == State.ANSWERS
        if by := self._life(before, seen):
            self._forget()
            self._failed = 0
            self.alive_s, self.by, self._idle_s = seen.at_s, by, seen.at_s
            return Finding("alive")
        if seen.token == Token.FAILED:
            self._failed += 1
            return Finding("fails to compute", misses=self._failed, is_dead=self._failed >= MISSES)
        return self._waits(before, seen)

    def _life(self, before: Seen | None, seen: Seen) -> str:
        """By what the engine is seen to be alive; empty where it is not."""
        worked = False
        if seen.state == State.ANSWERS:
            worked, self._work = self._work not in (None, seen.work), seen.work
        if seen.token == Token.CAME:  # It is counted as work, too.
            return "a token that it was asked for"
        if worked:
            return "its work"
        if before and seen.state == State.ANSWERS and not self._rules.counts and _computes(before, seen):
            return "its use of the processors"
        return ""

    def _waits(self, before: Seen | None, seen: Seen) -> Finding:
        """What follows where no work was seen."""
        in_hand = self._rules.counts and seen.requests > 0
        if seen.state == State.ANSWERS and not in_hand and seen.token != Token.ASKED:
            self._idle_s = self._idle_s or seen.at_s
            # Somebody waits for an engine that does not tell of its work, and it does nothing.
            idle_s = min(self._rules.idle_s, MISSES * QUIET_S) if seen.requests else self._rules.idle_s
            asks = self._failed > 0 or seen.at_s - self._idle_s >= idle_s
            self._still_s = self._quiet_s = seen.at_s if asks else None
            return Finding("idle", asks=asks)
        if before and _reads(before, seen):
            self._forget()
            return Finding("reads its model")
        if self._still_s is None:
            self._still_s = self._quiet_s = seen.at_s
        if self._quiet_s is None or (before and _computes(before, seen)):
            self._quiet_s = seen.at_s
        still_s, quiet_s = seen.at_s - self._still_s, seen.at_s - self._quiet_s
        if not self._is_known:
            return Finding("silent", is_dead=still_s >= self._rules.start_s)
        quiet = 0 if self._rules.is_spread else int(quiet_s / QUIET_S)
        misses = max(quiet, int(still_s / self._busy_s()))
        return Finding("stands still", misses=misses, is_dead=misses >= MISSES)

    def _busy_s(self) -> float:
        """How long an engine that computes may do so without a sign of work until it has missed once."""
        if not self._rules.counts:
            return BUSY_S
        if self._work and self._work[0] >= COARSE:
            return float("inf")
        if self.prompt_s is None:
            return BEFORE_KNOWN_S
        return max(BUSY_S, BATCHES * self._rules.batch * self.prompt_s)


def _computes(before: Seen, seen: Seen) -> bool:
    used = seen.effort.seconds - before.effort.seconds
    return used > BUSY * (seen.at_s - before.at_s)


def _reads(before: Seen, seen: Seen) -> bool:
    faults = seen.effort.faults - before.effort.faults
    return seen.effort.waits or faults > READING * (seen.at_s - before.at_s)
