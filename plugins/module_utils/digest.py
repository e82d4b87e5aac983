"""The sha256 of what a file holds on its disk, of the whole and of its pieces.

All is read past the kernel's memory, where the file system allows that. So what counts is what the disk holds, and an engine that has
mapped its model keeps its memory. Such reads want memory that begins with a page, as a mapping does.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Iterator

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK_BYTES = 4 << 20


@contextmanager
def opened(file: Path) -> Iterator[int]:
    """The descriptor of a file that is open to be read so.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = os.open(file, os.O_RDONLY)
    try:
        with suppress(OSError):
            _set_direct(descriptor, wanted=True)
        yield descriptor
    finally:
        os.close(descriptor)


def sha256_of(file: Path, report: Callable[[int], None] = lambda _done: None) -> str:
    """The sha256 of a file, in hex.

    Args:
        file: the file.
        report: is called with the bytes done, after each block.

    Raises:
        OSError: it cannot be read.
    """
    with opened(file) as descriptor:
        if os.fstat(descriptor).st_size < _BLOCK_BYTES:
            return _at_once(descriptor, report)
        return _block_by_block(descriptor, report)


def _at_once(descriptor: int, report: Callable[[int], None]) -> str:
    """The sha256 of a small file. A release has tens of thousands of them, and a thread for each would take longer than its bytes."""
    digest, done = hashlib.sha256(), 0
    block = mmap.mmap(-1, os.fstat(descriptor).st_size // mmap.PAGESIZE * mmap.PAGESIZE + mmap.PAGESIZE)
    while count := read_next(descriptor, block):
        digest.update(memoryview(block)[:count])
        done += count
        report(done)
    return digest.hexdigest()


def _block_by_block(descriptor: int, report: Callable[[int], None]) -> str:
    """The sha256 of a file of any size. One block is read while the one before is hashed."""
    digest, done = hashlib.sha256(), 0
    block, other = mmap.mmap(-1, _BLOCK_BYTES), mmap.mmap(-1, _BLOCK_BYTES)
    with ThreadPoolExecutor(1) as reader:
        count = read_next(descriptor, block)
        while count:
            ahead = reader.submit(read_next, descriptor, other)
            digest.update(memoryview(block)[:count])
            done += count
            report(done)
            count = ahead.result()
            block, other = other, block
    return digest.hexdigest()


@dataclass(frozen=True)
class Digests:
    """What was read of a file.

    Attributes:
        whole: the sha256 of all of it; empty where that was not wanted, or where the disk cannot read all.
        pieces: the sha256 of each piece; empty for one that the disk cannot read.
    """

    whole: str
    pieces: list[str]


def digests_of(
    file: Path,
    piece_bytes: int,
    *,
    whole: bool,
    cores: int = 1,
    report: Callable[[int], None] = lambda _done: None,
    rest: Callable[[], None] = lambda: None,
) -> Digests:
    """The sha256 of each piece of a file, and of all of it, from one reading in order.

    The next pieces are read while those before them are hashed.

    Args:
        file: the file.
        piece_bytes: the length of a piece: a whole number of pages.
        whole: whether the sha256 of all of it is wanted, too. It takes a core of its own, and cannot be shared among several.
        cores: how many pieces are hashed at once.
        report: is called with the bytes done, after each piece.
        rest: is called before each piece, and may take its time.

    Raises:
        OSError: it cannot be opened.
    """
    with opened(file) as descriptor, ThreadPoolExecutor(cores) as hashing, ThreadPoolExecutor(1) as along:
        all_of_it, is_readable, done = hashlib.sha256(), True, 0
        pieces: list[str | Future[str]] = []
        size = os.fstat(descriptor).st_size
        free = [mmap.mmap(-1, piece_bytes) for _ in range(min(cores + 2, -(-size // piece_bytes)))]
        busy: deque[tuple[mmap.mmap, list[Future[Any]]]] = deque()
        for start in range(0, size, piece_bytes):
            rest()
            if not free:
                block, users = busy.popleft()
                for user in users:
                    user.result()
                free.append(block)
            block, count = free.pop(), min(piece_bytes, size - start)
            try:
                _fill(descriptor, block, start, count)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                free.append(block)
                pieces.append("")
                is_readable = False
            else:
                view = memoryview(block)[:count]
                piece = hashing.submit(_sha256, view)
                pieces.append(piece)
                users = [piece, *([along.submit(all_of_it.update, view)] if whole and is_readable else [])]
                busy.append((block, users))
            done += count
            report(done)
        for _, users in busy:
            for user in users:
                user.result()
        found = [piece if isinstance(piece, str) else piece.result() for piece in pieces]
        return Digests(all_of_it.hexdigest() if whole and is_readable else "", found)


def digest_at(file: Path, start: int, end: int) -> str:
    """The sha256 of some bytes of a file, as its disk has them. `start` is the beginning of a page.

    Raises:
        OSError: they cannot be read.
    """
    with opened(file) as descriptor:
        block = mmap.mmap(-1, -(-(end - start) // mmap.PAGESIZE) * mmap.PAGESIZE)
        _fill(descriptor, block, start, end - start)
        return _sha256(memoryview(block)[: end - start])


def _sha256(content: memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def _fill(descriptor: int, block: mmap.mmap, start: int, count: int) -> None:
    """Reads so many bytes of a file from there on.

    Raises:
        OSError: they cannot be read, or the file has become shorter.
    """
    done = 0
    while done < count:
        # All of the block is asked for, because such a read wants whole pages, at the end of a file, too.
        read = _read(descriptor, partial(os.preadv, descriptor, [memoryview(block)[done:]], start + done))
        if not read:
            raise OSError(errno.ENODATA, "it has become shorter while it was read")
        done += read


def read_next(descriptor: int, block: mmap.mmap) -> int:
    """Reads the next bytes of an opened file, and returns how many those are. It is 0 at the end of the file."""
    return _read(descriptor, partial(os.readv, descriptor, [block]))


def _read(descriptor: int, read: Callable[[], int]) -> int:
    try:
        return read()
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    # The file system cannot do it after all, or cannot from this place on, which is the end of the file.
    _set_direct(descriptor, wanted=False)
    return read()


def _set_direct(descriptor: int, *, wanted: bool) -> None:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT)
