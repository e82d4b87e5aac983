"""Looks at the folders that r1prov makes for root: they must be root's, and nobody else may write to them.

What a service may write to lies below them and is its own. Releases have manifests, which say more.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.r1.prov.plugins.module_utils.difference import Difference, owner_and_mode
from ansible_collections.r1.prov.plugins.module_utils.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PLACES = (
    ("/etc/r1prov", 9),
    ("/opt/r1prov", 1),
    ("/var/lib/r1prov", 0),
    ("/var/lib/r1prov/service", 1),
    ("/var/cache/r1prov", 0),
    ("/run/r1prov", 0),
    ("/var/lib/r1prov/history", 1),
)
"""Folders, and how many levels below each are root's."""
CLOSED = ("/var/lib/r1prov/history",)
"""Those of them that only root may enter. Their files are for root alone, too."""
PROGRAMS = "/usr/local/lib"
_FOLDERS = ("r1prov-liveness", "r1prov-measure", "r1prov-units", "r1prov-weights")
"""Programs that are folders, which Python runs. All others are files."""
_EXECUTED = "r1prov-units/command.py"
"""The file of a program in a folder that is run by itself. Python reads all others."""
LINKS = ("/usr/local/bin/r1prov-units", f"{PROGRAMS}/r1prov-units/bin/systemctl")
"""Its names, on a host where it runs the units."""
ROOTS = ("/var/lib/r1prov/packages", "/var/lib/r1prov/smoke_bench", "/var/lib/r1prov/llama_server")
"""What steps that run as root remember. The folders beside them are of services."""
_CONFIGURATION = "/etc/r1prov/"
_MOST_BYTES, _MOST_FILES = 1 << 20, 16
"""No file of r1prov there is larger, and no folder there has more."""
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def look(root: Path = Path("/"), owner: int = 0) -> list[Difference]:
    """The entries that are not root's, that others may write to, or that are not what should lie there.

    The other folders are for everybody to enter, and those in CLOSED for root alone.

    Args:
        root: where the host's files lie.
        owner: root's number.
    """
    found = []
    # Sentences name a folder on the data disk as everybody does, by the link that leads to it.
    programs = root / PROGRAMS.lstrip("/")
    names = {place.resolve(): place for each, _ in PLACES if (place := root / each.lstrip("/")).is_symlink()}
    for path in sorted(set(_entries(root))):
        status = path.lstat()
        if has := misplaced(path, status.st_mode, root):
            kind = "a link" if _is_link(path, root) else "a file"
            found.append(Difference("kind", str(path), kind, has, f"{path} is {has}, and should be {kind}"))
            continue
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISLNK(status.st_mode):
            wanted = mode
        elif any(path.is_relative_to(root / place.lstrip("/")) for place in CLOSED):
            wanted = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
        elif stat.S_ISDIR(status.st_mode):
            wanted = 0o755
        elif path.is_relative_to(programs):
            is_executed = path.parent == programs or path == programs / _EXECUTED
            wanted = 0o755 if is_executed else 0o644
        else:
            wanted = mode & ~(_OTHERS_WRITE | stat.S_ISUID | stat.S_ISGID)
        if (status.st_uid, status.st_gid, mode) != (owner, owner, wanted):
            has, should = owner_and_mode(status.st_uid, status.st_gid, mode), owner_and_mode(owner, owner, wanted)
            found.append(
                Difference(
                    "mode",
                    str(path),
                    should,
                    has,
                    f"{names.get(path, path)} has owner and mode {has}, and should have {should}",
                )
            )
    return found


def misplaced(path: Path, mode: int, root: Path) -> str:
    """What lies where only files may, or only a link; empty where all is well. Other links belong into folders of releases."""
    if _is_link(path, root):
        return "" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "a file"
    if stat.S_ISLNK(mode):
        may_be = path.is_relative_to(root / "opt") or path in {root / place.lstrip("/") for place, _ in PLACES}
        return "" if may_be else f"a link to {path.readlink()}"
    if stat.S_ISDIR(mode):
        is_program = path.parent == root / PROGRAMS.lstrip("/") and path.name not in _FOLDERS
        return "a folder" if is_program or path.suffix in (".nft", ".py") else ""
    return "" if stat.S_ISREG(mode) else "a pipe, a socket or a device"


def _is_link(path: Path, root: Path) -> bool:
    """Whether only a link may lie there."""
    return path in {root / each.lstrip("/") for each in LINKS}


def mend(differences: Iterable[Difference]) -> None:
    """Gives each entry the owner and the mode that it should have. All of them lie in folders of root's once the upper ones are mended."""
    for each in sorted(differences, key=lambda difference: difference.place):
        if each.kind == "kind":
            path = Path(each.place)
            if each.found == "a folder":
                shutil.rmtree(path)
            elif _CONFIGURATION in each.place and path.is_symlink():
                _bring(path)
            else:
                path.unlink()  # The role whose file it is writes that again.
            continue
        owner, _, mode = each.expected.partition(" ")
        uid, gid = map(int, owner.split(":"))
        os.chown(each.place, uid, gid, follow_symlinks=False)
        if not Path(each.place).is_symlink():
            Path(each.place).chmod(int(mode, 8))


def _bring(link: Path) -> None:
    """Puts what a link leads to in its place, so that only what differs in it has to be put right. Of a folder these are its files."""
    target = link.resolve()
    if target.is_dir():
        link.unlink()
        link.mkdir()
        link.chmod(0o755)
        files = [(path, link / path.name) for path in target.iterdir() if not path.is_symlink()]
        files = files if len(files) <= _MOST_FILES else []  # It is another folder than one of r1prov's.
    else:
        files = [(target, link)]
    for path, place in files:
        if path.is_file() and path.stat().st_size <= _MOST_BYTES:
            write_whole(place, path.read_bytes(), path.stat().st_mode & 0o644 | 0o600)
    if link.is_symlink():
        link.unlink()


def _entries(root: Path) -> Iterator[Path]:
    for place, levels in PLACES:
        if (path := root / place.lstrip("/")).is_dir():
            yield from _below(path, levels)
            if path.is_symlink():  # to the data disk
                yield path.resolve()
                for each in path.iterdir() if levels else ():
                    yield from _below(each, levels - 1)
    programs = root / PROGRAMS.lstrip("/")
    yield from programs.glob("r1prov-*")
    for folder in (programs / name for name in _FOLDERS):
        if folder.is_dir() and not folder.is_symlink():
            yield from (path for path in folder.rglob("*") if path.suffix == ".py" or _is_own_folder(path))
    yield from (link for each in LINKS if runs_units(root) and os.path.lexists(link := root / each.lstrip("/")))
    for name in ROOTS:
        if (path := root / name.lstrip("/")).is_dir():
            yield path


def _is_own_folder(path: Path) -> bool:
    """Whether it is a folder of a program, and not one in which Python keeps what it has compiled."""
    return path.is_dir() and path.name != "__pycache__"


def runs_units(root: Path = Path("/")) -> bool:
    """Whether r1prov's own program that runs units is there, as on a host without systemd."""
    return (root / PROGRAMS.lstrip("/") / "r1prov-units").is_dir()


def _below(path: Path, levels: int) -> Iterator[Path]:
    yield path
    if levels and path.is_dir() and not path.is_symlink():
        for each in path.iterdir():
            yield from _below(each, levels - 1)
