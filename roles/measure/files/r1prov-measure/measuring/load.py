"""How busy others keep the processors of the host while a server is measured."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from measuring.memory import PROC, family

if TYPE_CHECKING:
    from pathlib import Path

FOREIGN_SHARE = 0.1
"""Whoever else takes this part of the processors is a foreign load: the rates are then not the engine's own."""
_IDLE = (3, 4)
"""The places of `idle` and `iowait` among the figures of /proc/stat."""


class Load:
    """Looks at the processors from its making on.

    Args:
        root: the process that measures. It and its descendants are not the others.
        proc: the proc file system.
    """

    def __init__(self, root: int, proc: Path = PROC) -> None:
        self._root, self._proc = root, proc
        self._before = self._ticks()

    def so_far(self) -> dict[str, Any]:
        """`others_cores` (the processors that others have kept busy), of how many `cores`, and whether that is a `foreign` load."""
        busy, idle, ours = (now - before for now, before in zip(self._ticks(), self._before, strict=True))
        # The figures are read one after the other, so those of a short time may come out a little below nothing.
        share = max(0.0, (busy - ours) / (busy + idle)) if busy + idle > 0 else 0.0
        cores = os.cpu_count() or 1
        return {"others_cores": round(share * cores, 2), "cores": cores, "foreign": share >= FOREIGN_SHARE}

    def _ticks(self) -> tuple[int, int, int]:
        """The ticks since the boot: busy and idle ones of all processors, and those of `root` and its descendants."""
        figures = [int(word) for word in (self._proc / "stat").read_text().splitlines()[0].split()[1:9]]
        idle = sum(figures[place] for place in _IDLE)
        return sum(figures) - idle, idle, sum(map(self._own, family(self._root, self._proc)))

    def _own(self, pid: int) -> int:
        """The ticks of a process and of those children that it has waited for."""
        try:
            fields = (self._proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0
        return sum(map(int, fields[11:15]))
