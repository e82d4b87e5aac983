"""The record of each run over one host, a file for each: written on the host, and in the same way by the controller.

The controller sends this file to a host as text, followed by a call of `main`, so it needs only the standard library.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path("/var/lib/r1prov/history")
LOCK = Path("/run/r1prov/lock.json")
KEPT = 200
"""So many records are kept of a host. The oldest go."""
MOST_SENTENCES = 40
MOST_CHARACTERS = 400
"""So many sentences are kept of one kind, and so many characters of each. A record comes to some KB at most."""


def begin(folder: Path, record: dict[str, Any]) -> None:
    """Keeps the beginning of a run. A run that begins twice, as one does that takes its lock twice, has begun once.

    Raises:
        OSError: the disk is full or cannot be written to.
    """
    if not folder.parent.is_dir():
        folder.parent.mkdir(parents=True)
        folder.parent.chmod(0o755)
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    if not _path(folder, record["run"]).exists():
        before: Any = next((each["after"] for each in reversed(read(folder)) if each.get("after")), {})
        _write(folder, {"before": before} | record)


def end(folder: Path, run: str, outcome: dict[str, Any]) -> None:
    """Adds to the record of a run how it ended. Where it has none, as after a removal, it gets none.

    Raises:
        OSError: the disk is full or cannot be written to.
    """
    record = _document(_path(folder, run))
    if record:
        _write(folder, record | {name: _bounded(value) for name, value in outcome.items()})


def read(folder: Path) -> list[dict[str, Any]]:
    """The records that are kept, oldest first. What is no record is left out."""
    found = [_document(path) for path in _files(folder)[-KEPT:]]
    return [each for each in found if each and isinstance(each.get("run"), str)]


def last(folder: Path) -> dict[str, Any]:
    """The newest record; an empty one where there is none."""
    return next((_document(path) for path in reversed(_files(folder))), {})


def main(job: dict[str, Any]) -> None:
    """Does on a host what the controller asks: adds the `outcome` of a `run`, or tells all records and who holds the host."""
    told: dict[str, Any] = {}
    if job.get("run"):
        end(FOLDER, job["run"], job["outcome"])
    else:
        told = {"records": read(FOLDER), "holder": _document(LOCK)}
    print(json.dumps(told))  # noqa: T201 - stdout is the interface


def _write(folder: Path, record: dict[str, Any]) -> None:
    """Writes a record whole or not at all, also when the power goes, and removes the oldest."""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".")  # its mode is 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
            file.flush()
            os.fsync(descriptor)
        Path(name).replace(_path(folder, record["run"]))
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    for path in _files(folder)[:-KEPT]:
        path.unlink(missing_ok=True)


def _bounded(value: Any) -> Any:
    if isinstance(value, list):
        more = [f"and {len(value) - MOST_SENTENCES} more"] if len(value) > MOST_SENTENCES else []
        return [_bounded(each) for each in value[:MOST_SENTENCES]] + more
    if isinstance(value, str) and len(value) > MOST_CHARACTERS:
        return value[: MOST_CHARACTERS - 1] + "…"
    return value


def _files(folder: Path) -> list[Path]:
    """The files of records. Their names begin with the time, so they are in order."""
    return sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))


def _path(folder: Path, run: str) -> Path:
    return folder / f"{Path(run).name}.json"


def _document(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
