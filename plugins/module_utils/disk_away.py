"""Whether a folder of r1prov's leads to a data disk that is not there. This is asked before anything that lies on that disk is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def away(folder: Path) -> str:
    """What to say where a folder is a link that leads nowhere; else empty."""
    if not folder.is_symlink() or folder.exists():
        return ""
    return f"the data disk is away: {folder} leads to {folder.readlink()}, which is not there"
