"""Reads a file in order while it arrives, as far as it is there without a gap, and hashes what it reads.

Whatever else wants the bytes of a file in order takes them here: they are still in the kernel's memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transfer.disk import BLOCK_BYTES, DirectReader
from transfer.errors import DisturbedError
from transfer.memory import memory_bytes

if TYPE_CHECKING:
    import queue

    from transfer.partial import Partial


@dataclass(frozen=True)
class Hashed:
    """A file is whole, and this is what it has. The bytes went to the disk before this was said."""

    partial: Partial
    epoch: int  # of the file; it holds only as long as that is the same
    sha256: str

    @property
    def fault(self) -> str:
        """What a source sends that has sent all of it, where that is wrong."""
        wanted = self.partial.file.sha256
        return f"wrong bytes: their sha256 is {self.sha256}, not {wanted}" if self.sha256 != wanted else ""


@dataclass(frozen=True)
class Rotten:
    """So many bytes of a file were not on the disk as they had arrived. They are gone, and have to come again."""

    partial: Partial
    bytes: int


@dataclass(frozen=True)
class Broken:
    """The disk, or this program, has failed at a file."""

    partial: Partial
    error: Exception


class Frontier(threading.Thread):
    """The one reader of a file on its way."""

    def __init__(self, partial: Partial, events: queue.SimpleQueue[object]) -> None:
        super().__init__(name=f"frontier of {partial.file.name}", daemon=True)
        self._partial, self._events = partial, events
        self._is_over = False

    def end(self) -> None:
        """Ends the thread."""
        with self._partial.changed:
            self._is_over = True
            self._partial.changed.notify_all()

    def run(self) -> None:
        """Reads again from the beginning whenever bytes went that it had read."""
        try:
            while not self._is_over:
                epoch = self._partial.epoch
                try:
                    self._read_once(epoch)
                except (DisturbedError, FileNotFoundError):
                    if self._partial.epoch == epoch:
                        raise
        except Exception as error:  # Whatever it is, the thread that decides has to know it
            self._events.put(Broken(self._partial, error))

    def _read_once(self, epoch: int) -> None:
        """Reads the file once, or until that is worth nothing any more."""
        partial, digest, position = self._partial, hashlib.sha256(), 0
        size, direct = partial.file.bytes, partial.adopted // BLOCK_BYTES * BLOCK_BYTES
        if direct:  # What was here before this run is read from the disk itself.
            with contextlib.closing(DirectReader(partial.path)) as reader:
                while position < direct and self._may_read(epoch, position, BLOCK_BYTES):
                    digest.update(block := reader.next())
                    if len(block) < BLOCK_BYTES:
                        raise DisturbedError
                    position += len(block)
            if position < direct:
                return
        buffer = memoryview(bytearray(BLOCK_BYTES))
        if position < size:
            if not self._may_read(epoch, position, 1):
                return
            with partial.path.open("rb", buffering=0) as stream:
                stream.seek(position)
                while position < size and (most := self._may_read(epoch, position, BLOCK_BYTES)):
                    count = stream.readinto(buffer[:most])
                    if not count:
                        raise DisturbedError
                    digest.update(buffer[:count])
                    position += count
        if position == size:
            self._say(epoch, digest.hexdigest())

    def _say(self, epoch: int, sha256: str) -> None:
        """Says what came of it. A file that is right is safely on the disk by then."""
        partial = self._partial
        if (sha256 != partial.file.sha256 or self._is_doubted()) and (lost := partial.drop_changed()):
            self._events.put(Rotten(partial, lost))
            return
        partial.sync()
        partial.place.fsync()  # It may have come whole from a run that was killed.
        self._report(Hashed(partial, epoch, sha256), epoch)

    def _is_doubted(self) -> bool:
        """Whether even a right file is compared once more.

        A stranger's write in the very moment of one of ours is not seen by the file's time. So what is in memory is.
        """
        return 2 * self._partial.file.bytes <= memory_bytes() and self._partial.is_written

    def _report(self, found: object, epoch: int) -> None:
        """Says what came of it, and waits until the bytes go or nobody needs this reader any more."""
        partial = self._partial
        self._events.put(found)
        with partial.changed:
            partial.changed.wait_for(lambda: self._is_over or partial.epoch != epoch)

    def _may_read(self, epoch: int, position: int, most: int) -> int:
        """Waits for bytes, and returns how many may be read. It is none where those that were read have gone."""
        partial = self._partial
        with partial.changed:
            partial.changed.wait_for(lambda: self._is_over or partial.epoch != epoch or partial.spans.prefix > position)
            if self._is_over or partial.epoch != epoch:
                return 0
            count = min(most, partial.spans.prefix - position)
            partial.hashed = position + count
            return count
