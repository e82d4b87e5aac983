"""The caches that hosts share: Debian packages, compiled objects, Python packages, source archives."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from r1prov.common.paths import cache_dir

if TYPE_CHECKING:
    from pathlib import Path

_ARCHIVES = "var/cache/apt/archives"

# Folder in this machine's cache -> the place where a host sees it. All hosts may use them at once, for these programs lock or rename.
_SHARED = {
    "ccache": "/var/cache/r1prov/ccache",
    "sources": "/var/cache/r1prov/sources",
    "uv": "/var/cache/r1prov/uv",
}


def binds() -> list[str]:
    """The shared folders as `here:there`. Those that do not exist yet are made."""
    pairs = []
    for folder, there in _SHARED.items():
        here = cache_dir() / folder
        here.mkdir(parents=True, exist_ok=True)
        pairs.append(f"{here}:{there}")
    return pairs


def seed(release: str, upper: Path) -> None:
    """Give a host, before it boots, the Debian packages that earlier hosts downloaded. They are hard links, so nothing is copied."""
    _link_all(cache_dir() / "apt" / release, upper / _ARCHIVES)


def harvest(release: str, upper: Path) -> None:
    """Keep the Debian packages that a host downloaded. apt renames finished files into place, so each of them is whole."""
    _link_all(upper / _ARCHIVES, cache_dir() / "apt" / release)


def _link_all(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for deb in source.glob("*.deb"):
        # Another host may link the same file at the same time. A link is made whole or not at all.
        with suppress(FileExistsError):
            os.link(deb, target / deb.name)
