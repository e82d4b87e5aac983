"""Brings files: decides which connection brings what, and what follows from how it ends. Only one thread decides."""

from __future__ import annotations

import logging
import math
import queue
import random
import threading
import time
from typing import TYPE_CHECKING, Protocol

from ansible_collections.r1.prov.plugins.module_utils.disk_look import turns
from ansible_collections.r1.prov.plugins.module_utils.files import looks
from transfer.bringing import Bringing
from transfer.connection import Connection, Ended
from transfer.errors import (
    CancelledError,
    ChangedError,
    DisturbedError,
    HopelessError,
    NoRangesError,
    SourceError,
    WrongError,
)
from transfer.frontier import Broken, Hashed, Rotten
from transfer.heads import Headed
from transfer.memory import memory_bytes
from transfer.pace import LEVELS, LEVELS_OF_A_DISK_THAT_TURNS, Pace
from transfer.sources import Part
from transfer.spans import next_range, split
from transfer.wording import clock, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from transfer.frontier import Frontier
    from transfer.limit import Limit
    from transfer.partial import Partial
    from transfer.sources import File
    from transfer.telling import Progress
    from transfer.turns import Supplier, Turn

TICK_S = 0.1
NOTE_EVERY_S, SYNC_EVERY_S = 0.25, 1.0
STILL_THERE_S = 30  # progress.json is written so often while nothing happens, because an old one counts as left behind
FIRST_RANGE_BYTES = 2 << 20
RANGE_S = 6.0  # A range takes so long, so that asking for the next one costs little.
LEAST_RANGE_BYTES, MOST_RANGE_BYTES = 1 << 20, 64 << 20
MOST_OPEN_FILES = 4
MOST_CONFLICTS = 10  # over one file, with a program that the lock does not reach
DELIVERS_S = 5.0  # a connection that has brought something in so long a time is doing well

log = logging.getLogger("fetch")


def look_ahead_bytes() -> int:
    """How far connections may be ahead of what reads a file in order: so far that this finds it in the kernel's memory."""
    return min(max(memory_bytes() // 8, 256 << 20), 2 << 30)


class Way(Protocol):
    """How files are kept on the disk, what reads them there, and what becomes of those that are right."""

    most_files: int  # so many may be open at once; 0 where the disk decides
    is_shared: bool  # whether they belong together on the disk, so that who disturbs one of them disturbs all

    @property
    def remark(self) -> str:
        """What has to be said of it beside what comes; empty for nothing."""

    def partial(self, file: File) -> Partial:
        """What is there of a file."""

    def reader(self, partial: Partial, events: queue.SimpleQueue[object]) -> Frontier:
        """What reads it."""

    def is_there(self, file: File) -> bool:
        """Whether somebody else has brought it meanwhile."""

    def accept(self, bringing: Bringing, found: Hashed | Headed) -> None:
        """Takes a file that is whole and right.

        Raises:
            DisturbedError: another program has changed it meanwhile.
        """


class Delivery:
    """Brings files, each from the sources that give it.

    Bears with a bad network for as long as it takes. Where all sources refuse a file, or send a wrong one, they are asked again for
    `patience_s`, because even that may pass: a hub that is restarted, a proxy with a page of its own, a flipped bit.

    A source is asked for a file by one connection alone, until that brings bytes. Only then come others, and only then the next file.
    """

    def __init__(
        self,
        files: Sequence[File],
        suppliers: Sequence[Supplier],
        incoming: Path,
        way: Way,
        *,
        patience_s: float,
        limit: Limit,
        progress: Progress,
    ) -> None:
        self._suppliers, self._incoming, self._way = list(suppliers), incoming, way
        self._patience_s, self._limit, self._progress = patience_s, limit, progress
        self._events: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._open: list[Bringing] = []
        self._left = list(files)  # those that are not open yet
        self._received = [0] * len(self._suppliers)  # by connections that have ended
        self._is_short = False  # there is nothing to do for a connection that could be had
        self._look_ahead = look_ahead_bytes()
        self._is_over = threading.Event()
        levels = LEVELS_OF_A_DISK_THAT_TURNS if turns(incoming) else LEVELS
        self._most_files = way.most_files or (1 if levels is LEVELS_OF_A_DISK_THAT_TURNS else MOST_OPEN_FILES)
        self._pace = Pace(
            [supplier.most for supplier in suppliers], [supplier.source.is_web for supplier in suppliers], levels
        )

    def run(self) -> None:
        """Returns when all files have their names.

        Raises:
            HopelessError: that cannot be.
            OSError: the disk refuses.
        """
        keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        keeper.start()
        try:
            while self._open or self._left:
                self._begin()
                self._show()
                self._take_events()
        finally:
            self._is_over.set()
            for bringing in self._open:
                bringing.stop()

    def _keep(self) -> None:
        """Brings what has arrived to the disk, again and again, so that a power cut costs little and the end has little to wait for.

        More often it only writes down what has arrived, so that a kill costs less.
        """
        synced_s = time.monotonic()
        while not self._is_over.wait(NOTE_EVERY_S):
            is_due = time.monotonic() - synced_s >= SYNC_EVERY_S
            for bringing in list(self._open):
                try:
                    bringing.partial.note()
                    if is_due:
                        bringing.partial.sync()
                except OSError as error:
                    self._events.put(Broken(bringing.partial, error))
                    return
            if is_due:
                synced_s = time.monotonic()

    def _take_events(self) -> None:
        """Waits for something to happen, and deals with all that has."""
        try:
            event = self._events.get(timeout=TICK_S)
            while True:
                self._take(event)
                event = self._events.get_nowait()
        except queue.Empty:
            pass

    def _take(self, event: object) -> None:
        if isinstance(event, Ended):
            self._ended(event.connection, event.error)
            return
        assert isinstance(event, (Hashed, Headed, Rotten, Broken))  # noqa: S101 - for the types
        bringing = next((each for each in self._open if each.partial is event.partial), None)
        if not bringing:
            return
        if isinstance(event, (Hashed, Headed)):
            if event.epoch == bringing.partial.epoch:
                self._judge(bringing, event)
        elif isinstance(event, Rotten):
            log.warning("%s: %d bytes have changed on the disk, and are fetched again", bringing.file.name, event.bytes)
            bringing.conflicts += 1
            if bringing.conflicts > MOST_CONFLICTS:
                raise HopelessError(f"the disk of {self._incoming} does not keep what is written to it: replace it")
        elif isinstance(event.error, (DisturbedError, FileNotFoundError)):
            self._disturbed(bringing)
        else:
            raise event.error

    # What is begun

    def _begin(self) -> None:
        """Begins connections for all that can be had now."""
        now, self._is_short = time.monotonic(), False
        for bringing in self._open:
            self._note_answers(bringing, now)
        for bringing in list(self._open):
            self._staff(bringing, now)
        while self._may_open():
            self._is_short = False
            file = self._left.pop(0)
            self._open.append(Bringing(self._way.partial(file), self._suppliers, self._events, self._way.reader))
            self._staff(self._open[-1], now)
        self._split(now)
        received = list(self._received)
        for connection in self._connections():
            received[self._number(connection)] += connection.received
        running = [sum(each.received > 0 for each in self._connections(number)) for number in range(len(received))]
        left_bytes = sum(each.partial.wanted - each.partial.spans.bytes for each in self._open)
        self._pace.observe(now, received, running, is_busy=not self._is_short, left_bytes=left_bytes)

    def _may_open(self) -> bool:
        """Whether another file may be begun: all that are open have a source, and there are connections to spare."""
        if not self._left or sum(not each.is_whole for each in self._open) >= self._most_files:
            return False
        is_idle = not self._open or self._is_short or all(each.is_whole for each in self._open)
        return is_idle and all(each.is_flowing for each in self._open)

    def _connections(self, number: int | None = None) -> list[Connection]:
        """All connections, or those to one source."""
        found = [connection for bringing in self._open for connection in bringing.connections]
        return found if number is None else [each for each in found if self._number(each) == number]

    def _number(self, connection: Connection) -> int:
        return next(each.number for each in self._suppliers if each.source is connection.source)

    def _note_answers(self, bringing: Bringing, now: float) -> None:
        for connection, turn in bringing.connections.items():
            if connection.received:
                self._answered(connection, turn, now)

    def _answered(self, connection: Connection, turn: Turn, now: float) -> None:
        """Writes down that a source brings bytes."""
        if not turn.is_proven:
            self._pace.lead(turn.supplier.number, now)
        turn.answered(connection.etag, takes_ranges=connection.takes_ranges)

    def _staff(self, bringing: Bringing, now: float) -> None:
        """Begins connections for a file."""
        while not bringing.is_whole:
            turn = self._choose(bringing, now)
            if not turn:
                return
            wanted = self._next_range(bringing, turn)
            if not wanted:
                self._is_short = True
                return
            self._connect(bringing, turn, *wanted)

    def _choose(self, bringing: Bringing, now: float) -> Turn | None:
        """The source to which the next connection for a file goes."""
        if any(turn.is_proven for turn in bringing.turns):
            rows = []
            for turn in bringing.usable(now):
                number = turn.supplier.number
                has, most = len(self._connections(number)), self._pace.counts[number]
                is_asked = any(each is turn for each in bringing.connections.values())
                if has < most and (turn.is_proven or not is_asked):
                    rows.append((has / most, bringing.order.index(turn), turn))
            if rows:
                return min(rows, key=lambda row: row[:2])[2]
        if bringing.connections:
            return None
        if not any(turn.refused_for < self._patience_s for turn in bringing.turns):
            said = [turn.says for turn in bringing.turns]
            raise HopelessError("; ".join([f"no source brings {bringing.file.name}", *said]))
        turn = bringing.next_turn(now)
        has, most = len(self._connections(turn.supplier.number)), self._pace.counts[turn.supplier.number]
        return None if turn.ready_at > now or 0 < most <= has else turn

    def _next_range(self, bringing: Bringing, turn: Turn) -> tuple[int, int] | None:
        partial = bringing.partial
        with partial.changed:
            held = [connection.range for connection in bringing.connections]
            # While what an earlier run has left is read from the disk, nobody waits for that.
            is_behind = partial.hashed < partial.adopted
            before = partial.wanted if is_behind else partial.hashed + self._look_ahead
            return next_range(partial.spans, held, partial.wanted, before, self._range_bytes(turn))

    def _range_bytes(self, turn: Turn) -> int:
        """How many bytes a connection to a source is asked to bring."""
        if not turn.source.is_web:
            return 1 << 60
        if not turn.is_proven:
            return FIRST_RANGE_BYTES
        rate = self._rate_of(turn)
        return min(max(round(rate * RANGE_S), LEAST_RANGE_BYTES), MOST_RANGE_BYTES) if rate else FIRST_RANGE_BYTES

    def _rate_of(self, turn: Turn) -> float:
        """What a connection to a source brings, in bytes per second. It is 0 where that is not known."""
        rates = [each.held().rate for each in self._connections(turn.supplier.number)]
        known = [rate for rate in rates if math.isfinite(rate)]
        return sum(known) / len(known) if known else 0.0

    def _connect(self, bringing: Bringing, turn: Turn, start: int, end: int) -> None:
        is_alone = not bringing.connections
        if is_alone and bringing.is_suspicious:
            bringing.rely_on(turn)
        # A source that has sent parts is not taken at its first word when it sends the whole file again.
        may_send_whole = is_alone and (turn.sends_whole or not turn.is_proven)
        part = Part(bringing.file, start, end, turn.etag)
        if not turn.is_announced:
            turn.is_announced = True
            there = bringing.partial.spans.bytes
            log.info(
                "fetching %s from %s, %d of %d bytes are here", part.file.name, turn.source, there, part.file.bytes
            )
        connection = Connection(
            turn.source, bringing.partial, part, self._events, limit=self._limit, may_send_whole=may_send_whole
        )
        bringing.connections[connection] = turn
        connection.start()

    def _split(self, now: float) -> None:
        """Lets a connection that has nothing to do take over a part of what the slowest one still has to bring."""
        if not self._is_short:
            return
        rows = [
            (bringing, connection)
            for bringing in self._open
            for connection, turn in bringing.connections.items()
            if turn.is_proven and not connection.is_whole
        ]
        for _ in range(len(rows)):
            held = [connection.held() for _, connection in rows]
            found = split(held, max((each.rate for each in held if math.isfinite(each.rate)), default=0))
            if not found:
                return
            number, middle = found
            bringing, victim = rows[number]
            turn = self._choose(bringing, now)
            if not turn:
                return
            end, is_stalled = victim.end, middle <= held[number].position
            start = victim.shorten(middle)
            if is_stalled:
                log.warning("%s: %s has stopped sending, another connection goes on", bringing.file.name, victim.source)
                victim.cancel()
            if start < end:
                self._connect(bringing, turn, start, end)

    # What has ended

    def _ended(self, connection: Connection, error: Exception | None) -> None:
        self._received[self._number(connection)] += connection.received
        bringing = next((each for each in self._open if connection in each.connections), None)
        if not bringing:
            return
        turn, now = bringing.connections.pop(connection), time.monotonic()
        if connection.received and not isinstance(error, ChangedError):
            self._answered(connection, turn, now)
        if isinstance(error, NoRangesError):
            turn.sends_whole = True
        elif not error and connection.takes_ranges and not connection.is_whole:
            turn.sends_whole = False
        elif isinstance(error, SourceError):
            self._failed(bringing, turn, connection, error)
        elif isinstance(error, DisturbedError):
            self._disturbed(bringing)
        elif error and not isinstance(error, CancelledError):
            raise error

    def _failed(self, bringing: Bringing, turn: Turn, connection: Connection, error: SourceError) -> None:
        """Deals with a source that does not bring what it was asked for."""
        now, number, gained = time.monotonic(), turn.supplier.number, connection.gained > 0
        others = self._connections(number)
        delivering = [each for each in others if each.received and each.held().silent_s < DELIVERS_S]
        log.warning("%s: %s %s", bringing.file.name, turn.source, error)
        if isinstance(error, ChangedError):
            turn.changed(error.etag)
        if delivering and turn.is_proven and not gained and not isinstance(error, ChangedError):
            # It goes on bringing what others have asked for, so it may just not want so many to ask.
            self._pace.cap(number, len(others), now)
            turn.supplier.quiet_until = max(turn.supplier.quiet_until, now + error.wait_s)
            return
        is_first = connection.began_s >= turn.failed_s
        turn.fail(error, gained=gained, asked_s=connection.began_s)
        if not gained and is_first:
            bringing.put_last(turn)
        if not gained and not others:
            self._pace.leave(number, now)

    def _judge(self, bringing: Bringing, found: Hashed | Headed) -> None:
        """Takes a file that is right. Else finds out whose fault that is."""
        file = bringing.file
        if not found.fault:
            try:
                self._way.accept(bringing, found)
            except DisturbedError:
                self._disturbed(bringing)
            else:
                self._finish(bringing)
            return
        origins = bringing.partial.bytes_by_origin()
        turn = bringing.turn_of(origins)
        if turn:
            error = WrongError(f"sends {found.fault}")
            bringing.distrust(turn, error)
            log.warning("%s: %s", file.name, turn.says)
        else:
            names = listed(sorted({origin for origin, _ in origins}))
            log.warning("%s: what came from %s does not fit together", file.name, names)
            bringing.trust_most(origins)

    def _finish(self, bringing: Bringing) -> None:
        bringing.stop()
        self._open.remove(bringing)

    def _disturbed(self, bringing: Bringing) -> None:
        """Waits until nobody else writes to a file any more, and takes over what there is then.

        Raises:
            DisturbedError: the way begins anew by itself.
        """
        bringing.stop()
        if self._way.is_shared:
            raise DisturbedError
        bringing.conflicts += 1
        path = bringing.partial.path
        log.warning("%s: another program, which the lock does not reach, writes to %s", bringing.file.name, path)
        if bringing.conflicts > MOST_CONFLICTS:
            raise HopelessError(
                f"another program keeps writing to {path}, and locks do not keep it off: let one host, and one run, fetch into that folder"
            )
        wait_until_quiet([path], bringing.conflicts, lambda said: self._progress.show(said, self._partial_bytes()))
        if self._way.is_there(bringing.file):
            self._open.remove(bringing)
        else:
            bringing.begin_again()

    # What is told

    def _partial_bytes(self) -> int:
        return sum(bringing.partial.spans.bytes for bringing in self._open)

    def _show(self) -> None:
        if self._open:
            self._progress.show(
                self._label() + self._way.remark,
                self._partial_bytes(),
                sources=self._bringing_sources(),
                verifying=self._verifying(),
            )

    def _bringing_sources(self) -> list[str]:
        """The sources from which something comes, as the operator prefers them."""
        brings = {self._number(each) for each in self._connections() if each.received}
        return [str(each.source) for each in self._suppliers if each.number in brings]

    def _verifying(self) -> str:
        """Which files are being verified, and how far."""
        parts = [
            f"{each.file.name} {each.partial.hashed * 100 // each.file.bytes} %"
            for each in self._open
            if each.file.bytes
        ]
        return ", ".join(parts)

    def _label(self) -> str:
        """What goes on, in a sentence."""
        for bringing in self._open:
            brings = {
                turn.supplier.number: turn
                for each, turn in bringing.connections.items()
                if each.received or not turn.says
            }
            if brings:
                names = listed([str(brings[number].source) for number in sorted(brings)])
                return f"fetching {bringing.file.name} from {names}"
        for bringing in self._open:
            if not bringing.is_whole:
                return self._waiting(bringing)
        bringing = self._open[0]
        return f"checking {bringing.file.name}: {bringing.partial.hashed * 100 // bringing.file.bytes} % are read"

    def _waiting(self, bringing: Bringing) -> str:
        """Why nothing comes, and until when."""
        now, turn = time.monotonic(), min(bringing.order, key=lambda turn: turn.ready_at)
        why = "; ".join(turn.says for turn in bringing.turns if turn.says)
        if all(turn.refused_since is not None for turn in bringing.turns):
            ends_at = max(turn.refused_since or 0 for turn in bringing.turns) + self._patience_s
            why += f"; {bringing.file.name} is given up if that is so until {clock(ends_at)}"
        if turn.supplier.quiet_until > max(turn.again_at, now):
            why += f"; {turn.source} has asked for a pause until {clock(turn.supplier.quiet_until)}"
        return f"waiting to try again: {why}"


def wait_until_quiet(paths: Sequence[Path], conflicts: int, show: Callable[[str], None]) -> None:
    """Waits until nobody writes to files any more.

    Args:
        paths: the files.
        conflicts: how often that has happened. The pauses grow with it.
        show: is told again and again what is waited for.
    """
    before: list[dict[str, int] | None] = []
    now = [*map(looks, paths)]
    while before != now:
        # The pauses are random, so that two programs that wait for each other do not go on at the same moment.
        until = time.monotonic() + random.uniform(1, 4 * conflicts)  # noqa: S311
        while (left_s := until - time.monotonic()) > 0:
            show(f"waiting: another program writes to {paths[0]}")
            time.sleep(min(left_s, STILL_THERE_S))
        before, now = now, [*map(looks, paths)]
