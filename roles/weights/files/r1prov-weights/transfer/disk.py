"""Files and folders of this host."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import mmap
import os
import shutil
import time
from typing import TYPE_CHECKING

from ansible_collections.r1.prov.plugins.module_utils import digest
from ansible_collections.r1.prov.plugins.module_utils.files import has_name
from transfer.errors import HopelessError
from transfer.wording import plain, words

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BLOCK_BYTES = 1 << 20
LOCK_POLL_S = 0.5

log = logging.getLogger("fetch")


class DirectReader:
    """Reads a file as it stands on the disk, from its beginning on or at any place, block by block."""

    def __init__(self, path: Path) -> None:
        self._open = contextlib.ExitStack()
        self._descriptor = self._open.enter_context(digest.opened(path))
        self._block = mmap.mmap(-1, BLOCK_BYTES)
        self._held = (0, 0)  # what the block holds, where places are read

    def close(self) -> None:
        """Closes the file."""
        self._open.close()

    def next(self) -> memoryview:
        """The next block, which holds until the one after it is read. It is empty at the end."""
        return memoryview(self._block)[: digest.read_next(self._descriptor, self._block)]

    def at(self, position: int, most: int) -> bytes:
        """Some of the bytes from there on. Such reads want places that are multiples of a page, so a whole block is read for them."""
        start, end = self._held
        if not start <= position < end:
            start = position // BLOCK_BYTES * BLOCK_BYTES
            os.lseek(self._descriptor, start, os.SEEK_SET)
            end = start + len(self.next())
            self._held = start, end
        return bytes(self._block[max(position - start, 0) : min(position + most, end) - start])


def set_aside(path: Path) -> Path:
    """Gives a file a name that no other program uses, and returns it. Transfer.tidy() finds it there after a kill."""
    aside = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}")
    path.rename(aside)
    return aside


def reserve(file: int, start: int, count: int) -> bool:
    """Has the disk keep room for bytes of an open file. Returns False where its file system cannot.

    This is the kernel's own fallocate(). That of the C library writes to each block where the file system cannot.

    Raises:
        OSError: there is not so much room.
    """
    library = ctypes.CDLL(None, use_errno=True)
    call = getattr(library, "fallocate64", None) or library.fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if not count or not call(file, 0, start, count):
        return True
    number = ctypes.get_errno()
    if number in (errno.EOPNOTSUPP, errno.ENOSYS):
        return False
    raise OSError(number, os.strerror(number))


def is_file(path: Path) -> bool:
    """Whether this is a file itself, and no link to one."""
    return path.is_file() and not path.is_symlink()


def remove(path: Path) -> None:
    """Removes whatever has this name. What cannot be removed is left, and named in the log."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s does not belong there, and cannot be removed: %s", path, words(error))


def take_lock(path: Path, show: Callable[[str], None]) -> None:
    """Waits until no other process works on this folder, and keeps others off until this process ends, however it ends.

    This is a lock of POSIX, because NFS shows it to all its hosts. A lock of flock() is not shown to the host that has the disk.
    """
    if path.is_symlink() or (path.exists() and not is_file(path)):
        remove(path)
    while True:
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)  # what others may open, they may lock
        except PermissionError:
            raise HopelessError(
                f"{path} cannot be opened by user {os.geteuid()}: run this as the owner of {path.parent}."
                " Hosts that share the folder need the same number for r1prov-weights"
            ) from None
        try:
            while not is_taken(lock):
                holder = plain(os.pread(lock, 200, 0).decode("utf-8", "replace")) or "another process"
                show(f"waiting: {holder} fetches into {path.parent.parent}")
                time.sleep(LOCK_POLL_S)
            if has_name(os.fstat(lock), path):
                break
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        os.close(lock)  # The process that had it has removed it meanwhile, so it is worth nothing any more.
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)


def is_taken(lock: int) -> bool:
    """Tries to take a lock. Where the disk has none, this process goes on without it."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno == errno.ESTALE:
            raise
        log.warning(
            "the disk has no locks (%s): let one host, and one run, fetch into the folder at a time", words(error)
        )
    return True
