"""The data disk of a container: a file system in a file beside the container's own layer, so that it outlives that."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

from r1prov.common.errors import LabError, Problem

if TYPE_CHECKING:
    from pathlib import Path

# It takes as much of this machine's disk as is written to it. AutoDL gives this size with each container.
_SIZE = "50G"
_LIMIT_S = 30.0


def file(directory: Path) -> Path:
    """The file that is the data disk of the host with this folder. supervise.sh mounts it."""
    return directory / "data.img"


def mounted(directory: Path) -> Path:
    """The folder at which supervise.sh mounts it. Only the host's own processes see the disk there."""
    return directory / "data"


def make(directory: Path, kept: Path | None) -> None:
    """Make the data disk of a host: a copy of a kept one, or an empty one."""
    mounted(directory).mkdir()
    if kept:
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", kept, file(directory)], check=True)
        return
    subprocess.run(["truncate", f"--size={_SIZE}", str(file(directory))], check=True)
    # A journal helps where this machine loses its power, and then the host is lost anyway.
    argv = ["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(file(directory))]
    subprocess.run(argv, check=True, capture_output=True)


def wait_until_free(directory: Path) -> None:
    """Wait until the kernel has let go of the data disk of a host whose processes have ended, if it has one.

    Raises:
        LabError: it takes longer than a loaded machine would explain.
    """
    deadline = time.monotonic() + _LIMIT_S
    while file(directory).exists() and (device := _loop_device(file(directory))):
        if time.monotonic() > deadline:
            remedy = f"see who has it: grep --files-with-matches {device} /proc/[0-9]*/mountinfo"
            raise LabError(Problem(str(file(directory)), f"is still mounted from {device}", remedy))
        time.sleep(0.02)


def _loop_device(backing: Path) -> str:
    argv = ["losetup", "--associated", str(backing), "--noheadings", "--output", "NAME"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
