"""Whether a command has printed its JSON document."""

from __future__ import annotations

import threading

document = threading.Event()


def begin() -> None:
    """Begin a command, which has printed no document yet."""
    document.clear()
