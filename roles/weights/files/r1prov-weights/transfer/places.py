"""Where the bytes of a file on its way lie on the disk: in a file of its own, or in the one file that is made of several."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from ansible_collections.r1.prov.plugins.module_utils.files import has_name, looks_of, write_at
from transfer.disk import reserve, set_aside
from transfer.errors import DisturbedError

if TYPE_CHECKING:
    from pathlib import Path

    from ansible_collections.r1.prov.plugins.module_utils.gguf_layout import Layout

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW


class OwnFile:
    """A file of its own, in which each byte lies where it does in the published file.

    Attributes:
        path: its name.
        looks: how this program left it; None where there is none.
    """

    is_own = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.looks: dict[str, int] | None = None
        self._file = -1

    @property
    def is_open(self) -> bool:
        """Whether this program writes to it."""
        return self._file >= 0

    def look(self) -> int | None:
        """Takes note of how it looks. Returns its size; None where there is none."""
        try:
            status = self.path.lstat()
        except FileNotFoundError:
            self.looks = None
            return None
        self.looks = looks_of(status)
        return status.st_size

    def is_linked(self) -> bool:
        """Whether it is somebody else's file, too, so that nothing may be written to it. One that is gone is noticed elsewhere."""
        try:
            return self.path.lstat().st_nlink > 1
        except FileNotFoundError:
            return False

    def open(self) -> None:
        """Opens it for writing. It is made where there is none."""
        self._file = os.open(self.path, _FLAGS, 0o644)
        status = os.fstat(self._file)
        if not self.looks and not status.st_size:
            self.looks = looks_of(status)

    def check(self) -> None:
        """Sees that it is what has this name, and as this program left it.

        Raises:
            DisturbedError: it is not.
        """
        status = os.fstat(self._file)
        if looks_of(status) != self.looks or not has_name(status, self.path):
            raise DisturbedError

    def write(self, position: int, block: bytes | memoryview) -> None:
        """Writes bytes to where they belong, and takes note of how it looks then.

        Raises:
            DisturbedError: it is not as this program left it.
        """
        self.check()
        write_at(self._file, block, position)
        self.looks = looks_of(os.fstat(self._file))

    def read(self, position: int, most: int) -> bytes:
        """Some of the bytes from there on. There is none behind the end."""
        with self.path.open("rb", buffering=0) as stream:
            stream.seek(position)
            return stream.read(most)

    def descriptors(self) -> list[int]:
        """Copies of the descriptors of all that it lies in, so that it can be brought to the disk while others go on."""
        return [os.dup(self._file)]

    def fsync(self) -> None:
        """Brings it to the disk, whoever has written to it."""
        with self.path.open("rb") as stream:
            os.fsync(stream.fileno())

    def close(self) -> None:
        """Writes no more to it."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def remove(self) -> None:
        """Removes it."""
        self.close()
        self.looks = None
        self.path.unlink(missing_ok=True)


class Final(OwnFile):
    """The one file that is made of several. Whoever brings one of them writes to it, and it looks as the last of them has left it."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path)
        self.bytes = size
        self._writing = threading.Lock()

    def write(self, position: int, block: bytes | memoryview) -> None:
        """Does what OwnFile.write() does, one thread at a time."""
        with self._writing:
            super().write(position, block)

    def read(self, position: int, most: int) -> bytes:
        """Some of the bytes from there on, of the file that this program writes to."""
        return os.pread(self._file, most, position)

    def extend(self) -> None:
        """Gives it its size, and has the disk keep room for all of it where its file system can.

        Raises:
            OSError: there is not so much room.
        """
        is_new = os.fstat(self._file).st_size != self.bytes
        try:
            if not reserve(self._file, 0, self.bytes):
                os.ftruncate(self._file, self.bytes)
        except OSError:
            if is_new:  # What an earlier run has brought stays.
                self.remove()
            raise
        self.looks = looks_of(os.fstat(self._file))

    def set_aside(self) -> tuple[Path, os.stat_result]:
        """Gives it a name that no other program writes to. Returns that name, and how it looks.

        Raises:
            DisturbedError: it is not as this program left it.
        """
        aside = set_aside(self.path)
        status = aside.lstat()
        if looks_of(status) != self.looks:
            raise DisturbedError
        return aside, status


class Spread:
    """A published file whose bytes lie in two files: in the final one at their final places, and all others in one beside it.

    The one beside it has them where the published file has them, so it has gaps.
    """

    is_own = False

    def __init__(self, aside: Path, final: Final, layout: Layout, number: int) -> None:
        self.path, self.final, self.layout, self.number = aside, final, layout, number
        self.aside = OwnFile(aside)

    @property
    def looks(self) -> dict[str, int] | None:
        """How the file beside the final one was left."""
        return self.aside.looks

    @property
    def is_open(self) -> bool:
        """Whether this program writes to it."""
        return self.aside.is_open

    def look(self) -> int | None:
        """Takes note of how it looks. Returns up to where bytes of it can be there; None where none can."""
        return None if self.aside.look() is None else self._bytes

    @property
    def _bytes(self) -> int:
        return self.layout.runs[self.number][-1].end

    def is_linked(self) -> bool:
        """It is nobody else's."""
        return False

    def open(self) -> None:
        """Opens it for writing."""
        self.aside.open()

    def check(self) -> None:
        """Sees that it is as this program left it. The final file is looked at when it is written to."""
        self.aside.check()

    def write(self, position: int, block: bytes | memoryview) -> None:
        """Writes bytes to where they belong."""
        rest = memoryview(block)
        for run in self.layout.within(self.number, position, position + len(rest)):
            part = rest[run.start - position : run.end - position]
            if run.offset is None:
                self.aside.write(run.start, part)
            else:
                self.final.write(run.offset, part)

    def read(self, position: int, most: int) -> bytes:
        """Some of the bytes from there on."""
        found = []
        for run in self.layout.within(self.number, position, min(position + most, self._bytes)):
            count = run.end - run.start
            found.append(
                self.aside.read(run.start, count) if run.offset is None else self.final.read(run.offset, count)
            )
            if len(found[-1]) < count:
                break
        return b"".join(found)

    def descriptors(self) -> list[int]:
        """Copies of the descriptors of all that it lies in."""
        return [*self.final.descriptors(), *self.aside.descriptors()]

    def fsync(self) -> None:
        """Brings it to the disk."""
        self.aside.fsync()
        self.final.fsync()

    def close(self) -> None:
        """Writes no more to it. The final file stays open, for the others."""
        self.aside.close()

    def remove(self) -> None:
        """Removes what lies beside the final file. What is in that counts no more."""
        self.aside.remove()


Place = OwnFile | Spread
