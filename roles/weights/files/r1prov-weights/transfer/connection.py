"""One connection: it brings one range of a file from one source."""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transfer.errors import CancelledError, NoRangesError, RefusedError, SourceError, UnreachableError
from transfer.partial import Writer
from transfer.spans import Held
from transfer.wording import wrong_file

if TYPE_CHECKING:
    import queue

    from transfer.limit import Limit
    from transfer.partial import Partial
    from transfer.sources import Answer, Folder, Part, Web

STALL_S = 60
STALL_BYTES = 64 << 10  # less than this in STALL_S: the connection is as good as dead
RATE_S = 1.0  # over so long the rate is measured

log = logging.getLogger("fetch")


@dataclass(frozen=True)
class Ended:
    """A connection has ended. `error` says why, where that was not because its range was there."""

    connection: Connection
    error: Exception | None


class Connection(threading.Thread):
    """A thread that receives and writes. Another one may shorten its range meanwhile.

    Attributes:
        position: the next byte that it brings.
        end: where its range ends.
        received: how many bytes have come.
        may_send_whole: whether it may take a whole file from a server that knows no ranges.
        is_whole: whether it does.
        takes_ranges: whether its source is known to send parts of files.
        etag: which version of the file the source has, where it says so.
        began_s: when it was begun.
    """

    def __init__(
        self,
        source: Folder | Web,
        partial: Partial,
        part: Part,
        events: queue.SimpleQueue[object],
        *,
        limit: Limit,
        may_send_whole: bool,
    ) -> None:
        super().__init__(name=f"{part.file.name} from {source}", daemon=True)
        self.source, self.partial, self.file = source, partial, part.file
        self.position, self.end, self.received, self.gained = part.start, part.end, 0, 0
        self.may_send_whole, self.is_whole, self.is_cancelled, self.etag = may_send_whole, False, False, part.etag
        self.takes_ranges = False
        self._part, self._events, self._limit, self._lock = part, events, limit, threading.Lock()
        self._answer: Answer | None = None
        self._writer = Writer(str(source), part.etag)
        self._written = part.start
        self.began_s = self._last_s = self._since_s = time.monotonic()
        self._since_bytes, self._rate = 0, math.inf

    @property
    def range(self) -> tuple[int, int]:
        """What it still brings, with what it is just writing."""
        return self._written, self.end

    def held(self) -> Held:
        """What it still brings, and how it gets on."""
        now = time.monotonic()
        if (passed := now - self._since_s) >= RATE_S:
            self._rate = (self.received - self._since_bytes) / passed
            self._since_s, self._since_bytes = now, self.received
        return Held(self.position, self.end, self._rate, now - self._last_s)

    def shorten(self, end: int) -> int:
        """Takes the end of the range away, and returns where it ends now. What is being written stays."""
        with self._lock:
            if not self.is_whole:
                self.end = min(self.end, max(end, self.position))
            return self.end

    def cancel(self) -> None:
        """Ends it. It writes nothing any more."""
        self.is_cancelled = True
        self.partial.cancel(self._writer)
        with self._lock:
            self.end = self.position
        if self._answer:
            self._answer.shut()

    def run(self) -> None:
        """Brings the range."""
        error: Exception | None = None
        try:
            self._bring()
        except Exception as caught:  # Whatever it is, the thread that decides has to know it
            error = caught
        try:
            self.partial.end_piece(self._writer)
        except OSError as caught:
            error = caught
        if self.is_cancelled and isinstance(error, SourceError):
            error = CancelledError()
        self._events.put(Ended(self, error))

    def _bring(self) -> None:
        answer = self.source.open(self._part)
        if self.is_cancelled:
            answer.stream.close()
            raise CancelledError
        self._answer, self.etag, self._writer.etag = answer, answer.etag, answer.etag
        with answer.stream:
            if answer.start < self._part.start or answer.end > self._part.end:  # It sends the whole file.
                if not self.may_send_whole:
                    raise NoRangesError
                with self._lock:
                    self.is_whole, self.position, self._written, self.end = True, 0, 0, self.partial.wanted
            self.takes_ranges = answer.takes_ranges
            self._receive(answer)
            if self.is_whole:
                self.partial.credit(self._writer)

    def _receive(self, answer: Answer) -> None:
        block = answer.head
        window_s, window_bytes = time.monotonic(), 0
        while (end := min(self.end, answer.end)) > self.position:
            block = block or answer.read(min(end - self.position, self._limit.block_bytes()))
            if self.source.is_web:
                self._limit.wait(len(block), lambda: self.is_cancelled)
            if self.is_cancelled:
                raise CancelledError
            if not block:
                self._judge_end(answer)
            self._last_s = time.monotonic()
            self._take(answer, block)
            block = b""
            if self._last_s - window_s > STALL_S:
                if self.received - window_bytes < STALL_BYTES:
                    raise UnreachableError("sends next to nothing")
                window_s, window_bytes = self._last_s, self.received

    def _take(self, answer: Answer, block: bytes) -> None:
        """Writes what is new of a block. A server without ranges sends again what is there: that is compared, and not thrown away."""
        with self._lock:
            position = self.position
            block = block[: max(self.end - position, 0)]
            self.position = position + len(block)
        self.received += len(block)
        gaps = [(position, position + len(block))]
        if self.is_whole:
            if self.partial.compare(position, block) < len(block):
                if answer.size is None:
                    raise RefusedError(
                        f"sends other bytes than the {self.partial.spans.bytes} that are here, and not how many:"
                        f" remove {self.partial.path} if those are wrong"
                    )
                self.partial.drop(position, self.file.bytes)
            gaps = self.partial.missing(position, position + len(block))
        for start, end in gaps:
            if start < end:
                self.partial.write(self._writer, start, block[start - position : end - position])
                self.gained += end - start
        self._written = position + len(block)

    def _judge_end(self, answer: Answer) -> None:
        """Raises what it means that an answer ends before the range does."""
        if answer.size is None and (getattr(answer.stream, "chunked", False) or not self.gained):
            if self.gained:
                self.partial.drop(self.position - self.gained, self.position)
            raise RefusedError(wrong_file(self.file.bytes, self.position))
        raise UnreachableError("ended the connection too early")
