"""What all measurements share: a time limit, progress for others to see, and a result that is written whole after each step."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

PROGRESS = Path("/run/r1prov/measure/progress.json")


class FailedError(Exception):
    """Something cannot be measured; the message says why."""


class Work:
    """One job, from its start on.

    Args:
        job: what is measured. It has at least `limit_s` (seconds, for all of it) and `result` (the file that gets the result).
        total: how many steps it has.
    """

    def __init__(self, job: dict[str, Any], total: int) -> None:
        self.job, self.total, self.done = job, total, 0
        self.result = Path(job["result"])
        self.ends_s: float = time.monotonic() + job["limit_s"]

    @property
    def left_s(self) -> float:
        """The seconds that are left of the limit."""
        return self.ends_s - time.monotonic()

    def known(self, key: str) -> list[dict[str, Any]]:
        """What an earlier start of the same job has measured, from its result. Another limit does not make it another job."""
        try:
            earlier = json.loads(self.result.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        same = {**earlier.get("job", {}), "limit_s": self.job["limit_s"]} == self.job
        found: list[dict[str, Any]] = earlier[key] if same else []
        return found

    def write(self, state: str, **found: Any) -> None:
        """Writes the result so far. `state` is `running` or `done`."""
        replace(self.result, {"job": self.job, "state": state, **found})

    def tell(self, what: str) -> None:
        """Says what is measured now, and how long all of it may still take."""
        left_s = max(0.0, self.left_s)
        left = f"{left_s / 60:.0f} min" if left_s >= 90 else f"{left_s:.0f} s"
        self.show(f"{what}; at most {left} more")

    def show(self, label: str, state: str = "running") -> None:
        """What others see of this run: progress.json (ARCHITECTURE.md, "Progress")."""
        replace(PROGRESS, progress(label, self.done, self.total, state))


def progress(label: str, done: int, total: int, state: str) -> dict[str, Any]:
    """The content of progress.json."""
    at = {"label": label, "done": done, "total": total, "unit": "steps"}
    return {"step": "measure", **at, "state": state, "updated": time.time()}


def replace(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file, which appears whole. Where that cannot be, nothing can be kept of the measurement, and it ends."""
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        sys.exit(f"{path} cannot be written: {error.strerror}")
