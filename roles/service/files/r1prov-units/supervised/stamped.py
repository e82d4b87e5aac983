"""Gives each line of a log the time at which it came. supervisord, which keeps the log, cannot."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE_S = 2.0
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ")


@contextmanager
def stamped() -> Iterator[None]:
    """Puts the time before each line that this process and its children print meanwhile.

    A thread does it, because another process would be one more than the unit has. What a service has printed when it dies is in the pipe,
    and is read from there.
    """
    real = os.dup(sys.stdout.fileno())
    reads, writes = os.pipe()
    _print_to(writes)
    copying = threading.Thread(target=_copy, args=(reads, real), daemon=True)
    copying.start()
    try:
        yield
    finally:
        _print_to(real)
        copying.join(_PATIENCE_S)  # Something that goes on may have the pipe open.


def without(line: str) -> str:
    """A line as it was printed."""
    found = _STAMP.match(line)
    return line[found.end() :] if found else line


def _print_to(descriptor: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())


def _copy(reads: int, writes: int) -> None:
    is_new = True
    while data := os.read(reads, 1 << 16):
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime()).encode()
        lines = io.BytesIO(data).readlines()
        out = b"".join((stamp if number or is_new else b"") + line for number, line in enumerate(lines))
        is_new = data.endswith(b"\n")
        # Where supervisord is gone, nobody reads. A service that has to end must not wait for that.
        with suppress(OSError):
            while out:
                out = out[os.write(writes, out) :]
