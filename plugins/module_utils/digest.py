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
    mapped its model keeps its memory. One block is read while the one before is hashed.

    Args:
        file: the file.
        report: is called with the bytes done, after each block.

    Raises:
        OSError: it cannot be read.
    """
    digest, done = hashlib.sha256(), 0
    # Such reads want memory that begins with a page, as a mapping does.
    block, other = mmap.mmap(-1, _BLOCK_BYTES), mmap.mmap(-1, _BLOCK_BYTES)
    descriptor = os.open(file, os.O_RDONLY)
    with ThreadPoolExecutor(1) as reader, os.fdopen(descriptor, "rb", buffering=0):
        with suppress(OSError):
            _set_direct(descriptor, wanted=True)
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
