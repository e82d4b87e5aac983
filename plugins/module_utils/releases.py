"""Releases side by side: `HOME/releases/ID`, and the link `HOME/current` to the one that serves."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def current(home: Path) -> str:
    """The ID of the release that serves now; empty where there is none."""
    link = home / "current"
    return link.readlink().name if link.is_symlink() else ""


def make_current(home: Path, release_id: str) -> None:
    """Switches the link, at once; only the release before this one is kept beside it."""
    previous = current(home)
    temporary = home / ".current.new"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(f"releases/{release_id}")
    temporary.replace(home / "current")
    for release in (home / "releases").iterdir():
        if release.name not in (release_id, previous):
            shutil.rmtree(release)


def switch_diff(home: Path, before: str, after: str) -> dict[str, str]:
    """What Ansible shows of a switch from one release to another."""
    header = str(home / "current")
    return {
        "before_header": header,
        "after_header": header,
        "before": f"{before}\n" if before else "",
        "after": f"{after}\n",
    }
