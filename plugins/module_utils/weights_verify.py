"""Reads all files of a model, and says which of them are not what they should be.

A file whose bits changed on the disk keeps its size and times, so nothing that only looks at these ever notices it.
"""

from __future__ import annotations

import errno
import json
import time
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils import merged_weights
from ansible_collections.r1.prov.plugins.module_utils.digest import sha256_of
from ansible_collections.r1.prov.plugins.module_utils.files import read_json, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

WHOLE, DAMAGED = "whole", "damaged"


def expected(folder: Path, shards: list[dict[str, Any]], merged: str) -> list[dict[str, Any]]:
    """The files to read: what is served, and what else is there of the same model.

    Returns:
        `name`, `bytes` and `sha256` of each. The latter two are empty where nothing says what the file should be.
    """
    made = merged_weights.made(folder, shards)
    served = shards
    if merged:
        record = merged_weights.recorded(folder / merged, shards)
        served = [record or {"name": merged, "bytes": 0, "sha256": ""}]
    known = {file["name"]: file for file in (*shards, *made) if (folder / file["name"]).exists()}
    known |= {file["name"]: file for file in served}
    return [{key: file[key] for key in ("name", "bytes", "sha256")} for file in known.values()]


def verified(folder: Path, files: list[dict[str, Any]], progress: Progress) -> list[dict[str, Any]]:
    """Reads the files of `expected`, and changes nothing.

    Returns:
        For each file `path`, `bytes`, `sha256`, `state` (WHOLE or DAMAGED) and `why`, which is empty for a whole one.
    """
    faults = {file["name"]: _fault(folder, file) for file in files}
    progress.begin("verifying the weights", sum(file["bytes"] for file in files if not faults[file["name"]]), "bytes")
    before, rows = 0, []
    for file in files:
        path, why = folder / file["name"], faults[file["name"]]
        if not why:
            why = _difference(path, file["sha256"], _behind(progress, before))
            before += file["bytes"]
        state = DAMAGED if why else WHOLE
        rows.append({"path": str(path), "bytes": file["bytes"], "sha256": file["sha256"], "state": state, "why": why})
    progress.finish()
    return rows


def joined(began: float, kept: Path, wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a run that ended after `began` found of the same files. So a run whose connection was lost is not lost."""
    record = read_json(kept)
    rows: list[dict[str, Any]] = record["rows"] if record.get("ended", 0) > began and record["of"] == wanted else []
    return rows


def keep(kept: Path, wanted: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Writes down what was found, for whoever waits for this run."""
    write_whole(kept, json.dumps({"ended": time.time(), "of": wanted, "rows": rows}))


def _fault(folder: Path, file: dict[str, Any]) -> str:
    """What is wrong with a file at first sight; empty where it has to be read."""
    path = folder / file["name"]
    if not path.is_file():
        return "it is not there"
    if not file["sha256"]:
        return f"nothing says what it should be: {merged_weights.record_of(path).name} is lost or damaged"
    size = path.stat().st_size
    return f"it has {size} bytes, not {file['bytes']}" if size != file["bytes"] else ""


def _behind(progress: Progress, before: int) -> Callable[[int], None]:
    """Reports the bytes of one file behind those that were read before it."""
    return lambda done: progress.update(before + done)


def _difference(path: Path, sha256: str, report: Callable[[int], None]) -> str:
    """What is wrong with a file when it is read; empty where nothing is."""
    try:
        found = sha256_of(path, report)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return "its disk cannot read it"
    return f"its sha256 is {found}, not {sha256}" if found != sha256 else ""
