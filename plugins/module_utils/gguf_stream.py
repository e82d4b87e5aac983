"""Writes one GGUF file from the tensors of others in one pass, and checks it at the same time.

One thread reads the sources and writes. Another follows it by a few blocks: it reads what now stands in the file (the kernel still has
it in memory), compares it with what was to be written or with the algebra, and computes the file's sha256. A third computes the sha256 of
the sources from the bytes that were read, so that nothing is made of a source that has changed since it was verified. So a source is read
once, and the checks cost cores, not a second pass over the disk. It takes the memory of those blocks, and of a few tensors that are made
anew.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import eq
from types import MappingProxyType
from typing import TYPE_CHECKING, Callable, Iterator, Mapping, Sequence

from ansible_collections.r1.prov.plugins.module_utils import gguf_header
from ansible_collections.r1.prov.plugins.module_utils.files import free_bytes, has_name, write_at
from ansible_collections.r1.prov.plugins.module_utils.gguf_header import GgufError, read
from ansible_collections.r1.prov.plugins.module_utils.gguf_layout import Part, takes
from ansible_collections.r1.prov.plugins.module_utils.llama_memory import gib
from ansible_collections.r1.prov.plugins.module_utils.locks import holder
from ansible_collections.r1.prov.plugins.module_utils.piece_digests import Digests, Sums

if TYPE_CHECKING:
    from hashlib import _Hash
    from pathlib import Path

_BLOCK_BYTES = 1 << 20
_PIECES_AHEAD = 16  # few enough to be in the processor's cache still when they are looked at again
_AT_ONCE_BYTES = 64 << 20  # for the disk to write, and for the kernel to forget of a source
_NO_DIGESTS: Mapping[Path, str] = MappingProxyType({})


class StreamError(Exception):
    """The file cannot be written, or is not what it should be; the message says why and what to do next."""


class SourceError(StreamError):
    """A source holds what no file can be made of."""


class DamagedError(SourceError):
    """A source is not what it was when it was verified."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} is damaged: {why}")
        self.path = path


def write(
    path: Path,
    keys: dict[str, bytes],
    parts: Sequence[Part],
    report: Callable[[int, int], None],
    publish: Callable[[Sums], None] = lambda _sums: None,
    *,
    digests: Mapping[Path, str] = _NO_DIGESTS,
) -> Sums:
    """Writes the file, safely to the disk. No partial file remains when that fails.

    Args:
        path: a name that nothing else uses. What a killed run left there is removed.
        keys: the metadata, as `Gguf.keys`.
        parts: the tensors, in order.
        report: is called with the bytes done and the bytes in all, now and then.
        publish: is called with the digests and gives the whole file its place. Until it returns, no other run writes to `path`.
        digests: the sha256 of those files of which it is known. All bytes of each are held against it in the same pass.

    Returns:
        The digests of what stands in the file.

    Raises:
        DamagedError: a source has another sha256, or its disk cannot read it.
        StreamError: no room, a source that is cut short, cannot be read or holds what nothing can be made of, another run that writes
            this file, or a tensor that came out wrong.
        GgufError: a type or shape that no GGUF file can have.
        OSError: the new file cannot be written or published.
    """
    _check_sources(parts)
    with _alone(path) as file:
        try:
            _check_room(path.parent, takes(keys, parts))
            sums = _build(file, path, keys, parts, report=report, digests=digests)
            os.fchmod(file, 0o644 & ~_umask())
            publish(sums)
        except BaseException:
            if has_name(os.fstat(file), path):
                path.unlink()
            raise
    return sums


def mend(
    path: Path,
    keys: dict[str, bytes],
    parts: Sequence[Part],
    report: Callable[[int, int], None],
    publish: Callable[[Sums], None] = lambda _sums: None,
    *,
    digests: Mapping[Path, str] = _NO_DIGESTS,
) -> Sums:
    """Writes a file that exists anew, where it lies. That takes no room on the disk, and the file is never gone.

    Whoever has mapped the file sees right bytes in the place of wrong ones. When it fails, less is wrong than before. All is written, for
    what the kernel has in memory may be right where the disk is wrong. The caller sees to it that nobody else writes to the file, and that
    the sources are what they should be. Arguments and errors are those of `write`.
    """
    _check_sources(parts)
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        sums = _build(file, path, keys, parts, report=report, digests=digests)
        publish(sums)
    finally:
        os.close(file)
    return sums


def _build(
    file: int,
    path: Path,
    keys: dict[str, bytes],
    parts: Sequence[Part],
    *,
    report: Callable[[int, int], None],
    digests: Mapping[Path, str],
) -> Sums:
    """Brings an open file to what it shall be, safely to the disk; returns its digests."""
    start = gguf_header.head(keys, [(part.name, part.shape, part.type) for part in parts])
    total = takes(keys, parts)
    os.truncate(file, total)
    write_at(file, start, 0)
    begins = _begins(path, keys, parts)
    opened: dict[Path, _Source] = {}
    with ThreadPoolExecutor(1) as hashing, ExitStack() as stack:

        def source(path: Path) -> _Source:
            if path not in opened:
                opened[path] = stack.enter_context(_opened(path, digests.get(path, ""), hashing))
            return opened[path]

        for each in digests.keys() - {part.path for part in parts}:  # a first shard may have a head and nothing else
            source(each).finish()
        return _fill(file, parts, begins, source, report=lambda done: report(done, total))


@contextmanager
def _alone(path: Path) -> Iterator[int]:
    """The descriptor of a new, empty file, which no other run writes at the same time. Others cannot open it, so they cannot lock it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not has_name(os.fstat(file), path):
                continue  # the run that had it gave it its own name before we locked it
            if os.fstat(file).st_size:
                path.unlink()  # what a killed run left is not written over: it may have its own name already
                continue
            yield file
        except BlockingIOError:
            raise StreamError(f"another run is writing {path}: {holder(path)}. Wait for it") from None
        else:
            return
        finally:
            os.close(file)


def _umask() -> int:
    umask = os.umask(0o077)  # the only way to read it is to set it
    os.umask(umask)
    return umask


def _check_sources(parts: Sequence[Part]) -> None:
    for part in parts:
        if part.source.n_bytes > part.source.bytes:
            raise SourceError(f"{part.path} is cut short in {part.source.name}. Fetch it anew")


def _check_room(folder: Path, total: int) -> None:
    if (free := free_bytes(folder)) < total:
        raise StreamError(
            f"the disk of {folder} has {gib(free)} free, and the new file takes {gib(total)}. "
            "Make room, or choose another disk"
        )


def _begins(path: Path, keys: dict[str, bytes], parts: Sequence[Part]) -> list[int]:
    """Where each tensor belongs, as a reader of the new file understands its head."""
    new = read(path)
    tensors = [(tensor.name, tensor.shape, tensor.type) for tensor in new.tensors]
    if new.keys != keys or tensors != [(part.name, part.shape, part.type) for part in parts]:
        raise GgufError(f"the head of {path} does not say what was written to it")
    return [tensor.start for tensor in new.tensors]


def _fill(
    file: int,
    parts: Sequence[Part],
    begins: Sequence[int],
    source: Callable[[Path], _Source],
    *,
    report: Callable[[int], None],
) -> Sums:
    """Writes the tensors where they begin, each piece checked behind it, safely to the disk; returns the file's digests."""
    last = {part.path: number for number, part in enumerate(parts)}
    with Digests() as digests, ThreadPoolExecutor(1) as following, ThreadPoolExecutor(1) as syncing:
        follower, disk = _Follower(file, following, digests), _Disk(file, syncing)
        position = begins[0] if begins else os.fstat(file).st_size
        for number, (part, begin) in enumerate(zip(parts, begins, strict=True)):
            write_at(file, bytes(begin - position), position)
            position = begin
            follower.take(begin)
            for piece, agrees in _pieces(part, source(part.path)):
                write_at(file, piece, position)
                position += len(piece)
                report(position)
                disk.keep_up(position)
                follower.take(position, part, agrees)
            if number == last[part.path]:
                source(part.path).finish()
        end = os.fstat(file).st_size
        write_at(file, bytes(end - position), position)
        follower.take(end)
        sums = follower.sums()
        disk.finish()
        return sums


def _pieces(part: Part, source: _Source) -> Iterator[tuple[bytes, Callable[[bytes], bool]]]:
    """The data of a tensor, and with each piece what says whether bytes that were read again are as they should be."""
    start = part.source.start
    if part.make and part.agrees:
        raw = source.read(start, part.source.n_bytes)
        try:
            made = part.make(raw)
        except ValueError as error:
            raise SourceError(f"{part.source.name} in {part.path} {error}. Fetch it anew, or take another") from None
        yield made, partial(part.agrees, raw)
        return
    end = start + part.n_bytes
    for first in range(start, end, _AT_ONCE_BYTES):
        last = min(first + _AT_ONCE_BYTES, end)
        for position in range(first, last, _BLOCK_BYTES):
            block = source.read(position, min(_BLOCK_BYTES, last - position))
            yield block, partial(eq, block)
        source.forget(last)


@contextmanager
def _opened(path: Path, sha256: str, pool: ThreadPoolExecutor) -> Iterator[_Source]:
    """A source. An error of it must not be taken for one of the new file."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        yield _Source(path, file, sha256, pool)
    finally:
        os.close(file)


class _Source:
    """A file from which tensors are read. Where its sha256 is known, a thread computes it from what is read, in the file's order."""

    def __init__(self, path: Path, file: int, sha256: str, pool: ThreadPoolExecutor) -> None:
        self._path, self._file, self._sha256, self._pool = path, file, sha256, pool
        self._digest: _Hash = hashlib.sha256()
        self._hashed = 0  # so many bytes were given to the digest
        self._pending: deque[Future[None]] = deque()
        self._latest: tuple[int, bytes] = (0, b"")
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def read(self, start: int, count: int) -> bytes:
        """So many bytes from there. What was skipped is read for the digest alone: heads, and what stands between tensors."""
        if self._latest[0] == start and len(self._latest[1]) == count:
            return self._latest[1]  # Two tensors are made of one.
        while self._sha256 and self._hashed < start:
            self._take(self._hashed, self._read(self._hashed, min(_BLOCK_BYTES, start - self._hashed)))
        content = self._read(start, count)
        self._take(start, content)
        self._latest = (start, content)
        return content

    def finish(self) -> None:
        """Reads what is left of it.

        Raises:
            DamagedError: it is not the file that it should be.
        """
        if not self._sha256:
            return
        size = os.fstat(self._file).st_size
        while self._hashed < size:
            self._take(self._hashed, self._read(self._hashed, min(_BLOCK_BYTES, size - self._hashed)))
        while self._pending:
            self._pending.popleft().result()
        if self._digest.hexdigest() != self._sha256:
            raise DamagedError(self._path, f"its sha256 is {self._digest.hexdigest()}, not {self._sha256}")

    def forget(self, end: int) -> None:
        """Nobody reads the source again soon: its memory is the next block's, and stays in the processor's reach."""
        os.posix_fadvise(self._file, 0, end, os.POSIX_FADV_DONTNEED)

    def _take(self, start: int, content: bytes) -> None:
        new = content[max(0, self._hashed - start) :]
        if not self._sha256 or not new:
            return
        while len(self._pending) >= _PIECES_AHEAD:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._digest.update, new))
        self._hashed += len(new)

    def _read(self, start: int, count: int) -> bytes:
        parts: list[bytes] = []
        while count:
            try:
                block = os.pread(self._file, count, start)
            except OSError as error:
                raise _unreadable(self._path, error) from error
            if not block:
                raise SourceError(f"{self._path} has become shorter while it was read. Run it again")
            parts.append(block)
            start, count = start + len(block), count - len(block)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _unreadable(path: Path, error: OSError) -> StreamError:
    """What to say of a source that cannot be read. Where the disk itself cannot, the file is as good as damaged."""
    if error.errno == errno.EIO:
        return DamagedError(path, "its disk cannot read it")
    return StreamError(
        f"{path} cannot be read: {error.strerror}. See that it is there and its disk sound, and run it again"
    )


class _Follower:
    """Reads in a thread of its own what now stands in the file, compares it with what should, and computes the file's digests."""

    def __init__(self, file: int, pool: ThreadPoolExecutor, digests: Digests) -> None:
        self._file, self._pool, self._position, self._digests = file, pool, 0, digests
        self._pending: deque[Future[None]] = deque()

    def take(self, end: int, part: Part | None = None, agrees: Callable[[bytes], bool] | None = None) -> None:
        """Has it read all up to `end`, of a tensor or between two. Raises what it found wrong before."""
        while len(self._pending) >= _PIECES_AHEAD:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._take, end, part, agrees))

    def _take(self, end: int, part: Part | None, agrees: Callable[[bytes], bool] | None) -> None:
        written = os.pread(self._file, end - self._position, self._position)
        if part and agrees and not agrees(written):
            raise StreamError(
                f"{part.name} in the new file differs from {part.path.name}. Run it again; if it stays, check the disk"
            )
        self._digests.update(written)
        self._position = end

    def sums(self) -> Sums:
        """The digests of all that it was given, when it has read that. Raises what it found wrong."""
        while self._pending:
            self._pending.popleft().result()
        return self._digests.sums()


class _Disk:
    """Has the disk write while the file grows, where the kernel would wait until its memory is full."""

    def __init__(self, file: int, pool: ThreadPoolExecutor) -> None:
        self._file, self._pool, self._position = file, pool, 0
        self._pending: Future[None] | None = None

    def keep_up(self, position: int) -> None:
        if position - self._position >= _AT_ONCE_BYTES and (self._pending is None or self._pending.done()):
            self._check()
            self._position = position
            self._pending = self._pool.submit(os.fdatasync, self._file)

    def finish(self) -> None:
        self._check()
        os.fsync(self._file)

    def _check(self) -> None:
        """Raises what the disk refused: the kernel says it once, so a later call would not."""
        if self._pending:
            self._pending.result()
