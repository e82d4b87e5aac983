"""The digests of a file's pieces, 16 MiB each, by which damage has a place.

A file that was made here has them in the record beside it (`FILE.json`), as `"pieces": {"bytes": 16777216, "sha256": [...]}`. Those of a
published file lie with the state of the transfer, under the sha256 of the whole file, because nothing lies beside that file.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils.files import read_json, write_whole
from ansible_collections.r1.prov.plugins.module_utils.merged_weights import pieces_kept, record_of
from ansible_collections.r1.prov.plugins.module_utils.piece_digests import PIECE_BYTES, as_record
from ansible_collections.r1.prov.plugins.module_utils.weights_kept import STATE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def recorded_pieces(file: Path, size: int, sha256: str, state: Path = STATE) -> list[str]:
    """The digests of the pieces of a file that has this size and sha256. Empty where they are not known.

    Args:
        file: the file, which may be damaged or gone.
        size: its bytes.
        sha256: its digest.
        state: what the transfer has recorded.
    """
    for document in (_of(read_json(record_of(file)), sha256), read_json(pieces_kept(sha256, state))):
        found = document.get("pieces")
        if (
            not isinstance(found, dict)
            or found.get("bytes") != PIECE_BYTES
            or not isinstance(found.get("sha256"), list)
        ):
            continue
        digests: list[str] = found["sha256"]
        if len(digests) == -(-size // PIECE_BYTES) and all(isinstance(each, str) for each in digests):
            return digests
    return []


def record_pieces(file: Path, sha256: str, digests: Sequence[str], state: Path = STATE) -> None:
    """Records the digests of the pieces of a file that has this sha256, where they belong."""
    record = read_json(record_of(file))
    if _of(record, sha256):
        write_whole(record_of(file), json.dumps({**record, "pieces": as_record(digests)}))
        return
    kept = pieces_kept(sha256, state)
    kept.parent.mkdir(mode=0o755, exist_ok=True)
    write_whole(kept, json.dumps({"pieces": as_record(digests)}))


def _of(record: dict[str, Any], sha256: str) -> dict[str, Any]:
    """The record beside a file, where it is of the file with this sha256; else an empty one."""
    return record if isinstance(record, dict) and record.get("sha256") == sha256 else {}
