"""A small disk for tests of what happens when one is full."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_STEP_BYTES = 64 << 10


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


@contextmanager
def imaged(place: Path, size: int) -> Iterator[Path]:
    """A new disk of that size in the file `PLACE.img`. What changes there changes behind the back of the kernel, as when a disk rots."""
    if os.geteuid() != 0:
        pytest.skip("mounting a disk needs root")
    if not shutil.which("mkfs.ext4"):
        pytest.skip("making a disk needs mkfs.ext4 (e2fsprogs)")
    place.mkdir()
    image = place.with_suffix(".img")
    image.touch()
    os.truncate(image, size)
    for command in (["mkfs.ext4", "-q", "-F", str(image)], ["mount", "-o", "loop", str(image), str(place)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no image can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def rot(image: Path, near: bytes) -> None:
    """Changes a bit in what a disk holds, behind these bytes."""
    os.sync()
    at = image.read_bytes().index(near) + len(near)
    with image.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 1]))


def fill(place: Path, *, leave: int) -> Path:
    """Leaves at most so many bytes free. Returns the file that takes all else.

    Who writes there meanwhile may take what this file was to take. So it grows a little at a time, as far as there is room.
    """
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while (disk := os.statvfs(place)).f_bavail * disk.f_frsize > leave:
            file.write(bytes(min(disk.f_bavail * disk.f_frsize - leave, _STEP_BYTES)))
    return ballast
