"""What this program tells others: state.json, which outlives it, and progress.json."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils.files import read_json, write_whole
from ansible_collections.r1.prov.plugins.module_utils.weights_kept import seen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from transfer.sources import File

PROGRESS_EVERY_S = 0.5


class Record:
    """The file state.json. It says how this run goes, and which files have been verified, so that they are not read again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.read()

    def read(self) -> None:
        """Reads the file. Another process may have written it while this one waited."""
        self._content = read_json(self._path)
        self._verified = self._content.setdefault("verified", {})

    def say(self, state: str, message: str = "", damaged: Sequence[str] = ()) -> None:
        """Writes down how the run goes, and what it found damaged. The invocation tells this start of the unit from an earlier one.

        A run by hand has none. What is written of the unit stays then, because others wait for that.
        """
        if invocation := os.environ.get("INVOCATION_ID"):
            self._content |= {"state": state, "message": message, "invocation": invocation, "damaged": list(damaged)}
        write_whole(self._path, json.dumps(self._content))

    def knows(self, path: Path, file: File) -> bool:
        """Whether this very file was verified and has not been touched since."""
        return path.exists() and self._verified.get(str(path)) == seen(path, file.sha256)

    def add(self, path: Path, kept: dict[str, Any]) -> None:
        """Remembers how a verified file looked before it was read (`seen`), and when it was verified."""
        self._verified[str(path)] = kept
        self._content.setdefault("when", {})[str(path)] = time.time()
        write_whole(self._path, json.dumps(self._content))

    def came(self, file: File, origins: Mapping[str, int]) -> None:
        """Remembers which sources have brought how many bytes of a file, whose journal goes now. `add` writes it down."""
        self._content.setdefault("came", {})[file.sha256] = {"from": dict(origins), "at": time.time()}


class Progress:
    """The file progress.json, by which others see how this run goes (ARCHITECTURE.md, "Progress")."""

    def __init__(self, path: Path, total: int) -> None:
        self._path = path
        self._label, self._written_s = "", 0.0
        self.remark = ""  # stands behind every label
        self.total = total
        self.done = 0  # of the files that are whole

    def show(
        self,
        label: str,
        partial_bytes: int = 0,
        *,
        state: str = "running",
        sources: Sequence[str] = (),
        verifying: str = "",
    ) -> None:
        """Writes the file, unless it was written just now and only the bytes have changed since.

        Args:
            label: what goes on.
            partial_bytes: what is there of files that are not whole.
            state: `running`, `done` or `failed`.
            sources: those that bring something.
            verifying: which files are being verified, and how far.
        """
        if (label, state) == (self._label, "running") and time.monotonic() - self._written_s < PROGRESS_EVERY_S:
            return
        content = {
            "step": "weights",
            "label": label + self.remark,
            "done": self.done + partial_bytes,
            "total": self.total,
        }
        content |= {"unit": "bytes", "state": state, "updated": time.time()}
        content |= {"sources": list(sources), "verifying": verifying}
        write_whole(self._path, json.dumps(content))
        self._label, self._written_s = label, time.monotonic()
