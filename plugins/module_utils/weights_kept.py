"""What is kept on a host of the files of its models: which were verified, and what the last reading of each has found.

`state.json` has the former, by how a file looked then, so that none is read again until it changes. The transfer writes that file, too.
`read.json` has the latter.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils.files import looks_of, read_json, write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

STATE = Path("/var/lib/r1prov/weights/state.json")
READ = STATE.with_name("read.json")
WHOLE, DAMAGED = "whole", "damaged"
"""What a reading finds of a file."""


def seen(path: Path, sha256: str) -> dict[str, Any]:
    """What is kept of a verified file: its sha256, and how it looks from outside."""
    return as_kept(path.stat(), sha256)


def as_kept(status: os.stat_result, sha256: str) -> dict[str, Any]:
    """The same of a file whose status is known."""
    return {"sha256": sha256, **looks_of(status)}


def is_as_verified(folder: Path, files: list[dict[str, Any]], state: Path = STATE) -> bool:
    """Whether each file looks as it did when it was verified."""
    known = read_json(state).get("verified", {})
    paths = [(folder / file["name"], file["sha256"]) for file in files]
    try:
        return all(known.get(str(path)) == seen(path, sha256) for path, sha256 in paths)
    except FileNotFoundError:
        return False


def remember(file: Path, sha256: str, state: Path = STATE) -> None:
    """Adds a verified file to what the transfer knows, and when it was verified."""
    record = read_json(state)
    known = {
        "verified": {**record.get("verified", {}), str(file): seen(file, sha256)},
        "when": {**record.get("when", {}), str(file): time.time()},
    }
    write_whole(state, json.dumps({**record, **known}))


def forget(files: list[Path], state: Path = STATE) -> None:
    """Takes from what the transfer knows that these files were verified. So it reads them again, and brings anew what is wrong."""
    record = read_json(state)
    known = record.get("verified", {})
    kept = {path: looks for path, looks in known.items() if Path(path) not in files}
    if kept != known:
        when = {path: at for path, at in record.get("when", {}).items() if path in kept}
        write_whole(state, json.dumps({**record, "verified": kept, "when": when}))


def said_damaged(state: Path = STATE) -> None:
    """Takes from what the transfer found that files were damaged, because somebody has been told."""
    write_whole(state, json.dumps({**read_json(state), "damaged": []}))


def remember_reading(rows: list[dict[str, Any]], by: str, read: Path = READ) -> None:
    """Writes down what was found and when, for whoever asks later. What is known of other files that are still there stays.

    Args:
        rows: of what was read, as `verified` of weights_verify returns them.
        by: who has read: `run` or `timer`.
        read: where it is kept.
    """
    before = read_json(read).get("files", {})
    kept = {path: row for path, row in before.items() if os.path.lexists(path)}
    now = time.time()
    new = {row["path"]: {**{key: row[key] for key in ("sha256", "state", "why", "places")}, "at": now} for row in rows}
    write_whole(read, json.dumps({"schema": 1, "ended": now, "by": by, "files": {**kept, **new}}))


def standing(readings: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the last reading of each file has found. One that was brought or made anew since is left out.

    Args:
        readings: the content of `read.json`.
        state: the content of `state.json`.
    """
    when = state.get("when", {})
    return {path: each for path, each in readings.get("files", {}).items() if when.get(path, 0) <= each["at"]}


def damage(file: Path, state: Path = STATE, read: Path = READ) -> dict[str, str]:
    """What the last reading of a file has found wrong, `why` and on which `day`; nothing where it was brought anew since."""
    found = standing(read_json(read), read_json(state)).get(str(file), {})
    if not found.get("why"):
        return {}
    return {"why": found["why"], "day": time.strftime("%Y-%m-%d", time.gmtime(found["at"]))}


def last_reading(state: Path = STATE, read: Path = READ) -> dict[str, Any] | None:
    """When files were read last, `by` whom, and which are `damaged` still, and why. None where nobody has read them."""
    readings = read_json(read)
    if "ended" not in readings:
        return None
    damaged = {path: each["why"] for path, each in standing(readings, read_json(state)).items() if each["why"]}
    ended = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(readings["ended"]))
    return {"read": ended, "by": readings["by"], "damaged": damaged}
