"""The rate of a count and the time that is left, from samples of the count."""

from __future__ import annotations

from collections import deque

WINDOW_S = 20.0
WINDOW_CHANGES = 12
"""The rate is that of the last seconds and at least of so many changes: calm where files are compiled one by one, quick
to follow a link that changes."""

PLAIN_EVERY_S = 10.0
"""Without a terminal, at least this many seconds pass between two lines of progress."""


class Pace:
    """The rate of one count. All times are seconds of the same clock."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()

    def add(self, done: float, at_s: float) -> None:
        """Add a sample: `done` units were done at `at_s`. A count that goes back starts again without samples."""
        if self._samples and (done < self._samples[-1][1] or at_s < self._samples[-1][0]):
            self._samples.clear()
        if len(self._samples) > 1 and done == self._samples[-1][1] == self._samples[-2][1]:
            self._samples.pop()  # standing still is no change, but its time counts
        self._samples.append((at_s, done))
        while self._samples[-1][0] - self._samples[0][0] > WINDOW_S and len(self._samples) > WINDOW_CHANGES:
            self._samples.popleft()

    @property
    def per_second(self) -> float | None:
        """The units per second, or None until the samples span one second."""
        if not self._samples:
            return None
        (first_s, first), (last_s, last) = self._samples[0], self._samples[-1]
        return (last - first) / (last_s - first_s) if last_s - first_s >= 1 else None

    def left_s(self, total: float) -> float | None:
        """Return the seconds until `total` is reached, or None if nothing moves or the total is not known."""
        rate = self.per_second
        if not rate or not total:
            return None
        return max(0.0, total - self._samples[-1][1]) / rate


def clock(seconds: float) -> str:
    """Format seconds as `0:07`, `12:34` or `2:03:04`."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
