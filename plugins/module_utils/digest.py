"""The sha256 of what a file holds on its disk."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK_BYTES = 4 << 20


def sha256_of(file: Path, report: Callable[[int], None] = lambda _done: None) -> str:
    """The sha256 of a file, in hex.

    It is read past the kernel's memory where the file system allows that. So what counts is what the disk holds, and an engine that has
    mapped its model keeps its memory.

    Args:
        file: the file.
        report: is called with the bytes done, after each block.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(file, os.O_RDONLY)
    with os.fdopen(descriptor, "rb", buffering=0):
        with suppress(OSError):
            _set_direct(descriptor, wanted=True)
        if os.fstat(descriptor).st_size < _BLOCK_BYTES:
            return _at_once(descriptor, report)
        return _block_by_block(descriptor, report)


def _at_once(descriptor: int, report: Callable[[int], None]) -> str:
    """The sha256 of a small file. A release has tens of thousands of them, and a thread for each would take longer than its bytes."""
    digest, done = hashlib.sha256(), 0
    block = mmap.mmap(-1, os.fstat(descriptor).st_size // mmap.PAGESIZE * mmap.PAGESIZE + mmap.PAGESIZE)
    while count := _read(descriptor, block):
        digest.update(memoryview(block)[:count])
        done += count
        report(done)
    return digest.hexdigest()


def _block_by_block(descriptor: int, report: Callable[[int], None]) -> str:
    """The sha256 of a file of any size. One block is read while the one before is hashed."""
    digest, done = hashlib.sha256(), 0
    # Such reads want memory that begins with a page, as a mapping does.
    block, other = mmap.mmap(-1, _BLOCK_BYTES), mmap.mmap(-1, _BLOCK_BYTES)
    with ThreadPoolExecutor(1) as reader:
        count = _read(descriptor, block)
        while count:
            ahead = reader.submit(_read, descriptor, other)
            digest.update(memoryview(block)[:count])
            done += count
            report(done)
            count = ahead.result()
            block, other = other, block
    return digest.hexdigest()


def _read(descriptor: int, block: mmap.mmap) -> int:
    try:
        return os.readv(descriptor, [block])
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    # The file system cannot do it after all, or cannot from this place on, which is the end of the file.
    _set_direct(descriptor, wanted=False)
    return os.readv(descriptor, [block])


def _set_direct(descriptor: int, *, wanted: bool) -> None:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT)
