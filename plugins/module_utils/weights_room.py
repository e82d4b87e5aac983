"""Which way the files of a model take, by what of it lies on a host, and how much of the disk that takes.

The transfer goes by it, and preflight says beforehand what the transfer will want.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils.files import allocated_bytes
from ansible_collections.r1.prov.plugins.module_utils.merged_weights import stand_in

if TYPE_CHECKING:
    from pathlib import Path

ASIDE_SHARE = 0.01
"""What lies beside the one file until all is verified, as a share of it. Of R1 it is 0.7 %."""


def aside_of(incoming: Path, sha256: str) -> Path:
    """Where the bytes of a published file lie that are not in the one file as they are."""
    return incoming / f"{sha256}.aside"


def journal_of(path: Path) -> Path:
    """Where the journal of a file on its way lies."""
    return path.with_name(f"{path.name}.journal")


def room_of(path: Path) -> int:
    """What a file takes of its disk. It is 0 where there is none."""
    try:
        return allocated_bytes(path.stat())
    except FileNotFoundError:
        return 0


def is_straight(folder: Path, files: list[dict[str, Any]], merged: str) -> bool:
    """Whether files come straight into the one that is made of them: where none of them lies here yet, or that has begun.

    Args:
        folder: the model's.
        files: the published files: name, bytes, sha256.
        merged: the name of the one file; empty where they are served themselves.
    """
    if not merged:
        return False
    incoming = folder / ".incoming"
    journals = [journal_of(aside_of(incoming, file["sha256"])) for file in files]
    if (incoming / merged).exists() and any(path.exists() for path in journals):
        return True
    return not any(path.exists() for file in files for path in _places(folder, file))


def _places(folder: Path, file: dict[str, Any]) -> tuple[Path, Path]:
    """Where a published file lies, and where it grows."""
    return folder / file["name"], folder / ".incoming" / file["sha256"]


def wanted(
    folder: Path, files: list[dict[str, Any]], merged: str, merged_bytes: int, attention: str
) -> tuple[str, int]:
    """What is still to be written of a model: as a name for messages, and how many bytes.

    Args:
        folder: as for `is_straight`, like `files` and `merged`.
        files: see there.
        merged: see there.
        merged_bytes: the size of the one file.
        attention: its form.
    """
    missing = sum(max(file["bytes"] - max(map(room_of, _places(folder, file))), 0) for file in files)
    if not merged:
        return "the weights", missing
    incoming = folder / ".incoming"
    made = stand_in(folder, merged, attention, files)
    if made and made["name"] == merged:
        return "the weights", 0
    rest = max(merged_bytes - room_of(incoming / merged), 0)
    if made:
        return f"the one file that is made of {made['name']} beside it", rest
    if is_straight(folder, files, merged):
        asides = sum(room_of(aside_of(incoming, file["sha256"])) for file in files)
        return "the weights", rest + max(round(merged_bytes * ASIDE_SHARE) - asides, 0)
    if not missing:
        return "the one file that is made of the published files beside them", rest
    whole = [file["name"] for file in files if (folder / file["name"]).exists()]
    begun = [file["name"] for file in files if (incoming / file["sha256"]).exists()]
    lying = whole[0] if whole else f"a part of {begun[0]}"
    both = (
        f"the published files, of which {lying} lies there already, and the one file that is made of them beside them"
    )
    return both, missing + rest
