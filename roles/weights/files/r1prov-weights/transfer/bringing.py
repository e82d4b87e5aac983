"""One file that is being brought: what is there of it, who reads it, and how its sources have answered."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from typing import TYPE_CHECKING

from transfer.frontier import Frontier
from transfer.partial import BEFORE
from transfer.turns import PAUSE_AFTER_GAIN_S, Supplier, Turn

if TYPE_CHECKING:
    import queue
    from collections.abc import Callable, Sequence

    from transfer.connection import Connection
    from transfer.errors import WrongError
    from transfer.partial import Partial

LINKED = "another folder of this disk"

Origins = dict[tuple[str, str], int]  # bytes by source, and version of its file


class Bringing:
    """One file that is being brought.

    Attributes:
        turns: its sources, as the operator prefers them.
        order: the same, those that failed last.
        connections: those that bring it, with their sources.
        is_suspicious: whether its bytes were wrong, so that one source has to bring all of it.
        relied_on: the source that has to.
        conflicts: how often another program has written to it.
    """

    def __init__(
        self,
        partial: Partial,
        suppliers: Sequence[Supplier],
        events: queue.SimpleQueue[object],
        reader: Callable[[Partial, queue.SimpleQueue[object]], Frontier] = Frontier,
    ) -> None:
        """Begins to bring a file.

        Args:
            partial: what is there of it.
            suppliers: its sources, in the order of preference.
            events: where its reader says what came of it.
            reader: makes the reader.
        """
        self.file, self.partial, self._events, self._reader = partial.file, partial, events, reader
        self.turns = [Turn(supplier) for supplier in suppliers]
        self.order = sorted(self.turns, key=lambda turn: turn.supplier.has_lied)
        self.connections: dict[Connection, Turn] = {}
        self.is_suspicious, self.conflicts = False, 0
        self.relied_on: Turn | None = None
        self._frontier = reader(partial, events)
        self._frontier.start()

    @property
    def is_whole(self) -> bool:
        """Whether all its bytes that are wanted are there."""
        return self.partial.spans.bytes >= self.partial.wanted

    @property
    def is_flowing(self) -> bool:
        """Whether a source brings it."""
        return (
            self.is_whole
            or any(turn.is_proven for turn in self.turns)
            or any(each.received for each in self.connections)
        )

    def usable(self, now: float) -> list[Turn]:
        """The sources that may bring a part of it beside others."""
        turns = [turn for turn in self.order if turn.ready_at <= now and not turn.sends_whole]
        return [turn for turn in turns if turn is self.relied_on] if self.is_suspicious else turns

    def next_turn(self, now: float) -> Turn:
        """The first source that may be asked soon. One that was getting on is waited for."""
        if self.is_suspicious and self.relied_on and not self.relied_on.failures:
            return self.relied_on
        return min(self.order, key=lambda turn: max(turn.ready_at, now + PAUSE_AFTER_GAIN_S))

    def put_last(self, turn: Turn) -> None:
        """Lets other sources go first."""
        self.order.append(self.order.pop(self.order.index(turn)))

    def rely_on(self, turn: Turn) -> None:
        """Lets one source bring all of it. What came from others goes."""
        if self.relied_on is not turn:
            self.relied_on = turn
            self.partial.keep_of(lambda origin, _: origin == str(turn.source))

    def turn_of(self, origins: Origins) -> Turn | None:
        """The one source, with one version of its file, of which all bytes are. None where there are several."""
        (origin, _), *others = origins
        return None if others else next((turn for turn in self.turns if str(turn.source) == origin), None)

    def trust_most(self, origins: Origins) -> None:
        """Keeps what came from the source that has brought most, and lets it bring the rest. Where it is none of today's, all goes."""
        turns = {str(turn.source): turn for turn in self.turns if not turn.is_wrong}
        known = {key: count for key, count in origins.items() if key[0] in turns}
        if not known:
            self.is_suspicious, self.relied_on = True, None
            self.partial.begin_anew()
            return
        origin, etag = max(known, key=lambda key: known[key])
        self.is_suspicious, self.relied_on = True, turns[origin]
        self.partial.keep_of(lambda *key: key == (origin, etag))

    def distrust(self, turn: Turn, error: WrongError) -> None:
        """Writes down that a source has sent the whole file with wrong bytes, which go."""
        self.partial.begin_anew()
        self.is_suspicious, self.relied_on = True, None
        turn.fail(error, gained=False, asked_s=time.monotonic())
        self.put_last(turn)

    def origins(self) -> dict[str, int]:
        """How many of its bytes came from which source, in words."""
        found: Counter[str] = Counter()
        for (origin, _), count in self.partial.bytes_by_origin().items():
            found[LINKED if origin == BEFORE and self.partial.place.is_linked() else origin] += count
        return dict(found)

    def stop(self) -> None:
        """Ends all that is done for it. What has arrived is kept."""
        for connection in self.connections:
            connection.cancel()
        self.connections.clear()
        self._frontier.end()
        with contextlib.suppress(OSError):  # This is said where it happens first.
            self.partial.close()

    def begin_again(self) -> None:
        """Takes over what is there after another program has written to it. Nothing is believed that was not compared."""
        self.connections.clear()
        self.partial.adopt(trust=False)
        self._frontier = self._reader(self.partial, self._events)
        self._frontier.start()
