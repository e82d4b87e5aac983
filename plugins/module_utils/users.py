"""Acts with the rights of another user for a while."""

from __future__ import annotations

import os
import pwd
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def exists(user: str) -> bool:
    """Whether the host has this user."""
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


@contextmanager
def acting_as(user: str) -> Iterator[None]:
    """Inside the block, files are opened and made as this user. Afterwards root's rights are back.

    The groups are the user's, too: whoever is in root's group would be kept out of a /root that lets others pass.
    """
    whom, me, groups = pwd.getpwnam(user), (os.geteuid(), os.getegid()), os.getgroups()
    os.setgroups(os.getgrouplist(user, whom.pw_gid))
    os.setegid(whom.pw_gid)
    os.seteuid(whom.pw_uid)
    try:
        yield
    finally:
        os.seteuid(me[0])
        os.setegid(me[1])
        os.setgroups(groups)
