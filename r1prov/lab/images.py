"""Images are kept disks of hosts that were shut down. Other hosts of the same release boot from them.

An image holds the difference to a base image. So it lies below the name of its base, and is removed together with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1prov.common.paths import cache_dir
from r1prov.lab import trees

if TYPE_CHECKING:
    from pathlib import Path


def images(base: Path) -> list[str]:
    """The names of the images of a base image, sorted."""
    folder = of_base(base)
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def layer(base: Path, image: str) -> Path:
    """The folder with the difference between an image and its base, whether the image exists or not."""
    return of_base(base) / image


def data_disk(base: Path, image: str) -> Path:
    """The data disk of an image of a container, whether the image exists or not."""
    return of_base(base) / f"{image}.data"


def remove(base: Path, image: str) -> None:
    """Remove an image, if there is one."""
    trees.remove(layer(base, image))
    data_disk(base, image).unlink(missing_ok=True)


def of_base(base: Path) -> Path:
    """The folder of all images of a base image."""
    return cache_dir() / "lab" / "images" / base.name


def remove_all(base: Path) -> None:
    """Remove every image of a base image that no longer exists."""
    trees.remove(of_base(base))
