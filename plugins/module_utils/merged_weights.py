"""The one file that a model's published files were made into, and what is recorded of it.

`NAME.json` beside it says what it was made of, which form its attention has and what its sha256 is. The transfer's `state.json` says how it
looked when it was verified, so that it is not read again until it changes. The program of the role weights, which stands alone, reads both.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils.files import looks_of, read_json, sync_folder, write_whole
from ansible_collections.r1.prov.plugins.module_utils.mla_form import LEGACY, MLA

if TYPE_CHECKING:
    import os

    from ansible_collections.r1.prov.plugins.module_utils.piece_digests import Sums

STATE = Path("/var/lib/r1prov/weights/state.json")


class NotThereError(Exception):
    """The files that are served are not as they were when they were verified."""


def record_of(file: Path) -> Path:
    """The file that records what a merged file was made of."""
    return file.with_name(f"{file.name}.json")


def pieces_kept(sha256: str, state: Path = STATE) -> Path:
    """Where the digests of the pieces of a published file with this sha256 lie (`pieces.py`)."""
    return state.parent / "pieces" / f"{Path(sha256).name}.json"


def recorded(file: Path, shards: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What is recorded of a merged file: name, bytes, sha256, and its form (attention). None where it was not made of these shards."""
    record = read_json(record_of(file))
    try:
        sources = [shard["sha256"] for shard in record["shards"]]
        if record["name"] != file.name or sources != [shard["sha256"] for shard in shards]:
            return None
        return {key: record[key] for key in ("name", "bytes", "sha256", "attention")}
    except (KeyError, TypeError):
        return None


def about(file: Path, sums: Sums, attention: str) -> dict[str, Any]:
    """What `recorded` says of a file that has this name, these digests, and the attention of this form."""
    return {"name": file.name, "bytes": sums.bytes, "sha256": sums.sha256, "attention": attention}


def record(file: Path, sums: Sums, attention: str, shards: list[dict[str, Any]]) -> None:
    """Records what a file was made of. A file without a record is made anew, and a record alone means nothing, so this comes first."""
    content = {**about(file, sums, attention), "shards": shards, "pieces": sums.pieces}
    write_whole(record_of(file), json.dumps(content))


def made_of(folder: Path, shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records in a folder of all files that were made of these shards. The files themselves may be gone or cut short."""
    files = (path.with_suffix("") for path in sorted(folder.glob("*.gguf.json")))
    return [record for file in files if (record := recorded(file, shards))]


def made(folder: Path, shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of those of these files that are there and have their full length."""
    rows = [(folder / record["name"], record) for record in made_of(folder, shards)]
    return [record for file, record in rows if file.is_file() and file.stat().st_size == record["bytes"]]


def stand_in(folder: Path, name: str, attention: str, shards: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The file that takes the place of the shards: the one that is to be made of them, else one that it can be made of; or None."""
    return next(iter(instead_of(made(folder, shards), name, attention)), None)


def instead_of(records: list[dict[str, Any]], name: str, attention: str) -> list[dict[str, Any]]:
    """Those of the records whose files take the place of the shards, the best first.

    Args:
        records: of files that were made of the shards.
        name: the file that is to be made of them; empty where they are served themselves.
        attention: the form of that file.
    """
    usable = [each for each in records if each["name"] == name or (attention, each["attention"]) == (MLA, LEGACY)]
    return sorted(usable, key=lambda record: bool(record["name"] != name)) if name else []


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


def replaced(folder: Path, keep: str, files: list[dict[str, Any]], state: Path = STATE) -> list[Path]:
    """The files of a model that are there and are not served.

    Args:
        folder: the model's folder.
        keep: the file that is served; empty where the published files are.
        files: the published files.
        state: what the transfer has recorded.

    Raises:
        NotThereError: the served file is not as it was verified, so it is safer to keep all.
    """
    served = [recorded(folder / keep, files)] if keep else files
    if not all(served) or not is_as_verified(folder, [file for file in served if file], state):
        raise NotThereError(
            f"{folder / (keep or files[0]['name'])} is not there as it was verified, so nothing is removed"
        )
    names = [file["name"] for file in (*files, *made(folder, files)) if file not in served]
    return [folder / name for name in names if (folder / name).exists()]


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


def remove(files: list[Path], state: Path = STATE) -> None:
    """Removes files and what is recorded of them."""
    known = read_json(state).get("verified", {})
    forget(files, state)  # First the record: nothing may be recorded of a file that is gone.
    for file in files:
        record_of(file).unlink(missing_ok=True)
        pieces_kept(known.get(str(file), {}).get("sha256", ""), state).unlink(missing_ok=True)
        file.unlink()
    sync_folder(files[0].parent)
