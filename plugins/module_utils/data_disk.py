"""Where r1prov's own folders lie on a host whose system disk is small and may be gone tomorrow: on the data disk, behind links.

A platform that builds a container anew throws its system disk away. What lies on the data disk is there again afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from ansible_collections.r1.prov.plugins.module_utils import disk_away, units
from ansible_collections.r1.prov.plugins.module_utils.files import mounts, read_json, text_of, write_whole

PLACES = {"/opt/r1prov": "opt", "/var/lib/r1prov": "lib", "/var/cache/r1prov": "cache"}
"""Each folder, and its name on the data disk, below `host` in the folder for data."""
OPENED = "data_disk/opened.json"
"""In /var/lib/r1prov: the modes that folders had before everybody could pass through them."""
BRING_BACK = (
    "bring the disk back, on the platform's page where a platform gives it, and run the same command again; if it is gone for good, let go "
    f"of it first: `rm {' '.join(PLACES)}`"
)
"""What to do where the data disk is away."""
USES = ("auto", "always", "never")


def home(data_dir: str) -> Path:
    """The folder on the data disk that holds r1prov's own folders."""
    return Path(data_dir) / "host"


def is_used(use: str, data_dir: str, root: Path = Path("/")) -> bool:
    """Whether r1prov's own folders belong on the data disk.

    Args:
        use: `always`, `never`, or `auto`: where no systemd runs the host, as in a rented container, and the disk is another one.
        data_dir: the folder for data. It need not exist.
        root: where the host's files lie.
    """
    if use != "auto":
        return use == "always"
    return not (root / units.SYSTEMD.relative_to("/")).is_dir() and is_apart(data_dir, root)


def is_apart(data_dir: str, root: Path = Path("/")) -> bool:
    """Whether a folder, which need not exist, lies on another file system than the root."""
    holder = root / data_dir.lstrip("/")
    while not holder.exists():
        holder = holder.parent
    return holder.stat().st_dev != root.stat().st_dev


def moved(path: str, data_dir: str) -> str:
    """Where a path lies once the folders are on the data disk."""
    for place, name in PLACES.items():
        if path == place or path.startswith(f"{place}/"):
            return f"{home(data_dir)}/{name}{path.removeprefix(place)}"
    return path


def linked(data_dir: str, root: Path = Path("/")) -> list[str]:
    """The folders that are links to the data disk."""
    links = {place: root / place.lstrip("/") for place in PLACES}
    return [
        place
        for place, link in links.items()
        if link.is_symlink() and link.readlink() == root / moved(place, data_dir).lstrip("/")
    ]


def wrong_places(data_dir: str, root: Path = Path("/")) -> dict[Path, Path]:
    """The folders that do not lie on the data disk: the place of each, and where it should lead.

    One in which something is mounted stays. Whoever has mounted that has chosen a disk for it.
    """
    targets = {place: root / moved(place, data_dir).lstrip("/") for place in PLACES}
    well = [place for place in linked(data_dir, root) if targets[place].is_dir()]
    mounted = mounts(text_of(root / "proc/self/mountinfo"))
    well += [place for place in targets if any(each == place or each.startswith(f"{place}/") for each in mounted)]
    return {root / place.lstrip("/"): target for place, target in targets.items() if place not in well}


def away(data_dir: str, root: Path = Path("/")) -> str:
    """What to say of a host whose folders lead to a data disk that is not there; else empty.

    Where the disk is there, somebody has removed them from it, and the next run makes them anew.
    """
    said = [each for place in linked(data_dir, root) if (each := disk_away.away(root / place.lstrip("/")))]
    return said[0] if said and not is_apart(data_dir, root) else ""


def is_built_anew(data_dir: str, root: Path = Path("/")) -> bool:
    """Whether a platform has thrown the system disk away since r1prov was there. The links are gone, and what they led to is there.

    The record of a run comes to /var/lib/r1prov before this is asked, so that folder says nothing.
    """
    own = [root / place for place in ("etc/r1prov", "opt/r1prov")]
    return (root / moved("/opt/r1prov", data_dir).lstrip("/")).is_dir() and not any(map(os.path.lexists, own))


def settle(place: Path, target: Path) -> None:
    """Brings what lies at a place to the data disk, and leaves a link. What the disk has already stays.

    It can be cut anywhere, and goes on where it was.
    """
    for folder in (target.parent.parent, target.parent, target):
        if not folder.is_dir():
            folder.mkdir(mode=0o755, parents=True)
            folder.chmod(0o755)
    source = Path(os.path.realpath(place))
    if source.is_dir() and source != Path(os.path.realpath(target)):
        _bring(source, target)
        with suppress(OSError):  # The folders above it were made for it, too, where the data disk is another one now.
            if place.is_symlink():
                source.parent.rmdir()
                source.parent.parent.rmdir()  # The folder for data may hold weights, and stays then.
    if place.is_symlink() or place.is_file():
        place.unlink()
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_symlink():
        place.symlink_to(target)


def _bring(source: Path, target: Path) -> None:
    """Moves what lies in a folder into another one, and removes the folder."""
    for entry in list(source.iterdir()):
        there = target / entry.name
        if entry.is_dir() and not entry.is_symlink():
            if not there.is_dir():
                there.mkdir(mode=0o700)
                _like(entry, there)
            _bring(entry, there)
        elif os.path.lexists(there) or stat.S_IFMT(entry.lstat().st_mode) not in (stat.S_IFREG, stat.S_IFLNK):
            entry.unlink()  # Whoever listens at a socket makes it again.
        else:
            # A run that is cut off leaves no half of a file under its name.
            fresh = target / f".r1prov-{entry.name}"
            fresh.unlink(missing_ok=True)
            shutil.copy2(entry, fresh, follow_symlinks=False)
            status = entry.lstat()
            os.chown(fresh, status.st_uid, status.st_gid, follow_symlinks=False)
            if not entry.is_symlink():
                fresh.chmod(stat.S_IMODE(status.st_mode))
            fresh.replace(there)
            entry.unlink()
    source.rmdir()


def _like(folder: Path, other: Path) -> None:
    status = folder.stat()
    os.chown(other, status.st_uid, status.st_gid)
    other.chmod(stat.S_IMODE(status.st_mode))


def shut(paths: list[str], root: Path = Path("/"), owner: int = 0) -> dict[str, int]:
    """The folders of root's above these paths that services cannot pass through, and the mode of each.

    Platforms put the data disk below /root, which only root may enter.
    """
    found = {}
    for path in paths:
        for folder in (root / path.lstrip("/")).parents:
            if folder.is_dir() and folder.is_relative_to(root):
                status = folder.stat()
                if status.st_uid == owner and not status.st_mode & stat.S_IXOTH:
                    found[str(folder)] = stat.S_IMODE(status.st_mode)
    return dict(sorted(found.items()))


def let_through(folders: dict[str, int], record: Path) -> None:
    """Lets everybody pass through folders, and remembers what modes they had. Nobody can list them for that."""
    record.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_whole(record, json.dumps({**read_json(record), **folders}))
    for folder, mode in folders.items():
        Path(folder).chmod(mode | stat.S_IXOTH)


def shut_again(folders: dict[str, int]) -> None:
    """Gives folders the modes that they had, where nobody has changed them since."""
    for folder, mode in folders.items():
        with suppress(OSError):
            if stat.S_IMODE(Path(folder).stat().st_mode) == mode | stat.S_IXOTH:
                Path(folder).chmod(mode)
