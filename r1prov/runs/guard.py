"""A program that runs another one, and ends it, its workers and their ssh when r1prov wants that or is gone.

ansible-runner starts it, in a terminal of its own, in place of ansible-playbook. The kernel hangs that terminal up however r1prov ends,
and this program hears it. ansible-playbook would not hear it, and would go on to hold the hosts. Its workers and the ssh of each lead
sessions of their own, which no signal to a group reaches.

The hangup, SIGTERM and SIGINT all ask for the end. Ansible is interrupted and may tidy up, and is killed after PATIENCE_S. Whoever asks
again ends that patience.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 10.0
"""How long Ansible may take to end by itself, in seconds."""

_ENDS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_SSH = {"ssh", "sshpass", "scp", "sftp"}
_POLL_S = 0.05
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36


class _AskedError(Exception):
    """Somebody wants the end."""


def main(argv: list[str]) -> int:
    """Run a command. Returns its exit status, or as shells do 128 and the signal that ended it."""
    # Descendants whose parents end become children of this process, so they can be found.
    _prctl(_SET_CHILD_SUBREAPER, 1)
    program = _start(argv)
    status = None
    try:
        for number in _ENDS:
            signal.signal(number, _asked)
        if _hung_up():  # before anybody listened
            _asked()
        status = os.waitpid(program, 0)[1]
        _ignore_ends()
    except _AskedError:
        with contextlib.suppress(_AskedError):
            status = _interrupted(program) if status is None else status
        _ignore_ends()
        _end_descendants(argv[0])
    if status is None:
        status = os.waitpid(program, 0)[1]
    if os.WIFSIGNALED(status):  # Somebody has killed it, and it has left its workers behind.
        _end_descendants(argv[0])
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _start(argv: list[str]) -> int:
    program = os.fork()
    if program:
        return program
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # It would die of the hangup at once, and leave its workers behind.
    _prctl(_SET_PDEATHSIG, signal.SIGINT)  # if this guard is killed
    try:
        os.execv(argv[0], argv)  # noqa: S606 - there is no shell to start it with
    except OSError as error:
        sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
        sys.stderr.flush()
    os._exit(127)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(AttributeError, OSError):  # Linux alone has it.
        ctypes.CDLL(None).prctl(option, value)


def _asked(*_: object) -> NoReturn:
    raise _AskedError


def _hung_up() -> bool:
    poll = select.poll()
    poll.register(sys.stdin.fileno(), 0)
    return any(happened & select.POLLHUP for _, happened in poll.poll(0))


def _interrupted(program: int) -> int | None:
    """Interrupt the program. Returns its status when it has ended in time."""
    os.kill(program, signal.SIGINT)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(program, os.WNOHANG)
        if ended:
            return status
        time.sleep(_POLL_S)
    return None


def _ignore_ends() -> None:
    for number in _ENDS:
        signal.signal(number, signal.SIG_IGN)


def _end_descendants(name: str) -> None:
    """Ask those that are left to end, and kill who does not. Workers pass it on to what they have started on this machine."""
    for number, limit_s in ((signal.SIGINT, 2.0), (signal.SIGKILL, 2.0)):
        deadline = time.monotonic() + limit_s
        told: set[int] = set()
        while (left := set(_descendants(name))) and time.monotonic() < deadline:
            for process in left - told if number == signal.SIGINT else left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process, number)
            told |= left
            time.sleep(_POLL_S)


def _descendants(name: str) -> Iterator[int]:
    """The living descendants of this process that are of that program or ssh, where there is /proc.

    What works on this machine because it is a host itself, such as apt, finishes by itself as on any other host.
    """
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The fields after the program's name, which is in brackets and may hold blanks: state first, then the parent.
            state, parent = file.read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(file.parent.name))
    found = [os.getpid()]
    for process in found:
        found += children.get(process, [])
    for process in found[1:]:
        with contextlib.suppress(OSError):
            folder = Path("/proc") / str(process)
            is_ssh = (folder / "comm").read_text().strip() in _SSH
            if is_ssh or name in (folder / "cmdline").read_text(errors="replace").split("\0"):
                yield process


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
