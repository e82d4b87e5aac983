"""Reads the logs of units, which supervisord keeps."""

from __future__ import annotations

import re
from itertools import takewhile
from typing import TYPE_CHECKING

from supervised.keeper import MARK
from supervised.stamped import without
from supervised.supervisor import LOG

if TYPE_CHECKING:
    from collections.abc import Iterator


def lines(name: str, start: str, *, times: bool = True) -> list[str]:
    """What units have written.

    Args:
        name: the unit; empty for whichever unit has had this start.
        start: the `InvocationID` of a start, to which the lines are limited; empty for all that is kept.
        times: whether each has the time before it at which it came.
    """
    for each in [name] if name else sorted(path.name.removesuffix(".log") for path in LOG.glob("*.log")):
        found = list(_all(each))
        if start:
            begins = [number for number, line in enumerate(found) if without(line) == f"{MARK}{start}"]
            found = found[begins[0] + 1 :] if begins else []
            found = list(takewhile(lambda line: not without(line).startswith(MARK), found))
        if found:
            return found if times else [without(line) for line in found]
    return []


def _all(name: str) -> Iterator[str]:
    """The lines of a log, with those of the files that are full already, the oldest first."""
    files = [
        path for path in LOG.glob(f"{name}.log*") if re.fullmatch(r"(\.\d+)?", path.name.removeprefix(f"{name}.log"))
    ]
    for path in sorted(files, key=lambda path: -int(path.suffix[1:]) if path.suffix != ".log" else 0):
        yield from path.read_text(encoding="utf-8", errors="replace").splitlines()
