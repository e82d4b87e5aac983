"""Looks at the processes of a unit: whether they are what the unit declares.

A unit file that is right says nothing about a process that was started while it was wrong.
"""

from __future__ import annotations

import grp
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.r1.prov.plugins.module_utils import account_look, confinement_look
from ansible_collections.r1.prov.plugins.module_utils.difference import Difference
from ansible_collections.r1.prov.plugins.module_utils.host_probe import as_owner_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

CREDENTIALS = "${CREDENTIALS_DIRECTORY}"
_SYSTEMD_GIVES = re.compile(
    r"(LANG|LANGUAGE|LC_\w+|PATH|HOME|LOGNAME|USER|SHELL|TERM|TZ|PWD|OLDPWD|SHLVL|_|INVOCATION_ID|JOURNAL_STREAM|SYSTEMD_\w+|CREDENTIALS_DIRECTORY|"
    r"(STATE|RUNTIME|CACHE|LOGS|CONFIGURATION)_DIRECTORY|LISTEN_\w+|MEMORY_PRESSURE_\w+|NOTIFY_SOCKET|WATCHDOG_\w+|MAINPID|PIDFILE|"
    r"SERVICE_RESULT|EXIT_\w+|MONITOR_\w+|TRIGGER_\w+|DEBUG_INVOCATION|FDSTORE|REMOTE_\w+)"
)
_INSTALLED = re.compile(r"^/(usr|lib|lib64|bin|sbin|opt|srv)/")
_DELETED = " (deleted)"


@dataclass(frozen=True)
class Declared:
    """What a unit declares of its main process.

    Attributes:
        argv: program and arguments.
        environment: variables and their values.
        secret: the names of variables whose values are not compared.
        any_environment: whether a script that r1prov does not know sets more variables.
        user: who it runs as, with the group of the same name.
        groups: its other groups, as numbers.
        network: the file of the network namespace that it is in; None for any.
        data: the folders and files whose old content it must not have in memory.
        replaced: those of them that are other ones than at its start. It starts again for that, and the run may have just mended them.
        unit_file: the text of its unit, which says how it is restricted.
        group: the control group of its unit; empty where that is not known.
        own_variables: how the names of variables begin that the program gives itself; empty where it gives itself none.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    secret: Collection[str]
    any_environment: bool
    user: str
    groups: Collection[int]
    network: Path | None = None
    data: Collection[str] = ()
    replaced: Collection[str] = ()
    unit_file: str = ""
    group: str = ""
    own_variables: str = ""


def look(
    unit: str, main: str, pids: Iterable[str], declared: Declared, *, inherited: Collection[str] = ()
) -> list[Difference]:
    """In what a unit's processes differ from what is declared. A process that is gone meanwhile differs in nothing.

    Args:
        unit: the unit's name, for the sentences.
        main: its main process.
        pids: all of its processes.
        declared: what is declared.
        inherited: names of variables that systemd gives to every unit of this host.
    """
    try:
        with as_owner_of(main):
            found = [
                *_arguments(unit, main, declared),
                *_environment(unit, main, declared, inherited),
                *_identity(unit, main, declared),
                *_network(unit, main, declared),
                *_confinement(unit, main, declared),
            ]
    except (FileNotFoundError, ProcessLookupError):
        return []
    for pid in dict.fromkeys([main, *pids]):
        try:
            with as_owner_of(pid):
                found += [*_state(unit, pid), *_files(unit, pid, declared)]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _differs(process: tuple[str, str], kind: str, expected: str, found: str, said: str) -> Difference:
    unit, pid = process
    return Difference(
        f"process {kind}", f"{unit}, process {pid}", expected, found, f"the process {pid} of {unit} {said}"
    )


def _arguments(unit: str, pid: str, declared: Declared) -> list[Difference]:
    """A script shows after its interpreter, and a program may show its title in front (nginx does). Whatever is more is a difference."""
    words = _words(pid, "cmdline")
    folder = _variables(pid).get("CREDENTIALS_DIRECTORY", f"/run/credentials/{unit}")
    wanted = " ".join(word.replace(CREDENTIALS, folder) for word in declared.argv)
    has = " ".join(words).rstrip()
    before = has.removesuffix(wanted).split()
    if not has or (
        has.endswith(wanted) and not any(word.startswith("-") and word not in _shebang(declared) for word in before)
    ):
        return []
    return [_differs((unit, pid), "arguments", wanted, has, f"runs as `{has}`, and should run as `{wanted}`")]


def _shebang(declared: Declared) -> list[str]:
    """The words of the first line of a script; none for another program."""
    try:
        with Path(declared.argv[0]).open("rb") as program:
            first = program.readline(512)
    except OSError:
        return []
    return first[2:].decode(errors="replace").split() if first.startswith(b"#!") else []


def _environment(unit: str, pid: str, declared: Declared, inherited: Collection[str]) -> list[Difference]:
    has = _variables(pid)
    if not has:  # nginx writes its title over them
        return []
    found = []
    for name, value in declared.environment.items():
        if has.get(name) != value and not declared.any_environment:
            is_there = f"has {name}={has[name]}" if name in has else f"lacks {name}"
            found.append(
                _differs(
                    (unit, pid),
                    "environment",
                    f"{name}={value}",
                    has.get(name, ""),
                    f"{is_there}, and should have {name}={value}",
                )
            )
    if not declared.any_environment:
        own = {*declared.environment, *declared.secret, *inherited}
        more = sorted(
            name
            for name in has
            if name not in own
            and not _SYSTEMD_GIVES.fullmatch(name)
            and not (declared.own_variables and name.startswith(declared.own_variables))
        )
        if more:
            names = ", ".join(more)
            found.append(
                _differs((unit, pid), "environment", "", names, f"has variables that its unit does not set: {names}")
            )
    return found


def _identity(unit: str, pid: str, declared: Declared) -> list[Difference]:
    try:
        uid, gid = account_look.own_uid(declared.user), grp.getgrnam(declared.user).gr_gid
    except KeyError:
        return []
    status = _status(pid)
    uids, gids, more = (
        status["Uid"].split(),
        status["Gid"].split(),
        {int(each) for each in status.get("Groups", "").split()},
    )
    found = []
    if set(uids) != {str(uid)}:
        said = f"runs with the user number {uids[0]}, and {declared.user} has {uid}"
        found.append(_differs((unit, pid), "user", str(uid), uids[0], said))
    if set(gids) != {str(gid)}:
        said = f"runs with the group number {gids[0]}, and {declared.user} has {gid}"
        found.append(_differs((unit, pid), "group", str(gid), gids[0], said))
    if surplus := more - {gid, *declared.groups}:
        numbers = ", ".join(map(str, sorted(surplus)))
        found.append(
            _differs((unit, pid), "groups", "", numbers, f"is in groups that its unit does not give it: {numbers}")
        )
    return found


def _network(unit: str, pid: str, declared: Declared) -> list[Difference]:
    if declared.network is None or not declared.network.exists():
        return []
    has, wanted = Path(f"/proc/{pid}/ns/net").stat().st_ino, declared.network.stat().st_ino
    if has == wanted:
        return []
    return [
        _differs((unit, pid), "network", str(declared.network), str(has), f"is not in the network {declared.network}")
    ]


def _confinement(unit: str, pid: str, declared: Declared) -> list[Difference]:
    lacking = confinement_look.look(pid, declared.unit_file, _status(pid), declared.group)
    return [_differs((unit, pid), each.kind, each.expected, each.found, each.said) for each in lacking]


def _state(unit: str, pid: str) -> list[Difference]:
    state = _status(pid)["State"][:1]
    return (
        [_differs((unit, pid), "state", "", "stopped", "is stopped by a signal and does nothing")]
        if state in "Tt"
        else []
    )


def _files(unit: str, pid: str, declared: Declared) -> list[Difference]:
    """Files in memory that have been replaced or removed since."""
    old, replaced = set(), {os.path.realpath(path) for path in declared.replaced}
    for line in (Path("/proc") / pid / "maps").read_text(errors="replace").splitlines():
        path = line.split(maxsplit=5)[5:]
        if path and path[0].endswith(_DELETED):
            name = path[0].removesuffix(_DELETED)
            # What is ours may lie on the data disk, behind a link.
            folders = (*declared.data, os.path.realpath("/opt/r1prov"))
            is_of_ours = any(name == each or name.startswith(f"{each}/") for each in folders)
            if name not in replaced and (_INSTALLED.match(name) or is_of_ours):
                old.add(name)
    program = str((Path("/proc") / pid / "exe").readlink())
    if program.endswith(_DELETED):
        old.add(program.removesuffix(_DELETED))
    if not old:
        return []
    first = min(old)
    more = f" and {len(old) - 1} more files" if len(old) > 1 else ""
    return [
        _differs(
            (unit, pid), "files", "", first, f"still uses {first}{more} as before the file was replaced or removed"
        )
    ]


def _words(pid: str, name: str) -> list[str]:
    return (Path("/proc") / pid / name).read_text(errors="replace").split("\0")


def _variables(pid: str) -> dict[str, str]:
    pairs = (word.partition("=") for word in _words(pid, "environ"))
    return {name: value for name, equals, value in pairs if equals and re.fullmatch(r"[A-Za-z_]\w*", name)}


def _status(pid: str) -> dict[str, str]:
    lines = (line.partition(":") for line in (Path("/proc") / pid / "status").read_text(errors="replace").splitlines())
    return {name: value.strip() for name, _, value in lines}
