"""Locks of the controller: one process at a time makes a thing that others want too."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from r1prov.common.paths import module_util

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, which only this user can open. The kernel frees it when this process ends, however it ends.

    A holder may delete the file last of all. A wait that lasts says on stderr who holds it.
    """
    said = set[str]()

    def tell(who: str) -> None:
        if who not in said:
            said.add(who)
            sys.stderr.write(f"waiting: {who}\n")

    with module_util("locks").alone(path, tell):
        yield
