"""The one file that a model's shards were merged into, and what is remembered of it.

`merged.json` beside it says what it was made of and what its sha256 is; the transfer's `state.json` how it looked when it
was verified, so that it is not read again until it changes. roles/weights/files/fetch.py, which stands alone, reads the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STATE = Path("/var/lib/r1prov/weights/state.json")
RECORD = "merged.json"


def recorded(folder: Path, name: str, shards: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The merged file as a file that is wanted (name, bytes, sha256); None where there is none of these shards."""
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        made_of = [shard["sha256"] for shard in record["shards"]]
        if record["name"] != name or made_of != [shard["sha256"] for shard in shards]:
            return None
        return {key: record[key] for key in ("name", "bytes", "sha256")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def seen(path: Path, sha256: str) -> dict[str, Any]:
    """How a verified file looks from outside."""
    status = path.stat()
    return {
        "sha256": sha256,
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "inode": status.st_ino,
    }


def remembered(state: Path = STATE) -> dict[str, Any]:
    """What the transfer wrote down: how it went, and the verified files by path."""
    try:
        return json.loads(state.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def is_as_verified(folder: Path, files: list[dict[str, Any]], state: Path = STATE) -> bool:
    """Whether each file looks as it did when it was verified."""
    known = remembered(state).get("verified", {})
    try:
        return all(
            known.get(str(folder / file["name"])) == seen(folder / file["name"], file["sha256"]) for file in files
        )
    except FileNotFoundError:
        return False
