"""Folders that one process has to itself.

The kernel lets everybody lock a file that they may open for reading, a folder too. So a lock lies on a file of its own, which only its
owner may open.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import stat
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.r1.prov.plugins.module_utils.files import has_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_POLL_S = 0.1
_TELL_EVERY_S = 2.0


class LockedError(Exception):
    """Another process has the lock. The message says which."""


@contextmanager
def alone(lock: Path, tell: Callable[[str], None], limit_s: float = float("inf")) -> Iterator[None]:
    """Waits until no other process has this lock. The folder of its file is made where it is not there.

    The other process may belong to a run whose connection was lost, and goes on by itself. The kernel frees its lock however it ends.

    Args:
        lock: the file.
        tell: is called within seconds, and every two seconds from then on, with words that say who has the lock.
        limit_s: how long to wait.

    Raises:
        LockedError: the other process still has it after that time.
    """
    began, told = time.monotonic(), time.monotonic() - _TELL_EVERY_S + 1
    while True:
        try:
            lock.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            file = _opened(lock)
        except (FileExistsError, FileNotFoundError):
            if os.path.lexists(lock.parent) and not lock.parent.is_dir():
                raise
            continue  # Somebody has removed the folder in this moment.
        try:
            while not _taken(file):
                now = time.monotonic()
                if now - began > limit_s:
                    raise LockedError(f"{holder(lock)} holds {lock}")
                if now - told > _TELL_EVERY_S:
                    told = now
                    tell(f"{holder(lock)} holds {lock}")
                time.sleep(_POLL_S)
            # Somebody may have removed the file while this process waited. The lock is nobody's then.
            if has_name(os.fstat(file), lock):
                yield
                return
        finally:
            os.close(file)


def _opened(lock: Path) -> int:
    """The file of a lock, which nobody but this user can open."""
    file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(file)
        raise OSError(errno.EPERM, "it is not a file of this user's, so remove it", str(lock))
    os.fchmod(file, 0o600)
    return file


def _taken(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(path: Path) -> str:
    """The process that has a lock on a file, of whatever kind: its program, number and user."""
    for opened in Path("/proc").glob("[0-9]*/fd/*"):
        process = opened.parents[1]
        # Many processes end meanwhile, and only root may look at those of others.
        with suppress(OSError, KeyError):
            if process.name != str(os.getpid()) and opened.samefile(path) and "lock:" in _info(opened):
                user = pwd.getpwuid(process.stat().st_uid).pw_name
                return f"{(process / 'comm').read_text().strip()} (process {process.name} of {user})"
    return "another process"


def _info(opened: Path) -> str:
    return (opened.parents[1] / "fdinfo" / opened.name).read_text()
