"""How much memory there is for this program, and for what the kernel keeps of its files."""

from __future__ import annotations

import os
from pathlib import Path

_LIMITS = {"cgroup": ("memory.limit_in_bytes",), "cgroup2": ("memory.max", "memory.high")}
"""The type of a file system of control groups -> files that limit the memory of a group. Version 1 has the type `cgroup`."""


def memory_bytes(root: Path = Path("/")) -> int:
    """The RAM of the machine, or the least limit of the control groups that this program is in.

    A container shows the RAM of its machine, of which it may be allowed a small part.

    Args:
        root: where the folders /proc and /sys lie.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    paths = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or "memory" in controllers.split(","):
            paths["cgroup2" if number == "0" else "cgroup"] = Path(path)
    for line in _read(root / "proc/self/mountinfo").splitlines():
        mount, _, source = line.partition(" - ")
        top, folder = (Path(field) for field in mount.split(" ")[3:5])
        kind, options = source.split(" ")[0], source.split(" ")[-1].split(",")
        if kind not in paths or (kind == "cgroup" and "memory" not in options):
            continue
        # A path outside of what is mounted is one that this container does not see. Then the top of what it sees is its own group.
        below = paths[kind].relative_to(top) if paths[kind].is_relative_to(top) else Path()
        for group in (below, *below.parents):
            files = (root / folder.relative_to("/") / group / name for name in _LIMITS[kind])
            limits += [int(limit) for limit in (_read(file).strip() for file in files) if limit.isdigit()]
    return min(limits)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
