"""What one host leaves for the next: Debian packages, compiled objects, Python packages, source archives."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from r1prov.common.paths import cache_dir

if TYPE_CHECKING:
    from pathlib import Path

_ARCHIVES = "var/cache/apt/archives"

# Folder in this machine's cache -> where a host sees it. Shared by all hosts at once: these programs lock or rename by themselves.
_SHARED = {
    "ccache": "/var/cache/r1prov/ccache",
    "sources": "/var/cache/r1prov/sources",
    "uv": "/var/cache/r1prov/uv",
}


def binds() -> list[str]:
    """The shared folders as `here:there`, made if they are not there."""
    pairs = []
    for folder, there in _SHARED.items():
        here = cache_dir() / folder
        here.mkdir(parents=True, exist_ok=True)
        pairs.append(f"{here}:{there}")
    return pairs


def seed(release: str, upper: Path) -> None:
    """Gives a host, before it boots, the Debian packages that earlier hosts downloaded (hard links: no copy, no time)."""
    _link_all(cache_dir() / "apt" / release, upper / _ARCHIVES)


def harvest(release: str, upper: Path) -> None:
    """Keeps the Debian packages that a host downloaded. apt renames finished files into place, so every one is whole."""
    _link_all(upper / _ARCHIVES, cache_dir() / "apt" / release)


def _link_all(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for deb in source.glob("*.deb"):
        with suppress(FileExistsError):  # a link is made whole or not at all, so another host may do the same now
            os.link(deb, target / deb.name)
