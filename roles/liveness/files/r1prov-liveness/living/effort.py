"""What the processes of one user have used, as the kernel tells everybody."""

from __future__ import annotations

import os
import pwd
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from living.judge import Effort

if TYPE_CHECKING:
    from collections.abc import Iterator

PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_STATE, _MAJOR_FAULTS, _USER, _SYSTEM = 0, 9, 11, 12
"""Where in the `stat` of a process these stand behind its name: see proc(5)."""


def of(user: str, proc: Path = PROC) -> Effort:
    """What the processes of a user have used since they began, together; nothing where the user is not there."""
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        return Effort()
    folders = list(_folders(proc, uid))
    stats = [stat for folder in folders if (stat := _stat(folder))]
    return Effort(
        sum(int(stat[_USER]) + int(stat[_SYSTEM]) for stat in stats) / _TICKS,
        sum(int(stat[_MAJOR_FAULTS]) for stat in stats),
        any(stat[_STATE] == "D" for folder in folders for stat in _threads(folder)),
    )


def text_of(path: Path) -> str:
    """The content of a file; empty where it is not there, or its process has ended meanwhile."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _folders(proc: Path, uid: int) -> Iterator[Path]:
    with os.scandir(proc) as entries:
        for entry in entries:
            with suppress(OSError):
                if entry.name.isdigit() and entry.stat().st_uid == uid:
                    yield Path(entry.path)


def _threads(folder: Path) -> Iterator[list[str]]:
    for thread in (folder / "task").glob("*"):
        if stat := _stat(thread):
            yield stat


def _stat(folder: Path) -> list[str]:
    return text_of(folder / "stat").rpartition(")")[2].split()
