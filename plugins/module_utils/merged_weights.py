"""The one file that a model's published files were made into, and what is recorded of it.

`NAME.json` beside it says what it was made of, which form its attention has, what its sha256 is and what those of its pieces are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils.files import read_json, sync_folder, write_whole
from ansible_collections.r1.prov.plugins.module_utils.mla_form import LEGACY, MLA
from ansible_collections.r1.prov.plugins.module_utils.weights_kept import STATE, forget, is_as_verified

if TYPE_CHECKING:
    from ansible_collections.r1.prov.plugins.module_utils.piece_digests import Sums


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


def remove(files: list[Path], state: Path = STATE) -> None:
    """Removes files and what is recorded of them."""
    known = read_json(state).get("verified", {})
    forget(files, state)  # First the record: nothing may be recorded of a file that is gone.
    for file in files:
        record_of(file).unlink(missing_ok=True)
        pieces_kept(known.get(str(file), {}).get("sha256", ""), state).unlink(missing_ok=True)
        file.unlink()
    sync_folder(files[0].parent)
