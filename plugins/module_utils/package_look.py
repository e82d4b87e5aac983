"""Looks at the files of Debian packages: whether programs, libraries and data that dpkg calls installed are there with their bytes.

dpkg knows the MD5 of each file and no more. A digest of them all takes seconds, so a record keeps what the file system said of each
file when it last had its bytes. `ctime` is part of that, and no program can set it back. A record also knows a file's mode and owner.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils.difference import Difference, owner_and_mode

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

ADMIN = Path("/var/lib/dpkg")
SETTINGS = Path("/etc/dpkg")
_FORMAT = "${binary:Package}\\t${Package}\\t${Essential}\\t${Priority}\\t${db:Status-Status}\\t${Provides}\\t${Pre-Depends}, ${Depends}\\n"
_UNNEEDED = (
    "usr/share/doc/",
    "usr/share/man/",
    "usr/share/info/",
    "usr/share/locale/",
    "usr/share/lintian/",
    "usr/share/bug/",
)
"""Below these nothing runs, and images of hosts often leave them out."""
_PROGRAM = re.compile(r"(/usr(/local)?)?(/s?bin/.+|/lib(64)?/.+\.so[.\d]*)")


@dataclass(frozen=True)
class Package:
    """An installed package: its name as dpkg's files have it, and the names that it depends on."""

    name: str
    depends: tuple[str, ...]
    is_base: bool


@dataclass(frozen=True)
class Look:
    """What a look has found.

    Attributes:
        differences: what differs, by package.
        record: what to keep for the next look.
    """

    differences: dict[str, list[Difference]]
    record: dict[str, list[Any]]


_ahead: list[dict[str, Package]] = []


def look_ahead() -> None:
    """Reads once which packages are installed, for who only looks: until this process ends, `installed` answers with that."""
    _ahead[:] = [installed()]


def installed() -> dict[str, Package]:
    """The installed packages, by each name that others may depend on."""
    if _ahead:
        return _ahead[0]
    command = ["dpkg-query", "--show", "--showformat", _FORMAT]
    shown = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True).stdout
    found: dict[str, Package] = {}
    provided: dict[str, Package] = {}
    for line in shown.splitlines():
        binary, name, essential, priority, status, provides, depends = line.split("\t")
        if status != "installed":
            continue
        # The first installed one of several alternatives is as good as all.
        package = Package(binary, tuple(_names(depends)), essential == "yes" or priority == "required")
        found[name] = package
        provided |= dict.fromkeys(_names(provides), package)
    return provided | found


def needed(names: Iterable[str], packages: Mapping[str, Package]) -> list[Package]:
    """These packages and what they depend on, down to what every Debian has."""
    seen: dict[str, Package] = {}
    waiting = list(names)
    while waiting:
        package = packages.get(waiting.pop())
        if package and package.name not in seen and not package.is_base:
            seen[package.name] = package
            waiting += package.depends
    return list(seen.values())


def look(names: Iterable[str], record: Mapping[str, list[Any]], admin: Path = ADMIN, root: Path = Path("/")) -> Look:
    """Compares the files of packages with what dpkg and a record say.

    Args:
        names: packages, as dpkg's files have them.
        record: what the last look kept: of files how the file system sees them, and of links where they lead in this version.
        admin: dpkg's folder.
        root: where the packages' files lie.
    """
    base = str(root).rstrip("/")
    skipped, excluded = _diverted(admin), _excluded()
    differences: dict[str, list[Difference]] = {}
    kept: dict[str, list[Any]] = {}
    unsure: list[tuple[str, str, str, list[Any]]] = []
    for name in names:
        sums = _sums(admin, name)
        for place, words, now in _links(admin, name, base, record, {f"/{path}" for _, path in sums} | set(skipped)):
            if words:
                _add(differences, name, place, words, "")
            else:
                kept[place] = now
        for digest, path in sums:
            place = f"/{path}"
            if place in skipped or path.startswith(_UNNEEDED) or any(fnmatch.fnmatch(place, each) for each in excluded):
                continue
            stamps = _stamps(f"{base}{place}")
            if not stamps:
                _add(differences, name, place, "is gone", "")
            elif record.get(place) == stamps:
                kept[place] = stamps
            else:
                unsure.append((name, place, digest, stamps))
    for name, place, words, found, stamps in _read(base, unsure, record):
        if words:
            _add(differences, name, place, words, found)
        else:
            kept[place] = stamps
    return Look(differences, kept)


def _read(
    base: str, unsure: list[tuple[str, str, str, list[Any]]], record: Mapping[str, list[Any]]
) -> Iterator[tuple[str, str, str, str, list[Any]]]:
    """Reads files whose stamps say nothing. Yields package, place, how it differs in words, what was found, and its stamps."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        digests = list(pool.map(lambda each: _md5(f"{base}{each[1]}"), unsure))
    for (name, place, digest, stamps), found in zip(unsure, digests, strict=True):
        known = record.get(place)
        if found != digest:
            yield name, place, "has other bytes", found, stamps
        elif known and known[-3:] != stamps[-3:]:
            has, had = (owner_and_mode(*each[-3:]) for each in (stamps, known))
            yield name, place, f"has owner and mode {has}, and had {had}", has, stamps
        else:
            yield name, place, "", "", stamps


def _add(differences: dict[str, list[Difference]], name: str, place: str, words: str, found: str) -> None:
    said = f"{place} of the package {name} {words}"
    differences.setdefault(name, []).append(Difference("package file", place, "as packaged", found or "gone", said))


def _names(depends: str) -> list[str]:
    """The names in a field of relations. Of several alternatives each counts, where it is installed."""
    return [match[1] for part in re.split(r"[,|]", depends) if (match := re.match(r"\s*([a-z0-9][a-z0-9+.-]*)", part))]


def _sums(admin: Path, name: str) -> list[tuple[str, str]]:
    """The MD5 of each file of a package that is no configuration; nothing where dpkg has none."""
    try:
        lines = (admin / "info" / f"{name}.md5sums").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [(line[:32], line[34:]) for line in lines if not line[34:].startswith("etc/")]


def _linked(admin: Path, name: str, known: Collection[str]) -> list[str]:
    """The names of programs and libraries in a package that dpkg knows no MD5 of, because they are links."""
    try:
        places = (admin / "info" / f"{name}.list").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [place for place in places if place not in known and _PROGRAM.fullmatch(place)]


def _installed_at(admin: Path, name: str) -> int:
    """When a package was installed, which tells its version from another. Nothing else writes this file."""
    try:
        return (admin / "info" / f"{name}.list").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _links(
    admin: Path, name: str, base: str, record: Mapping[str, list[Any]], others: Collection[str]
) -> Iterator[tuple[str, str, list[Any]]]:
    """Each link of a package except `others`, how it differs, in words, and what to keep of it."""
    version = _installed_at(admin, name)
    for place in _linked(admin, name, others):
        yield place, *_of_link(f"{base}{place}", record.get(place), version)


def _of_link(path: str, known: list[Any] | None, version: int) -> tuple[str, list[Any]]:
    """How a link differs, in words, and what to keep of it. Where it led in another version says nothing."""
    try:
        leads = os.readlink(path)  # noqa: PTH115 - 1,000 times
    except FileNotFoundError:
        return "is gone", []
    except OSError:
        leads = ""
    if leads.startswith("/etc/alternatives/"):  # An administrator chooses among these.
        leads = ""
    is_other = known and known[0] != leads and known[1] == version
    return f"leads to {leads or 'nothing'}, and led to {known[0]}" if known and is_other else "", [leads, version]


def _diverted(admin: Path) -> Collection[str]:
    try:
        return set((admin / "diversions").read_text(encoding="utf-8", errors="replace").splitlines()[::3])
    except FileNotFoundError:
        return ()


def _excluded() -> list[str]:
    """Patterns of paths that this host has told dpkg not to install."""
    files = [SETTINGS / "dpkg.cfg", *sorted((SETTINGS / "dpkg.cfg.d").glob("*"))]
    text = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file())
    return re.findall(r"^\s*path-exclude[= ]\s*(\S+)", text, re.MULTILINE)


def _stamps(path: str) -> list[Any]:
    """What the file system says of a file; nothing where there is none."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [
        status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)
    ]  # fmt: skip


def _md5(path: str) -> str:
    digest: Any = hashlib.md5(usedforsecurity=False)
    try:
        # A pipe in the place of a file would never end.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as content:  # noqa: PTH123 - 10,000 times
            while block := content.read(1 << 20):
                digest.update(block)
    except OSError:
        return "unreadable"
    return str(digest.hexdigest())
