"""Looks at a systemd unit: what other files than its own change it, and whether its own file is root's.

systemd reads a unit from a dozen folders. r1prov writes to one of them, `/etc/systemd/system`, and no drop-in. Whatever lies elsewhere
under the unit's name changes it behind r1prov's back. Only a drop-in for all units of a type (`service.d`) is the administrator's own.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.r1.prov.plugins.module_utils import units
from ansible_collections.r1.prov.plugins.module_utils.difference import Difference, owner_and_mode

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

OURS = Path("/etc/systemd/system")
DISTRIBUTIONS = Path("/usr/lib/systemd/system")
FOLDERS = (
    Path("/etc/systemd/system.control"),
    Path("/run/systemd/system.control"),
    Path("/run/systemd/transient"),
    OURS,
    Path("/etc/systemd/system.attached"),
    Path("/run/systemd/system"),
    Path("/run/systemd/system.attached"),
    Path("/run/systemd/generator.early"),
    Path("/run/systemd/generator"),
    Path("/run/systemd/generator.late"),
    Path("/usr/local/lib/systemd/system"),
    DISTRIBUTIONS,
)
"""Where systemd looks for units, except for the second names of these folders."""
DEPENDENCIES = ("wants", "requires", "upholds")
WANTED_BY = {"service": "multi-user.target", "socket": "sockets.target", "timer": "timers.target"}
_OF_EVERY_HOST = re.compile(
    r"LANG|LANGUAGE|LC_\w+|PATH|TZ|HOME|USER|LOGNAME|SHELL|TERM|container\w*|\w+_(proxy|PROXY)|SSL_CERT_\w+"
)
_SETTING = re.compile(r"^\s*([A-Z][A-Za-z]*)\s*=", re.MULTILINE)


_ahead: dict[Path, Mapping[str, bool]] = {}


def look_ahead() -> None:
    """Reads once what lies in systemd's folders, for who only looks: until this process ends, looks at units answer with that."""
    _ahead.update({folder: _names(folder) for folder in FOLDERS})


def look(
    unit: str, loaded: Iterable[str] = (), folders: Collection[Path] = FOLDERS, ours: Path = OURS
) -> list[Difference]:
    """What changes a unit that r1prov writes.

    Args:
        unit: its name, with its type.
        loaded: the drop-ins that systemd says it has read for it.
        folders: where to look.
        ours: where r1prov writes it.
    """
    kind = unit.rpartition(".")[2]
    names = {folder: _names(folder) for folder in folders}
    seen = {path for folder in folders for path in _drop_ins(folder, unit, names[folder])}
    seen |= {path for path in map(Path, loaded) if path.parent.name != f"{kind}.d" and path.exists()}
    found = [_drop_in(path, unit) for path in sorted(seen)]
    for folder in folders:
        if folder != ours and unit in names[folder]:
            found += _elsewhere(folder / unit, unit)
        found += _links(folder, unit, WANTED_BY[kind] if folder == ours else "", names[folder])
    return [*found, *own_file(ours / unit)]


def administrators(unit: str, folders: Collection[Path] = FOLDERS) -> list[Difference]:
    """Drop-ins for all units of this one's type. They are an administrator's own, and they change ours, too."""
    kind = unit.rpartition(".")[2]
    theirs = [folder for folder in folders if folder != DISTRIBUTIONS and f"{kind}.d" in _names(folder)]
    paths = [path for folder in theirs for path in _conf(folder / f"{kind}.d")]
    said = "{} changes {} of every {}, those of r1prov too. It is not r1prov's, so it stays"
    return [
        Difference("drop-in for all", str(path), "", settings, said.format(path, settings, kind))
        for path, settings in ((path, _settings(path)) for path in paths)
    ]


def variables(names: Iterable[str]) -> list[Difference]:
    """Variables that systemd gives to every service, as an administrator has told it to. Programs of ours may heed them."""
    said = (
        "systemd gives every service the variable {}, those of r1prov too. It is not r1prov's, so it stays: "
        "`{}` takes it away"
    )
    return [
        Difference("variable for all", name, "", name, said.format(name, units.in_words("unset-environment", name)))
        for name in names
        if not _OF_EVERY_HOST.fullmatch(name)
    ]


def own_file(path: Path) -> list[Difference]:
    """Whether a path is a file that root alone may change. A missing one is no difference here, because whoever writes it knows."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return []
    if stat.S_ISLNK(status.st_mode):
        target = str(path.readlink())
        said = "is masked" if target == "/dev/null" else f"is a link to {target}"
        return [Difference("link", str(path), "a file", target, f"{path} {said}, and should be a file")]
    has = (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
    if has == (0, 0, 0o644):
        return []
    words = owner_and_mode(*has)
    return [
        Difference("mode", str(path), "0:0 0644", words, f"{path} has owner and mode {words}, and should have 0:0 0644")
    ]


def _drop_ins(folder: Path, unit: str, names: Collection[str]) -> Iterator[Path]:
    """The drop-ins for a unit below a folder, under its own name and under each beginning of that."""
    name, _, kind = unit.rpartition(".")
    words = name.split("-")
    begins = ["-".join(words[:count]) + "-" for count in range(1, len(words))]
    for each in (name, *begins):
        if f"{each}.{kind}.d" in names:
            yield from _conf(folder / f"{each}.{kind}.d")


def _names(folder: Path) -> Mapping[str, bool]:
    """The names in a folder in their order, and whether each is a link; none where there is no such folder."""
    if folder in _ahead:
        return _ahead[folder]
    try:
        with os.scandir(folder) as listed:
            return dict(sorted((each.name, each.is_symlink()) for each in listed))
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _conf(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.conf")) if folder.is_dir() else []


def _drop_in(path: Path, unit: str) -> Difference:
    settings = _settings(path)
    begin = path.parent.name.rpartition(".")[0].rpartition(".")[0]
    # It is the same for each of these units, and whoever comes first removes it.
    of = f"units that are called {begin}*" if begin.endswith("-") else unit
    return Difference("drop-in", str(path), "", settings, f"the drop-in {path} changes {settings} of {of}")


def _settings(path: Path) -> str:
    """The names of the settings in a file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        names = list(dict.fromkeys(_SETTING.findall(text)))
    except OSError:
        names = []
    return ", ".join(names) or "nothing"


def _elsewhere(path: Path, unit: str) -> list[Difference]:
    """A second file under the unit's name."""
    if not (path.is_symlink() or path.exists()):
        return []
    masks = path.is_symlink() and str(path.readlink()) == "/dev/null"
    said = f"{path} masks {unit}" if masks else f"{path} is a second file under the name of {unit}"
    return [Difference("unit elsewhere", str(path), "", "a mask" if masks else _settings(path), said)]


def _links(folder: Path, unit: str, target: str, names: Mapping[str, bool]) -> Iterator[Difference]:
    """Links by which other units start this one or are started by it, except that `target` may want it; and its other names."""
    for kind in DEPENDENCIES:
        for name in (name for name in names if name.endswith(f".{kind}") and name != f"{unit}.{kind}"):
            path, by = folder / name / unit, name.removesuffix(f".{kind}")
            if not os.path.lexists(path):
                continue
            if (by, kind) != (target, "wants"):
                yield Difference("link", str(path), "", kind, f"{path} lets {by} start {unit}")
            elif os.path.realpath(path) != os.path.realpath(folder / unit):
                leads = path.readlink() if path.is_symlink() else "nothing"
                said = f"{path} leads to {leads}, and should lead to the unit"
                yield Difference("wanted", str(path), str(folder / unit), str(leads), said)
        for path in sorted((folder / f"{unit}.{kind}").glob("*")) if f"{unit}.{kind}" in names else ():
            yield Difference("link", str(path), "", kind, f"{path} lets {unit} start {path.name}")
    for path in (folder / name for name, is_link in names.items() if is_link and name != unit):
        if path.readlink().name == unit:
            yield Difference("link", str(path), "", "alias", f"{path} is another name for {unit}")


def strays(known: Collection[str], running: Iterable[str], folders: Collection[Path] = FOLDERS) -> list[Difference]:
    """Files, drop-in folders and running units that carry r1prov's name, and that no role makes.

    Args:
        known: the units that roles make, with their types.
        running: the units that systemd has in memory.
        folders: where to look.
    """
    found: dict[str, Difference] = {}
    for folder in folders:
        for path in sorted(folder.glob("r1prov*")) if folder.is_dir() else ():
            name = re.sub(r"\.(d|wants|requires|upholds)$", "", path.name)
            if name not in known and not _begins(name, known):
                found[str(path)] = _stray(str(path), path.name)
        for kind in DEPENDENCIES:
            for path in sorted(folder.glob(f"*.{kind}/r1prov*")) if folder.is_dir() else ():
                if path.name not in known:
                    found[str(path)] = _stray(str(path), path.name)
    for name in running:
        if name.startswith("r1prov") and name not in {*known, *(Path(place).name for place in found)}:
            found[name] = _stray(name, name)
    return list(found.values())


def _begins(name: str, known: Collection[str]) -> bool:
    """Whether this is the beginning of a known unit's name, as folders of drop-ins have it. `look` tells of those."""
    begin, _, kind = name.rpartition(".")
    return begin.endswith("-") and any(each.startswith(begin) and each.endswith(f".{kind}") for each in known)


def _stray(place: str, name: str) -> Difference:
    return Difference("stray", place, "", name, f"{place} carries r1prov's name, and no part of r1prov has made it")
