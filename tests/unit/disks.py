"""A small disk for tests of what happens when one is full."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def mounted(place: Path, size: int) -> Iterator[Path]:
    """A new disk of that size. Skips the test where none can be had."""
    if os.geteuid() != 0:
        pytest.skip("a disk to fill is a tmpfs, and mounting one needs root")
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(place: Path, *, leave: int) -> Path:
    """Leaves so many bytes free. Returns the file that takes all else."""
    ballast = place / "ballast"
    disk = os.statvfs(place)
    ballast.write_bytes(bytes(disk.f_bavail * disk.f_frsize - leave))
    return ballast
