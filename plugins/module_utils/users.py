"""Another user's rights, for a while."""

from __future__ import annotations

import os
import pwd
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def acting_as(user: str) -> Iterator[None]:
    """Files are opened and made as this user; root's rights come back."""
    whom, me = pwd.getpwnam(user), (os.geteuid(), os.getegid())
    os.setegid(whom.pw_gid)
    os.seteuid(whom.pw_uid)
    try:
        yield
    finally:
        os.seteuid(me[0])
        os.setegid(me[1])
