"""How a program hears that somebody wants its end."""

from __future__ import annotations

import os
import signal
import stat
import time
from contextlib import suppress

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, the polite `kill`, and a terminal that was closed."""

ECHO_S = 1.0
"""Signals that follow one another within so many seconds are one wish. A closed terminal is told by the kernel and by the shell, and
`timeout` sends its signal to the program and to its group."""

_heard_s = float("-inf")


def heed() -> None:
    """Let each of ENDS raise KeyboardInterrupt.

    SIGINT does so even where it was ignored: a shell lets what a script starts in the background ignore it, and whoever ignores a signal
    hands that on to its children. SIGHUP stays ignored where `nohup` wants that.
    """
    for number in ENDS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, _: object) -> None:
    global _heard_s
    if number == signal.SIGHUP:
        _leave_terminal()
    before, _heard_s = _heard_s, time.monotonic()
    if _heard_s - before > ECHO_S:
        raise KeyboardInterrupt


def _leave_terminal() -> None:
    """Talk to nobody where the terminal is gone, for an error of writing must not stop the tidying up."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                nobody = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nobody, descriptor)
                os.close(nobody)
