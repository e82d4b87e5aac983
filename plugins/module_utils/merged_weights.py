"""The one file that a model's published files were made into, and what is remembered of it.

`NAME.json` beside it says what it was made of, which form its attention has and what its sha256 is; the transfer's `state.json` how it
looked when it was verified, so that it is not read again until it changes. roles/weights/files/fetch.py, which stands alone, reads both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible_collections.r1.prov.plugins.module_utils.files import read_json

STATE = Path("/var/lib/r1prov/weights/state.json")

MLA, LEGACY = "mla", "legacy"
"""Forms of a file: brought into latent attention, or as it was published, whatever it has."""

FOLDER = {
    "path": {"type": "path", "required": True},
    "owner": {"type": "str", "required": True},
    "files": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "bytes": {"type": "int", "required": True},
            "sha256": {"type": "str", "required": True},
        },
    },
}
"""The options that all modules of a model's folder have; plugins/doc_fragments/weights.py describes them."""


def record_of(file: Path) -> Path:
    """Where it is written down what a file was made of."""
    return file.with_name(f"{file.name}.json")


def recorded(file: Path, shards: list[dict[str, Any]]) -> dict[str, Any] | None:
    """A file as one that is wanted (name, bytes, sha256), and its form (attention); None where it was not made of these shards."""
    try:
        record = json.loads(record_of(file).read_text("utf-8"))
        made_of = [shard["sha256"] for shard in record["shards"]]
        if record["name"] != file.name or made_of != [shard["sha256"] for shard in shards]:
            return None
        return {key: record[key] for key in ("name", "bytes", "sha256", "attention")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def made(folder: Path, shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All files in a folder that were made of these shards and are there in full length, as `recorded` tells of them."""
    files = [path.with_suffix("") for path in sorted(folder.glob("*.gguf.json"))]
    return [
        found
        for file in files
        if (found := recorded(file, shards)) and file.is_file() and file.stat().st_size == found["bytes"]
    ]


def stand_in(folder: Path, name: str, attention: str, shards: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What is there in place of the shards: the file that is wanted of them, else one that it can be made of."""
    there = made(folder, shards) if name else []
    wanted = [found for found in there if found["name"] == name]
    published = [found for found in there if (attention, found["attention"]) == (MLA, LEGACY)]
    return next(iter(wanted + published), None)


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
    return read_json(state)


def is_as_verified(folder: Path, files: list[dict[str, Any]], state: Path = STATE) -> bool:
    """Whether each file looks as it did when it was verified."""
    known = remembered(state).get("verified", {})
    try:
        return all(
            known.get(str(folder / file["name"])) == seen(folder / file["name"], file["sha256"]) for file in files
        )
    except FileNotFoundError:
        return False
