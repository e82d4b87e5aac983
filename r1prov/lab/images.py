"""Images: disks of hosts that were shut down and kept, which other hosts of the same release boot from.

An image holds the difference to a base image, so it lies below the name of that base and goes when the base does.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from r1prov.common.paths import cache_dir

if TYPE_CHECKING:
    from pathlib import Path


def images(base: Path) -> list[str]:
    """The names of the images of a base image, sorted."""
    folder = of_base(base)
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def layer(base: Path, image: str) -> Path:
    """The folder that holds what an image has and its base has not, whether it is there or not."""
    return of_base(base) / image


def of_base(base: Path) -> Path:
    """The folder of all images of a base image."""
    return cache_dir() / "lab" / "images" / base.name


def remove_all(base: Path) -> None:
    """Removes every image of a base image that is no longer there."""
    shutil.rmtree(of_base(base), ignore_errors=True)
