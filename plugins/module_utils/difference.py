"""What a look at a host finds: one thing that is not as it should be."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it should be.

    Attributes:
        kind: what sort of thing it is, e.g. `drop-in`.
        place: where it is: a path, a unit, an account, a process.
        expected: how it should be; empty where it should not be there.
        found: how it is.
        sentence: all of that for people, in one sentence without a full stop.
    """

    kind: str
    place: str
    expected: str
    found: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def owner_and_mode(uid: int, gid: int, mode: int) -> str:
    """An owner, a group and permissions, as messages show them."""
    return f"{uid}:{gid} {mode:04o}"


def owner_and_mode_of(status: os.stat_result) -> str:
    """The same of what the file system says of an entry."""
    return owner_and_mode(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
