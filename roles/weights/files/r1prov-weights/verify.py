#!/usr/bin/python3
"""Reads all weights of a host now and then, while nobody else wants its disk, and keeps what it found.

    verify.py JOB

Runs as r1prov-weights-read.service, which its timer starts every day. JOB is a JSON file: `folder`, `files` (name, bytes, sha256),
`merged` (the file that is made of them and served; empty where they are themselves), `every_s` (how old a verification may be).

It reads by the same code as the module `weights` of the collection, which the role installs beside it. Before each piece it waits until
nobody else reads or writes much on the disk, and while a run holds the host. It changes no weights. What is damaged is forgotten as
verified, so that the next run of r1prov brings it anew. The standard library of Python 3.10 only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.dont_write_bytecode = True  # It would be left beside the program when root runs this by hand.
sys.path.insert(0, str(Path(__file__).resolve().parent))  # The unit has Python look at nothing but its own library.

from ansible_collections.r1.prov.plugins.module_utils import weights_kept, weights_verify  # noqa: E402
from ansible_collections.r1.prov.plugins.module_utils.disk_look import moved_bytes  # noqa: E402
from ansible_collections.r1.prov.plugins.module_utils.files import looks, read_json  # noqa: E402
from ansible_collections.r1.prov.plugins.module_utils.piece_digests import PIECE_BYTES  # noqa: E402
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

LOCK = Path("/run/r1prov/lock.json")
PATIENCE_S = 2 * 86400.0
POLL_S = 5.0
QUIET_BYTES_S = 1 << 20
BUSY_SHARE = 4


class Yielding:
    """Waits until the disk is nobody else's, for two days at most in all. After that the kernel alone sees to it that others go first."""

    def __init__(
        self,
        folder: Path,
        *,
        lock: Path = LOCK,
        sleep: Callable[[float], None] = time.sleep,
        moved: Callable[[Path], int | None] = moved_bytes,
    ) -> None:
        self._folder, self._lock, self._sleep, self._moved = folder, lock, sleep, moved
        self._left_s = PATIENCE_S
        self._before: int | None = None

    def rest(self) -> None:
        """Returns when the next piece may be read."""
        now, is_busy = self._moved(self._folder), False
        if now is not None and self._before is not None:
            others = now - self._before - PIECE_BYTES  # while one piece was read
            is_busy = others > PIECE_BYTES // BUSY_SHARE
        while self._left_s > 0 and (is_busy or self._lock.exists()):
            before = self._moved(self._folder)
            self._sleep(POLL_S)
            self._left_s -= POLL_S
            now = self._moved(self._folder)
            is_busy = now is not None and before is not None and now - before > QUIET_BYTES_S * POLL_S
        self._before = now


def is_due(folder: Path, files: list[dict[str, Any]], every_s: float, state: Path, read: Path) -> bool:
    """Whether one of the files was not verified for so long."""
    when, readings = read_json(state).get("when", {}), read_json(read).get("files", {})
    paths = [str(folder / file["name"]) for file in files]
    known = [max(when.get(path, 0), readings.get(path, {}).get("at", 0)) for path in paths]
    return any(time.time() - at >= every_s for at in known)


def main() -> None:
    """Read what is due."""
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    state = Path(os.environ["STATE_DIRECTORY"]) / weights_kept.STATE.name
    read = state.with_name(weights_kept.READ.name)
    run(job, state, read, Path(os.environ["RUNTIME_DIRECTORY"]))


def run(job: dict[str, Any], state: Path, read: Path, progress: Path, lock: Path = LOCK) -> None:
    """Read what is due, keep what was found, and say it to the journal."""
    folder = Path(job["folder"])
    if not folder.is_dir() or read_json(state).get("state") != "done" or lock.exists():
        return  # Nothing was brought yet, or a run is at work. The timer comes again tomorrow.
    files = weights_verify.expected(folder, job["files"], job["merged"])
    if not is_due(folder, files, job["every_s"], state, read):
        return
    paths = [folder / file["name"] for file in files]
    before = [looks(path) for path in paths]
    rest = Yielding(folder, lock=lock).rest
    rows = weights_verify.verified(folder, files, Progress("weights", progress), state=state, cores=1, rest=rest)
    # What a run has replaced meanwhile, that has verified.
    rows = [row for row, path, looked in zip(rows, paths, before, strict=True) if looks(path) == looked]
    weights_kept.forget([Path(row["path"]) for row in rows if row["why"]], state)
    weights_kept.remember_reading(rows, "timer", read)
    for row in rows:
        if row["why"]:
            _say("<4>", f"{row['path']} is damaged: {row['why']}. `r1prov up` brings it anew")
    if not any(row["why"] for row in rows):
        _say("<6>", f"{len(rows)} files are whole")


def _say(priority: str, text: str) -> None:
    """Print a line, which becomes one of the journal."""
    print(priority + text, flush=True)  # noqa: T201 - stdout is the journal


if __name__ == "__main__":
    main()
