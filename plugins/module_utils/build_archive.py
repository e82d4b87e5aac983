"""A release that is a tar archive, unpacked: Ollama, or a Python."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils import release
from ansible_collections.r1.prov.plugins.module_utils.artefact import Artefact, unpack, without_credentials
from ansible_collections.r1.prov.plugins.module_utils.release import ReleaseError

if TYPE_CHECKING:
    from pathlib import Path

    from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

# No running server answers in the place of the program that is tried, and nothing is written to anybody's home.
_ALONE = {"HOME": "/nonexistent", "OLLAMA_HOST": "127.0.0.1:1"}


class Archive(release.Build):
    """An archive with a program in it.

    Args:
        wanted: the option `archive` of the module `release`.
        version: what the release is called; the program must say it where `says` holds `{version}`.
        cache: the folder for downloads. An archive that lies here is removed when it is unpacked.
    """

    def __init__(self, wanted: dict[str, Any], version: str, cache: Path) -> None:
        self._wanted, self._version, self._cache = wanted, version, cache
        self._artefact = Artefact(wanted["source"], wanted["sha256"], wanted["variable"])
        self.record = {"version": version, "source": without_credentials(wanted["source"]), "sha256": wanted["sha256"]}
        self.id = f"{version}-{wanted['sha256'][:12]}"

    def fill(self, folder: Path, progress: Progress) -> None:
        """Fetches, unpacks and tries the archive."""
        archive = self._artefact.fetch(self._cache, progress)
        progress.begin("unpacking", 0, "steps")
        unpack(archive, folder)
        found = program(folder, self._wanted["program"])
        if found is None:
            raise ReleaseError(
                f"{self._artefact.source} holds no {self._wanted['program']}. Correct {self._artefact.variable}: "
                "a build for Linux on x86-64 is wanted."
            )
        said = release.tried([found, *self._wanted["arguments"]], {**os.environ, **_ALONE})
        says = re.search(self._wanted["says"], said)
        if not says or (says.groups() and says[1] != self._version):
            raise ReleaseError(
                f"{self._artefact.source} is not {self._version}: {found.name} says {said.strip()!r}. "
                f"Correct {self._artefact.variable}, or the version."
            )
        if archive.parent == self._cache:
            archive.unlink()  # gigabytes that nobody reads again


def program(folder: Path, pattern: str) -> Path | None:
    """The program in a folder whose path matches a pattern: the one that lies highest."""
    return min(folder.glob(pattern), key=lambda path: (len(path.parts), path), default=None)
