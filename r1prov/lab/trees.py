"""Removes folders of the lab, and never what is mounted below them: that belongs to this machine, or to other hosts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from r1prov.common.errors import LabError, Problem
from r1prov.common.paths import module_util


def remove(tree: Path) -> None:
    """Remove a folder with all that is its own, if it is there. What is mounted in it is unmounted before.

    Raises:
        LabError: something in there cannot be unmounted. Nothing is removed then.
    """
    # One that was mounted later may lie in or over an earlier one, and the kernel lists them in that order.
    for mount in reversed(_mounts(tree.resolve())):
        done = subprocess.run(["umount", "--", str(mount)], check=False, capture_output=True, text=True)
        if done.returncode:
            what = f"is mounted in {tree}, which is to be removed, and cannot be unmounted: {done.stderr.strip()}"
            raise LabError(Problem(str(mount), what, f"unmount it (`umount {mount}`), then run the same command again"))
    if tree.is_dir():
        shutil.rmtree(tree)


def _mounts(tree: Path) -> list[Path]:
    """Where something is mounted at a folder or below it, in the order in which it was mounted."""
    table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    places = map(Path, module_util("files").mounts(table))
    return [place for place in places if place.is_relative_to(tree)]
