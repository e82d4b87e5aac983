"""The programs of a release on the path of every login: links in /usr/local/bin that follow the link `current`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER = Path("/usr/local/bin")


def links_into(home: Path, folder: Path = FOLDER) -> dict[Path, Path]:
    """The links of a folder that lead below `home`, and where each leads."""
    links = {path: path.readlink() for path in sorted(folder.iterdir()) if path.is_symlink()} if folder.is_dir() else {}
    return {path: target for path, target in links.items() if target.is_relative_to(home)}


class OnPath:
    """The links that a release wants, held against those that are there.

    Attributes:
        missing: what each new link leads to.
        left_over: links to programs that this release does not have.
        taken: places where something lies that is not ours, which stays.
    """

    def __init__(self, home: Path, programs: Iterable[Path], folder: Path = FOLDER) -> None:
        """`programs` are those of the current release in `home`, relative to its folder."""
        wanted = {folder / program.name: home / "current" / program for program in programs}
        there = links_into(home, folder)
        self.taken = [path for path in wanted if path not in there and (path.is_symlink() or path.exists())]
        self.missing = {
            path: target for path, target in wanted.items() if there.get(path) != target and path not in self.taken
        }
        self.left_over = [path for path in there if path not in wanted]

    @property
    def differs(self) -> bool:
        """Whether there is a link to make or to remove."""
        return bool(self.missing or self.left_over)

    @property
    def sentences(self) -> list[str]:
        """What differs, in a sentence each."""
        missing = [f"{path} does not lead to {target}" for path, target in self.missing.items()]
        return missing + [
            f"{path} leads to a program that the current release does not have" for path in self.left_over
        ]

    def put_right(self) -> None:
        """Makes and removes the links."""
        for path in self.left_over:
            path.unlink()
        for path, target in self.missing.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".r1prov-{path.name}")
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(target)
            temporary.replace(path)
