"""The processes of hosts and their control groups, found on the whole machine by their `--machine=` argument and their network."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from r1prov.common.errors import LabError, Problem
from r1prov.lab import network

_HIERARCHIES = ("", "unified", "systemd")  # as in supervise.sh


def kill(machine: str) -> None:
    """Kill every process of a host. With systemd-nspawn, the kernel kills all processes inside.

    Raises:
        LabError: a process does not end within 30 s.
    """
    deadline = time.monotonic() + 30
    while pids := processes(machine):
        if time.monotonic() > deadline:
            fault = f"its processes do not end: {sorted(pids)}"
            raise LabError(
                Problem(where=machine, what=fault, remedy="look at them with ps, then run the same command again")
            )
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def processes(machine: str) -> set[int]:
    """The processes that have the host's `--machine=` argument or live in its network namespace."""
    pids = set()
    mark = f"--machine={machine}".encode()
    try:
        namespace = os.stat(f"/run/netns/{machine}").st_ino  # noqa: PTH116
    except FileNotFoundError:
        namespace = None
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "cmdline").read_bytes().split(b"\0") or (
                namespace and (entry / "ns/net").stat().st_ino == namespace
            ):
                pids.add(int(entry.name))
        except OSError:
            continue  # The process has ended, or even root may not look at it, as at PID 1 of some containers. It is not ours.
    return pids


def first(machine: str) -> int | None:
    """The first process of a host, as this machine numbers it; None where the host does not run."""
    for pid in processes(machine):
        with suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            [numbers] = [line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")]
            if numbers[1:] == ["1"]:
                return pid
    return None


def machines() -> set[str]:
    """The names of the hosts that have a supervisor or a systemd-nspawn, whether they are recorded or not."""
    mark = f"--machine={network.PREFIX}".encode()
    names = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            names |= {argument.removeprefix(mark).decode() for argument in arguments if argument.startswith(mark)}
    return names


def remove_groups(machine: str) -> None:
    """Removes the control groups of a machine that has no processes any more."""
    for hierarchy in _HIERARCHIES:
        _remove_group(Path("/sys/fs/cgroup") / hierarchy / machine)


def _remove_group(group: Path) -> None:
    """Remove a control group and those below it. The kernel may need a moment after the last process has ended."""
    if not group.is_dir():
        return
    for _ in range(100):
        try:
            for folder, _, _ in os.walk(group, topdown=False):
                Path(folder).rmdir()
        except OSError:
            time.sleep(0.02)
        else:
            return
