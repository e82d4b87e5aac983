"""One GGUF file written from the tensors of others, in one pass, and checked behind the writer's back.

One thread reads the sources and writes. Another follows it: it takes what the new file says of itself, reads each tensor as it now
stands in the file (the kernel still has it in memory), holds it against its source, and computes the file's sha256. So the check costs
a core, not a second pass over the disk. Memory: one tensor that is made anew, and some blocks.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Callable, Iterator, Sequence

from ansible_collections.r1.prov.plugins.module_utils.gguf_header import (
    GgufError,
    Tensor,
    alignment,
    data_bytes,
    head,
    padded,
    read,
)

if TYPE_CHECKING:
    from hashlib import _Hash
    from pathlib import Path

_BLOCK_BYTES = 1 << 20  # larger ones leave the processor's cache before they are looked at again
_MOST_AHEAD_BYTES = 256 << 20  # so that the one who follows finds it in memory
_AT_ONCE_BYTES = 64 << 20  # for the disk to write
_GIB = 1 << 30


class StreamError(Exception):
    """The file cannot be written, or is not what it should be; the message says why and what to do next."""


@dataclass(frozen=True)
class Part:
    """One tensor of the new file.

    Attributes:
        name: its name.
        shape: its dimensions.
        type: the number of its type.
        path: the file that has its source.
        source: the tensor that it comes from.
        make: its data, from the source's; None where they are the same.
        agrees: whether data (second) are what should have been made of the source's (first).
    """

    name: str
    shape: tuple[int, ...]
    type: int
    path: Path
    source: Tensor
    make: Callable[[bytes], bytes] | None = None
    agrees: Callable[[bytes, bytes], bool] | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of its data, without padding."""
        return data_bytes(self.name, self.shape, self.type)


def copied(path: Path, tensor: Tensor) -> Part:
    """A tensor that stays what it is."""
    return Part(tensor.name, tensor.shape, tensor.type, path, tensor)


def write(path: Path, keys: dict[str, bytes], parts: Sequence[Part], report: Callable[[int, int], None]) -> str:
    """Writes the file, safely to the disk; nothing is left of it when that fails.

    Args:
        path: a name that nothing else uses; what a killed run left there is overwritten.
        keys: the metadata, as `Gguf.keys`.
        parts: the tensors, in order.
        report: told bytes done and bytes in all, now and then.

    Returns:
        The file's sha256, of what stands in it.

    Raises:
        StreamError: no room, a source that is cut short, another run that writes this file, or a tensor that came out wrong.
        GgufError: a type or shape that no GGUF file can have.
        OSError: as reading and writing files does.
    """
    _check_sources(parts)
    start = head(keys, [(part.name, part.shape, part.type) for part in parts])
    begins, total = [], len(start)
    for part in parts:
        begins.append(total)
        total += padded(part.n_bytes, alignment(keys))
    with _alone(path) as file:
        try:
            os.truncate(file, 0)
            _check_room(path.parent, total)
            os.truncate(file, total)  # what stands between two tensors is never written, so zero
            _put(file, start)
            digest = _write(path, file, begins, parts, lambda done: report(done, total))
        except BaseException:
            path.unlink()
            raise
    return digest


@contextmanager
def _alone(path: Path) -> Iterator[int]:
    """The file's descriptor, opened so that no other run writes it at the same time."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file
    except BlockingIOError:
        raise StreamError(f"another run is writing {path}. Wait for it") from None
    finally:
        os.close(file)


def _check_sources(parts: Sequence[Part]) -> None:
    for part in parts:
        if part.source.n_bytes > part.source.bytes:
            raise StreamError(f"{part.path} is cut short in {part.source.name}. Fetch it anew")


def _check_room(folder: Path, total: int) -> None:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < total:
        raise StreamError(
            f"the disk of {folder} has {free / _GIB:.1f} GiB free, and the new file takes {total / _GIB:.1f} GiB. "
            "Make room, or choose another disk"
        )


class _Lead:
    """How far the writer is, and who follows it. The one waits for what it reads, the other so as not to run too far ahead."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._written = self._checked = self._wanted = 0
        self._over = False

    def wrote(self, position: int) -> None:
        with self._changed:
            self._written = position
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._over or self._wanted > position or position - self._checked <= _MOST_AHEAD_BYTES
            )

    def checked(self, position: int) -> None:
        with self._changed:
            self._checked = position
            self._changed.notify_all()

    def wait_for(self, position: int) -> None:
        with self._changed:
            self._wanted = position
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._over or self._written >= position)
            if self._written < position:
                raise StreamError("the writer has stopped")

    def stop(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()


def _write(path: Path, file: int, begins: Sequence[int], parts: Sequence[Part], report: Callable[[int], None]) -> str:
    """Writes the tensors where they begin, each checked behind it, safely to the disk; returns the file's sha256."""
    lead = _Lead()
    with ThreadPoolExecutor(3) as pool:
        following = pool.submit(_follow, path, parts, lead, pool)
        following.add_done_callback(lambda _: lead.stop())
        try:
            disk = _Disk(file, pool)
            for part, begin in zip(parts, begins, strict=True):
                position = os.lseek(file, begin, os.SEEK_SET)
                for count in _put_part(file, part):
                    position += count
                    report(position)
                    disk.keep_up(position)
                    lead.wrote(position)
                if following.done():  # before the end: it found something wrong
                    break
            lead.wrote(os.fstat(file).st_size)
            os.fsync(file)
        finally:
            lead.stop()
        return following.result()


class _Disk:
    """Has the disk write while the file grows, where the kernel would wait until its memory is full."""

    def __init__(self, file: int, pool: ThreadPoolExecutor) -> None:
        self._file = file
        self._pool = pool
        self._position = 0
        self._pending: Future[None] | None = None

    def keep_up(self, position: int) -> None:
        if position - self._position >= _AT_ONCE_BYTES and (self._pending is None or self._pending.done()):
            if self._pending:
                self._pending.result()  # what the disk refused
            self._position = position
            self._pending = self._pool.submit(os.fdatasync, self._file)


def _put_part(file: int, part: Part) -> Iterator[int]:
    """Writes a tensor; yields the bytes of each step."""
    with part.path.open("rb") as source:
        if part.make:
            source.seek(part.source.start)
            made = memoryview(part.make(source.read(part.source.n_bytes)))
            for first in range(0, len(made), _BLOCK_BYTES):
                yield _put(file, made[first : first + _BLOCK_BYTES])
            return
        position, end = part.source.start, part.source.start + part.n_bytes
        while position < end:
            # The kernel's own way, past this program's memory: half the time of reading and writing.
            count = os.sendfile(file, source.fileno(), position, min(_BLOCK_BYTES, end - position))
            if not count:
                raise StreamError(f"{part.path} has become shorter while it was read. Run it again")
            position += count
            yield count


def _put(file: int, content: bytes | memoryview) -> int:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]
    return len(content)


def _follow(path: Path, parts: Sequence[Part], lead: _Lead, pool: ThreadPoolExecutor) -> str:
    """Holds each tensor of the file against its source; returns the file's sha256."""
    with path.open("rb", buffering=0) as stream:  # a buffer would hold what was not written yet
        digest = _Digest(pool)
        found = read(path)  # it stands there before the first tensor
        sources = {part.name: part for part in parts}
        for tensor in found.tensors:
            part = sources.pop(tensor.name, None)
            lead.wait_for(tensor.start)
            digest.update(stream.read(tensor.start - stream.tell()))
            if part is None or (tensor.shape, tensor.type) != (part.shape, part.type):
                raise GgufError(f"{tensor.name} is not what should have been written")
            with part.path.open("rb") as source:
                source.seek(part.source.start)
                for same, block in _compared(stream, source, part, tensor, lead):
                    if not same:
                        raise StreamError(
                            f"{tensor.name} in the new file differs from {part.path.name}. Run it again; if it stays, check the disk"
                        )
                    digest.update(block)
                    lead.checked(stream.tell())
        if sources:
            raise GgufError(f"{min(sources)} is missing in what was written")
        size = os.fstat(stream.fileno()).st_size
        lead.wait_for(size)
        digest.update(stream.read(size - stream.tell()))
        return digest.hex()


def _compared(
    stream: IO[bytes], source: IO[bytes], part: Part, tensor: Tensor, lead: _Lead
) -> Iterator[tuple[bool, bytes]]:
    """The blocks of a tensor, and whether they are what its source says."""
    end = tensor.start + part.n_bytes
    if part.agrees:
        lead.wait_for(end)
        written = stream.read(part.n_bytes)
        yield part.agrees(source.read(part.source.n_bytes), written), written
        return
    while (position := stream.tell()) < end:
        count = min(_BLOCK_BYTES, end - position)
        lead.wait_for(position + count)
        written = stream.read(count)
        yield written == source.read(count), written


class _Digest:
    """A sha256 that is computed in a thread of its own, one block behind."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._digest: _Hash = hashlib.sha256()
        self._pending: Future[None] | None = None

    def update(self, block: bytes) -> None:
        if self._pending:
            self._pending.result()
        self._pending = self._pool.submit(self._digest.update, block)

    def hex(self) -> str:
        if self._pending:
            self._pending.result()
        return self._digest.hexdigest()
