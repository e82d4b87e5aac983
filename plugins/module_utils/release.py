"""Releases side by side: `HOME/releases/ID`, and links in `HOME` to some of them.

    current   the one that serves
    proven    the last one that has served well: `current`, or what was before it where `current` is still an attempt
    previous  the one that was `proven` before

A `Build` makes what a release holds. This module decides when a release appears, when it is switched to, and when it goes.
"""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils import manifest
from ansible_collections.r1.prov.plugins.module_utils.files import whole_folder
from ansible_collections.r1.prov.plugins.module_utils.locks import alone

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

_TRY_S = 300


class ReleaseError(Exception):
    """The release cannot be installed. The message says why, and what to do next."""


class Build(ABC):
    """How one release comes about.

    Attributes:
        id: the name of the release's folder: its version, and a digest of everything that decides it.
        record: what decides the release, as JSON values. It is kept in the release's `release.json`, beside the
            manifest of what lies in the release.
        shares: a folder with other names of the release's files, out of which it is made again. What is damaged in one is damaged in both.
    """

    id: str
    record: dict[str, Any]
    shares: Path | None = None

    @abstractmethod
    def fill(self, folder: Path, progress: Progress) -> None:
        """Fills an empty folder, which gets its final name later, and tries what it holds.

        Raises:
            ReleaseError: it cannot be made, or does not run here.
            ArtefactError: what it is made of cannot be had.
        """


def current(home: Path) -> str:
    """The ID of the release that serves now; empty where there is none."""
    return _linked(home, "current")


def target(home: Path) -> str:
    """Where the link to the release that serves leads; empty where there is no link."""
    link = home / "current"
    return str(link.readlink()) if link.is_symlink() else ""


def is_current(home: Path, release_id: str) -> bool:
    """Whether a release is the one that serves. A link to a folder of the same name elsewhere does not count."""
    return target(home) == f"releases/{release_id}"


def _linked(home: Path, name: str) -> str:
    link = home / name
    return link.readlink().name if link.is_symlink() else ""


def proven(home: Path) -> str:
    """The ID of the last release that has served well; empty where none has."""
    return _linked(home, "proven")


def path(home: Path, release_id: str) -> Path:
    """The folder of a release."""
    return home / "releases" / release_id


def install(home: Path, build: Build, progress: Progress) -> None:
    """Makes a release beside its final place unless it lies there whole, gives it its name, and switches to it.

    A release that was damaged is made anew. Until then it stays where it is, because what runs may still read it.

    Raises:
        ReleaseError, ArtefactError, OSError: it could not be made. The release that serves goes on serving.
    """
    with alone(home / ".lock", progress.wait_for):
        place = path(home, build.id)
        if not place.is_dir() or manifest.put_right(place).wrong:
            if place.is_dir() and build.shares:
                shutil.rmtree(build.shares, ignore_errors=True)
            with whole_folder(place) as folder:
                build.fill(folder, progress)
                record = json.dumps({"id": build.id, **build.record}, indent=2)
                (folder / manifest.RECORD).write_text(f"{record}\n", encoding="utf-8")
                manifest.write(folder)
                _set_aside(place)
        make_current(home, build.id)


def _set_aside(place: Path) -> None:
    """Gives a release another name, so that its successor takes its own at once. Its removal takes longer, and comes with the pruning."""
    if place.exists():
        aside = place.with_name(f"{place.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)  # a run that was cut off may have left it
        try:
            place.rename(aside)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # It lies in a lower layer of an overlay, as in an image that a host was booted from. A folder there cannot get another name.
            shutil.rmtree(place)


def make_current(home: Path, release_id: str) -> None:
    """Switches the link, at once. What served until now stays, and so do the releases that have served well: this one is an attempt."""
    before = current(home)
    _link(home, "current", release_id)
    _prune(home, {release_id, before, proven(home), _linked(home, "previous")})


def prove(home: Path, *, look: bool = False) -> bool:
    """Takes note that the current release has served well. Attempts that did not are removed, and it keeps only the one before it.

    Args:
        home: the folder with the releases. Its link may also lead elsewhere, as a toolkit of the distribution does.
        look: nothing is changed.

    Returns:
        whether something was changed, or would be.
    """
    now, last, earlier = (_linked(home, name) for name in ("current", "proven", "previous"))
    if not is_current(home, now):
        return False
    keep = {now, earlier if last == now else last}
    surplus = any(found.name not in keep for found in _releases(home))
    if not look:
        if last != now:
            if last and path(home, last).is_dir():
                _link(home, "previous", last)
            _link(home, "proven", now)
        if surplus:
            _prune(home, keep)
    return last != now or surplus


def _link(home: Path, name: str, release_id: str) -> None:
    temporary = home / f".{name}.new"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(f"releases/{release_id}")
    temporary.replace(home / name)


def _releases(home: Path) -> list[Path]:
    return list((home / "releases").iterdir())


def _prune(home: Path, keep: set[str]) -> None:
    for found in _releases(home):
        if found.name not in keep:
            shutil.rmtree(found)


def tried(
    command: Sequence[str | Path], environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> str:
    """What a new program prints when it is started: its stderr, then its stdout.

    Raises:
        ReleaseError: it does not run here.
    """
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_TRY_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", "") or f"no answer within {_TRY_S} s"
        raise ReleaseError(
            f"{Path(command[0]).name} does not run here: {reason}. A build for Linux on x86-64 is wanted."
        ) from error
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise ReleaseError(f"{Path(command[0]).name} does not run here (status {done.returncode}): {said}")
    return done.stderr + done.stdout
