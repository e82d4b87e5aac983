"""Runs a Python program of this host in another network, without starting Python anew: that would take most of a short program's time."""

from __future__ import annotations

import ctypes
import os
import runpy
import select
import signal
import sys
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_OWN = Path("/proc/self/ns/net")


class Running:
    """A program that runs in a process of its own, and ends by itself or is killed.

    Args:
        network: the file of the network namespace in which it runs.
        program: the path of the program.
        words: its arguments.
        environment: variables that it has beside those of this process.
    """

    def __init__(self, network: Path, program: str, *words: str, **environment: str) -> None:
        self._pid = os.fork()
        if not self._pid:
            try:
                os.environ.update(environment)
                sys.argv = [program, *words]
                _enter(network)
                runpy.run_path(program, run_name="__main__")
            finally:  # Nothing of what this process was a copy of may go on here.
                os._exit(0)
        self._end = os.pidfd_open(self._pid)

    def ends_within(self, seconds: float) -> bool:
        """Whether it ends within this time. It is asked no more afterwards."""
        if not select.select([self._end], [], [], seconds)[0]:
            return False
        os.close(self._end)
        os.waitpid(self._pid, 0)
        return True

    def kill(self) -> None:
        """End it."""
        os.kill(self._pid, signal.SIGKILL)
        self.ends_within(1)


def _enter(network: Path) -> None:
    if network.stat().st_ino == _OWN.stat().st_ino:
        return
    descriptor = os.open(network, os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns is new in Python 3.12
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"{network} cannot be entered")
    os.close(descriptor)
