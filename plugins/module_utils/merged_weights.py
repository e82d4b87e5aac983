"""The one file that a model's published files were made into, and what is remembered of it.

`NAME.json` beside it says what it was made of, which form its attention has and what its sha256 is; the transfer's `state.json` how it
looked when it was verified, so that it is not read again until it changes. roles/weights/files/fetch.py, which stands alone, reads both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible_collections.r1.prov.plugins.module_utils.files import read_json, sync_folder, write_whole

STATE = Path("/var/lib/r1prov/weights/state.json")

MLA, LEGACY = "mla", "legacy"
"""The forms of a file: with latent attention (MLA), or with the attention with which it was published."""


def record_of(file: Path) -> Path:
    """The file that records what a merged file was made of."""
    return file.with_name(f"{file.name}.json")


def recorded(file: Path, shards: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What is recorded of a merged file: name, bytes, sha256, and its form (attention). None where it was not made of these shards."""
    try:
        record = json.loads(record_of(file).read_text("utf-8"))
        made_of = [shard["sha256"] for shard in record["shards"]]
        if record["name"] != file.name or made_of != [shard["sha256"] for shard in shards]:
            return None
        return {key: record[key] for key in ("name", "bytes", "sha256", "attention")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def made(folder: Path, shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of all files in a folder that were made of these shards and have their full length."""
    files = [path.with_suffix("") for path in sorted(folder.glob("*.gguf.json"))]
    return [
        found
        for file in files
        if (found := recorded(file, shards)) and file.is_file() and file.stat().st_size == found["bytes"]
    ]


def stand_in(folder: Path, name: str, attention: str, shards: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The file that takes the place of the shards: the one that is to be made of them, else one that it can be made of; or None."""
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


class NotThereError(Exception):
    """The files that are served are not as they were when they were verified."""


def replaced(folder: Path, keep: str, files: list[dict[str, Any]], state: Path = STATE) -> list[Path]:
    """The files of a model that are there and are not served.

    Args:
        folder: the model's.
        keep: the one that is served; empty where `files` are.
        files: the published ones.
        state: what the transfer remembers.

    Raises:
        NotThereError: it is safer to keep all.
    """
    served = [recorded(folder / keep, files)] if keep else files
    if not all(served) or not is_as_verified(folder, [file for file in served if file], state):
        raise NotThereError(
            f"{folder / (keep or files[0]['name'])} is not there as it was verified, so nothing is removed"
        )
    names = [file["name"] for file in (*files, *made(folder, files)) if file not in served]
    return [folder / name for name in names if (folder / name).exists()]


def remove(files: list[Path], state: Path = STATE) -> None:
    """Removes files and what is remembered of them."""
    before = remembered(state)
    known = {path: looks for path, looks in before.get("verified", {}).items() if Path(path) not in files}
    # In this order: of a file that is gone nothing may be remembered.
    write_whole(state, json.dumps({**before, "verified": known}))
    for file in files:
        record_of(file).unlink(missing_ok=True)
        file.unlink()
    sync_folder(files[0].parent)
