"""Progress of a long step on a host, where the controller can read it while the step runs.

The format is described in ARCHITECTURE.md ("Progress").
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from ansible_collections.r1.prov.plugins.module_utils.files import read_json, write_whole

RUN = Path("/run/r1prov")
_INTERVAL_S = 0.5
_WAITING = "waiting: "
_SILENT_S = 300
"""A compiler may take so long for one file, and nothing is told meanwhile."""


class Progress:
    """Writes `/run/r1prov/STEP/progress.json`, at most twice a second. STEP is the name of the role."""

    def __init__(self, step: str, run: Path = RUN) -> None:
        self._step, self._file = step, run / step / "progress.json"
        self._label, self._total, self._unit, self._done = "starting", 0, "steps", 0
        self._written = 0.0
        self._file.parent.mkdir(parents=True, exist_ok=True)

    def begin(self, label: str, total: int, unit: str) -> None:
        """Begins a part of the step, such as `compiling`. It has so many `steps` or `bytes`, or 0 where that is not known."""
        self._label, self._total, self._unit, self._done = label, total, unit, 0
        self._write("running")

    def wait(self, why: str) -> None:
        """Says what the step waits for."""
        self.begin(f"{_WAITING}{why}", 0, "steps")

    def wait_for(self, other: str) -> None:
        """Says which other process has what the step wants. One that does the same step and tells how far it is says more itself."""
        told = read_json(self._file)
        is_at_it = told.get("state") == "running" and not str(told.get("label", "")).startswith(_WAITING)
        if not is_at_it or time.time() - told.get("updated", 0) > _SILENT_S:
            self.wait(other)

    def update(self, done: int, total: int | None = None) -> None:
        """Says how many units are done, and how many there are where that became known or changed."""
        self._done = done
        self._total = self._total if total is None else total
        if time.monotonic() - self._written >= _INTERVAL_S:
            self._write("running")

    def finish(self, *, failed: bool = False) -> None:
        """Says that the step is over. Unless it failed, the part counts as complete."""
        self._done = self._done if failed else self._total
        self._write("failed" if failed else "done")

    def _write(self, state: str) -> None:
        self._written = time.monotonic()
        content = {"step": self._step, "label": self._label, "done": self._done, "total": self._total}
        write_whole(self._file, json.dumps({**content, "unit": self._unit, "state": state, "updated": time.time()}))
