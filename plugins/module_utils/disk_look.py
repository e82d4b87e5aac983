"""What the kernel tells of the disk under a path: whether it turns, and how much others read and write there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_SECTOR_BYTES = 512


def turns(path: Path) -> bool:
    """Whether a disk turns, so that it reads and writes one place after the other far faster than many at once.

    Virtual disks say so too, whatever they are made of, and are not believed.
    """
    with suppress(OSError):
        place = _device(path).resolve(strict=True)
        disk = place if (place / "queue").is_dir() else place.parent  # Else it is a partition.
        is_virtual = (disk / "device" / "driver").resolve().name.startswith("virtio")
        return not is_virtual and (disk / "queue" / "rotational").read_text("ascii").strip() == "1"
    return False


def moved_bytes(path: Path) -> int | None:
    """How many bytes were read and written on the disk under a path since it was there. None where the kernel does not tell."""
    try:
        fields = (_device(path) / "stat").read_text("ascii").split()
        return (int(fields[2]) + int(fields[6])) * _SECTOR_BYTES
    except (OSError, ValueError, IndexError):
        return None


def _device(path: Path) -> Path:
    device = path.stat().st_dev
    return Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
