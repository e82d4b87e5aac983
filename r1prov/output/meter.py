"""The progress of one long step of this machine."""

from __future__ import annotations

import time
from typing import Self

from rich.live import Live
from rich.text import Text

from r1prov.output.amounts import amounts
from r1prov.output.console import err, lines
from r1prov.output.pace import PLAIN_EVERY_S, Pace


class Meter:
    """The progress of one long step of this machine.

    A terminal shows one moving line. Elsewhere a line is printed every `PLAIN_EVERY_S` seconds.

    Args:
        label: the name of the step.
        unit: the unit of its amounts, `bytes` or `steps`.
    """

    def __init__(self, label: str, unit: str = "bytes") -> None:
        self._label = label
        self._unit = unit
        self._pace = Pace()
        self._said_s = time.monotonic()
        self._text = Text(label)
        self._live = (
            Live(get_renderable=lambda: self._text, console=err, refresh_per_second=4, transient=True)
            if err.is_interactive
            else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` units are done."""
        now_s = time.monotonic()
        self._pace.add(done, now_s)
        self._text = Text(f"{self._label}: {done / total:.0%}, {amounts(done, total, self._unit, self._pace)}")
        if not self._live and now_s - self._said_s >= PLAIN_EVERY_S:
            self._said_s = now_s
            lines(err, self._text)
