"""What the watcher leaves on the host: what it has seen last, for whoever asks, and how often the engine was restarted, for itself."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

A_DAY = 5
"""So many restarts in 24 hours are tried. A fault that comes back after that wants a person."""
DAY_S = 86400.0
WRITE_S = 30.0
"""So often what was seen is written, where it has not changed."""


@dataclass
class Kept:
    """What outlives the watcher, and a reboot.

    Attributes:
        restarts: when the engine was restarted, in seconds since 1970.
        stays_down_since: when it was stopped for good; None where it was not.
        prompt_s: how long it takes for a token of a prompt; None where nobody knows.
    """

    restarts: list[float] = field(default_factory=list)
    stays_down_since: float | None = None
    prompt_s: float | None = None


class Book:
    """Reads and writes both.

    Args:
        kept: the file that stays.
        last: the file for who asks.
        now_s: the time, in seconds since 1970. Somebody may set that clock.
    """

    def __init__(self, kept: Path, last: Path, now_s: Callable[[], float] = time.time) -> None:
        self._kept_file, self._last_file, self._now_s = kept, last, now_s
        self.kept = _read(kept)
        self._written: dict[str, Any] = {}
        self._written_s = 0.0

    def may_restart(self) -> bool:
        """Whether the engine may be restarted once more. If so, that is written down; else that it is to stay down."""
        now_s = self._now_s()
        self.kept.restarts = [each for each in self.kept.restarts if abs(now_s - each) < DAY_S]
        may = len(self.kept.restarts) < A_DAY
        if may:
            self.kept.restarts.append(now_s)
        else:
            self.kept.stays_down_since = now_s
        self._keep()
        return may

    def begins_anew(self) -> bool:
        """Whether the engine was to stay down and is up, because somebody has started it. From then on restarts are counted anew."""
        if self.kept.stays_down_since is None:
            return False
        self.kept = Kept(prompt_s=self.kept.prompt_s)
        self._keep()
        return True

    def learn(self, prompt_s: float | None) -> None:
        """Keeps how long a token of a prompt takes. A small change is not worth a write."""
        known = self.kept.prompt_s
        if prompt_s and (not known or abs(prompt_s / known - 1) > 0.2):
            self.kept.prompt_s = prompt_s
            self._keep()

    def tell(self, at_s: float, **seen: Any) -> None:
        """Writes what was seen, for whoever asks. The times in it are of the clock that nobody sets."""
        constant = {key: value for key, value in seen.items() if key != "alive_s"}
        if constant == self._written and at_s - self._written_s < WRITE_S:
            return
        self._written, self._written_s = constant, at_s
        _write(self._last_file, {**seen, "looked_s": at_s})

    def _keep(self) -> None:
        _write(self._kept_file, asdict(self.kept))


def _read(path: Path) -> Kept:
    """What was kept; a beginning where nothing was, or where a power cut has left half of it."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return Kept([float(each) for each in told["restarts"]], told["stays_down_since"], told["prompt_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return Kept()


def _write(path: Path, content: dict[str, Any]) -> None:
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(json.dumps(content) + "\n", encoding="utf-8")
    fresh.replace(path)
