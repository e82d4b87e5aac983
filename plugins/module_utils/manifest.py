"""The manifest of a release: what lies in its folder, so that a change is found later.

`release.json` says what decided the release. The file `manifest.json` beside it has one line for each other entry of the folder. A look
compares what the file system says of each entry. It reads the content of programs, and of files whose time stamps have changed. `ctime`
is among these stamps because no program can set it back. So a change that leaves every stamp alone, as a failing disk does, is found in
programs only. `read` finds it everywhere, because it reads everything.

The page's environment has 40,000 entries, and almost always all of them are as they were. So the file `manifest.seal` keeps one digest of
what the file system says of them all. Where that digest is the same, the manifest need not be read. Beside it stand the names in each
folder, and when those were read: what is added, removed or renamed moves the time stamps of its folder. So the names of a folder are read
again only where these have moved, which saves a third of the time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import time
from array import array
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils.digest import sha256_of
from ansible_collections.r1.prov.plugins.module_utils.files import read_json, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from ansible_collections.r1.prov.plugins.module_utils.progress import Progress

    Listed = tuple[bytes, bytes, list[bytes]]
    """A folder below another: its path there, its time stamps, and the names in it."""

RECORD, MANIFEST, _SEAL = "release.json", "manifest.json", "manifest.seal"
_OWN = (RECORD, MANIFEST, _SEAL)
_PROGRAMS = "bin/"
_TOP, _PROGRAMS_PLACE, _SEAL_PLACE = b"./", b"./bin/", b"./manifest.seal"
_COMPILED = "/__pycache__/"
"""Python leaves files in such a folder whenever root runs the release by hand."""
_BLOCK_BYTES = 1 << 20
_FOLDER_MODE, _FILE_MODE = 0o755, 0o644
_TOLD = 3
_OTHER_BYTES = "has other bytes"
_JUST_NOW_NS = 100_000_000
"""A time stamp of a folder says nothing while it is so young, because two changes within one tick of the kernel's clock have the same."""
_TOLD_OF_FOLDERS = attrgetter("st_mode", "st_uid", "st_gid")
_TOLD_OF_OTHERS = attrgetter("st_mode", "st_uid", "st_gid", "st_size", "st_mtime_ns", "st_ctime_ns")


@dataclass(frozen=True)
class Look:
    """What a look at a folder has found.

    Attributes:
        wrong: path below the folder -> how it differs from what was written down, in words. Empty where all is as it was.
        stale: whether the seal is broken although nothing is wrong: files that have their bytes have other time stamps.
    """

    wrong: dict[str, str]
    stale: bool = False

    def __str__(self) -> str:
        first = [f"{name} {words}" for name, words in list(self.wrong.items())[:_TOLD]]
        more = len(self.wrong) - len(first)
        return ", ".join([*first, f"and {more:,} more differ"] if more else first)


def write(folder: Path) -> None:
    """Writes down what lies in a folder, with the sha256 of each file.

    Raises:
        OSError: something in it cannot be read.
    """
    found = dict(_entries(folder))
    uid, gid, _ = found["."]["owner"]
    found["."]["owner"] = [uid, gid, _FOLDER_MODE]  # nobody else may look into it before it has its name
    found |= {name: _unread([uid, gid, _FILE_MODE]) for name in _OWN}
    for name, sha256 in _sha256s(folder, [name for name, entry in found.items() if entry["stamps"]]):
        found[name]["sha256"] = sha256
    _save(folder, found)
    _put_seal(folder, _FOLDER_MODE)


_ahead: dict[Path, Look] = {}


def look_ahead(folder: Path) -> None:
    """Looks at a folder once, for who only looks: until this process ends, `look` answers with that.

    Raises:
        OSError: something in it cannot be read.
    """
    _ahead[folder] = look(folder)


def look(folder: Path) -> Look:
    """Compares what lies in a folder with what was written down.

    Raises:
        OSError: something in it cannot be read.
    """
    if folder in _ahead:
        return _ahead[folder]
    try:
        if _is_sealed(folder):
            return Look({})
        found = dict(_entries(folder))
    except (FileNotFoundError, NotADirectoryError):
        return Look({".": "is gone"})
    known = read_json(folder / MANIFEST)
    if gone := [name for name in (RECORD, MANIFEST) if not read_json(folder / name)]:
        return Look(dict.fromkeys(gone, "is gone, or is no JSON"))
    wrong = {name: "is gone" for name in known if name not in found}
    wrong |= {name: "does not belong there" for name in found if name not in known}
    same = []
    for name in known.keys() & found.keys():
        if words := _differs(known[name], found[name]):
            wrong[name] = words
        elif found[name]["stamps"]:
            same.append(name)
    moved = [name for name in same if known[name]["stamps"] != found[name]["stamps"]]
    digests = _sha256s(folder, {*moved, *(name for name in same if name.startswith(_PROGRAMS))})
    wrong |= {name: _OTHER_BYTES for name, sha256 in digests if sha256 != known[name]["sha256"]}
    wrong |= {name: "has capabilities, and had none" for name in moved if _is_capable(folder / name)}
    return Look(dict(sorted(wrong.items())), stale=not wrong)


def read(folder: Path, progress: Progress) -> Look:
    """Reads every file of a folder as the disk holds it, and compares all with what was written down.

    A file that has other bytes keeps its time stamps where a disk is failing, so a later look would not read it. The manifest is made to
    forget the stamps of such files. So every later look finds what this one has found, and the release is made anew.

    Raises:
        OSError: something in it cannot be read, for another reason than a failing disk.
    """
    wrong = dict(look(folder).wrong)
    known = read_json(folder / MANIFEST)
    sizes = {name: entry["size"] for name, entry in known.items() if entry["stamps"] and name not in wrong}
    progress.begin("reading what is installed", sum(sizes.values()), "bytes")
    done = 0
    damaged = {}
    for name, sha256 in _sha256s(folder, sizes, sha256_of):
        done += sizes[name]
        progress.update(done)
        if sha256 != known[name]["sha256"]:
            damaged[name] = _OTHER_BYTES
    if damaged:
        _save(
            folder, {name: {**entry, "stamps": [0, 0]} if name in damaged else entry for name, entry in known.items()}
        )
        write_whole(folder / _SEAL, "")
    progress.finish()
    return Look(dict(sorted({**wrong, **damaged}.items())))


def put_right(folder: Path) -> Look:
    """Gives entries the owner and the mode that were written down, and takes note of new time stamps of files that have their bytes.

    Files that uv has linked out of its cache get other stamps when the cache is removed. Compiled files that nobody has written down are
    removed: Python would run them in the place of what they say they were compiled of.

    Returns:
        what is wrong still.

    Raises:
        OSError: something in it cannot be read or changed.
    """
    if _is_sealed(folder):
        return Look({})
    known, found = read_json(folder / MANIFEST), dict(_entries(folder))
    for name in found.keys() - known.keys():
        if known and _COMPILED in f"/{name}/":
            _remove(folder / name)
    for name in known.keys() & found.keys():
        was, now = known[name], found[name]
        if was["kind"] == now["kind"] and was["owner"] != now["owner"]:
            uid, gid, mode = was["owner"]
            os.chown(folder / name, uid, gid, follow_symlinks=False)
            if was["kind"] != "link":
                (folder / name).chmod(mode)
    after = look(folder)
    if not after.wrong:
        found = dict(_entries(folder))
        stamped = {name: {**entry, "stamps": found[name]["stamps"]} for name, entry in known.items()}
        if stamped != known:
            _save(folder, stamped)
        _put_seal(folder, stat.S_IMODE(folder.stat().st_mode))
    return after


def _remove(path: Path) -> None:
    """Removes a file or a folder, which may have gone with the folder that it was in."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_capable(file: Path) -> bool:
    """Whether whoever runs a file gets capabilities by that. Such a mark changes `ctime`, and neither mode nor bytes."""
    try:
        return bool(os.getxattr(file, "security.capability", follow_symlinks=False))
    except OSError:
        return False


def _differs(was: dict[str, Any], now: dict[str, Any]) -> str:
    if was["kind"] != now["kind"]:
        return f"is a {now['kind']} and was a {was['kind']}"
    if was["owner"] != now["owner"]:
        return f"has owner and mode {_owner(now)}, and had {_owner(was)}"
    if was["size"] != now["size"]:
        return f"has {now['size']:,} bytes, and had {was['size']:,}"
    return f"leads to {now['target']}, and led to {was['target']}" if was["target"] != now["target"] else ""


def _owner(entry: dict[str, Any]) -> str:
    uid, gid, mode = entry["owner"]
    return f"{uid}:{gid} {mode:04o}"


def _entries(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The folder and every entry below it: its path there, and what the file system says of it."""
    yield ".", _entry(folder.stat(follow_symlinks=False), "")
    for place, rows in _folders(folder):
        for each, status in rows:
            name = f"{place}{each}"
            if name in _OWN:
                yield name, _unread([status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)])
            else:
                yield name, _entry(status, str((folder / name).readlink()) if stat.S_ISLNK(status.st_mode) else "")


def _folders(folder: Path) -> Iterator[tuple[str, list[tuple[str, os.stat_result]]]]:
    """Each folder in a folder, and that itself: its path there, and what the file system says of its entries, by name."""
    places = [""]
    while places:
        place = places.pop()
        descriptor = os.open(folder / place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # By a descriptor, the system need not find the whole path again for each entry.
            with os.scandir(descriptor) as entries:
                rows = sorted((each.name, each.stat(follow_symlinks=False)) for each in entries)
        finally:
            os.close(descriptor)
        yield place, rows
        places += [f"{place}{name}/" for name, status in rows if stat.S_ISDIR(status.st_mode)]


def _is_sealed(folder: Path) -> bool:
    """Whether all is as it was when the seal was put there."""
    try:
        known, *parts = (folder / _SEAL).read_bytes().split(b"\0\0")
        listed = [(place, stamps, names) for place, stamps, *names in (part.split(b"\0") for part in parts)]
        return known == _seal(folder, listed, stat.S_IMODE(folder.stat().st_mode))
    except (OSError, ValueError):  # Something has gone, or the seal is damaged.
        return False


def _put_seal(folder: Path, mode: int) -> None:
    write_whole(folder / _SEAL, "")  # Its name, owner and mode belong to what it seals.
    listed = list(_listed(folder, time.time_ns() - _JUST_NOW_NS))
    # No name is empty, or holds the byte 0.
    parts = (b"\0".join((place, stamps, *names)) for place, stamps, names in listed)
    write_whole(folder / _SEAL, b"\0\0".join((_seal(folder, listed, mode), *parts)))


def _listed(folder: Path, young_ns: int) -> Iterator[Listed]:
    """The folder and each one below it. One whose stamps are younger than `young_ns` has none, so its names are read again each time."""
    top, places = os.fsencode(folder), [_TOP]
    while places:
        place = places.pop()
        path = os.path.join(top, place)  # noqa: PTH118 - bytes
        stamps = _stamps(os.stat(path), young_ns)  # noqa: PTH116 - bytes; before the names are read, so that a change meanwhile shows
        with os.scandir(path) as entries:
            rows = sorted((each.name, each.is_dir(follow_symlinks=False)) for each in entries)
        yield place, stamps, [name for name, _ in rows]
        places += [place + name + b"/" for name, is_folder in rows if is_folder]


def _stamps(status: os.stat_result, young_ns: int = 1 << 63) -> bytes:
    return b"%d %d" % (status.st_mtime_ns, status.st_ctime_ns) if status.st_ctime_ns < young_ns else b"-"


def _seal(folder: Path, listed: Iterable[Listed], mode: int) -> bytes:
    """A digest of what the file system says of each entry, and of the bytes of programs. `mode` is that of the folder itself.

    Raises:
        OSError: an entry is gone, or cannot be read.
    """
    owner, top = folder.stat(), os.fsencode(folder)
    seal = hashlib.sha256(repr((owner.st_uid, owner.st_gid, mode)).encode())
    programs = []
    for place, stamps, known in listed:
        told = array("q")
        path = os.path.join(top, place)  # noqa: PTH118 - bytes
        # By a descriptor, the system need not find the whole path again for each entry.
        descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY)
        try:
            names = known if _stamps(os.fstat(descriptor)) == stamps else sorted(os.listdir(path))  # noqa: PTH208 - bytes
            for name in names:
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode) or place + name == _SEAL_PLACE:
                    told.extend(_TOLD_OF_FOLDERS(status))
                else:
                    told.extend(_TOLD_OF_OTHERS(status))
                    if place.startswith(_PROGRAMS_PLACE) and stat.S_ISREG(status.st_mode):
                        programs.append(os.fsdecode(place + name))
        finally:
            os.close(descriptor)
        seal.update(b"\0".join((place, *names, b"")) + told.tobytes())
    seal.update(repr(sorted(_sha256s(folder, programs))).encode())
    return seal.hexdigest().encode()


def _unread(owner: list[int]) -> dict[str, Any]:
    """An entry for one of the two files of the folder's own, whose content the manifest cannot know."""
    return {"kind": "file", "owner": owner, "size": 0, "target": "", "stamps": []}


def _entry(status: os.stat_result, target: str) -> dict[str, Any]:
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "special file")
    is_file = kind == "file"
    return {
        "kind": kind,
        "owner": [status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)],
        "size": status.st_size if is_file else 0,
        "target": target,
        "stamps": [status.st_mtime_ns, status.st_ctime_ns] if is_file else [],
    }


_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}


def _sha256s(
    folder: Path, names: Iterable[str], digest: Callable[[Path], str] | None = None
) -> Iterator[tuple[str, str]]:
    """Files below a folder, each with its sha256 as soon as that is known; it is empty for what a disk cannot read. All processors work."""

    def one(name: str) -> str:
        try:
            return (digest or _sha256)(folder / name)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return ""

    names = list(names)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from zip(names, pool.map(one, names), strict=True)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as content:
        while block := content.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _save(folder: Path, entries: dict[str, Any]) -> None:
    lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(entries.items()))
    write_whole(folder / MANIFEST, "{\n" + ",\n".join(lines) + "\n}\n")
