"""Looks at the account of a service: whether it is one that nobody can log in to, with no rights but its own."""

from __future__ import annotations

import grp
import json
import pwd
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.r1.prov.plugins.module_utils.difference import Difference
from ansible_collections.r1.prov.plugins.module_utils.files import read_json, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable

HOME, SHELL = "/nonexistent", "/usr/sbin/nologin"
LOCKED = ("!", "*")
ETC = Path("/etc")
NUMBERS = Path("/var/lib/r1prov/service/accounts.json")
"""The number of each account when all was well with it: what it owns is found again by that."""
GROUP_NUMBERS = NUMBERS.with_name("groups.json")
"""The same of each group."""


@dataclass(frozen=True)
class Account:
    """What the files of a host say of an account.

    Attributes:
        uid: its number; None where it does not exist.
        gid: the number of its primary group.
        home: its home.
        shell: its shell.
        own_gid: the number of the group of its name; None where there is none.
        groups: other groups that name it as a member.
        members: whom the group of its name has as members.
        password: how its password's field begins; empty where it has none.
        twins: other accounts with its number.
        is_group_locked: whether nobody can join the group of its name by a password, and nobody may choose its members.
    """

    uid: int | None
    gid: int
    home: str
    shell: str
    own_gid: int | None
    groups: tuple[str, ...]
    members: tuple[str, ...]
    password: str
    twins: tuple[str, ...]
    is_group_locked: bool = True


@dataclass(frozen=True)
class Group:
    """What the files of a host say of a group.

    Attributes:
        gid: its number; None where it does not exist.
        members: the users whom it names.
        is_locked: whether nobody can join it by a password.
        twins: other groups with its number.
    """

    gid: int | None
    members: tuple[str, ...]
    is_locked: bool
    twins: tuple[str, ...]


def group(name: str, etc: Path = ETC) -> Group:
    """What the host's own files say of a group."""
    rows = _table(etc / "group")
    own = next((row for row in rows if row[0] == name), None)
    if not own:
        return Group(None, (), is_locked=True, twins=())
    twins = tuple(row[0] for row in rows if row[0] != name and row[2] == own[2])
    return Group(int(own[2]), tuple(filter(None, own[3].split(","))), is_locked=_is_locked(own, etc), twins=twins)


def _is_locked(row: list[str], etc: Path, *, alone: bool = False) -> bool:
    """Whether nobody can join a group by a password and, where it is to be `alone`, whether nobody may choose its members."""
    shadow = next((each for each in _table(etc / "gshadow") if each[0] == row[0]), None)
    if row[1] not in ("x", "!", "*", ""):
        return False
    return not shadow or (shadow[1][:1] in (*LOCKED, "") and not (alone and shadow[2]))


def read(name: str, etc: Path = ETC) -> Account:
    """What the host's own files say. A directory of a company has no say about the account of a service."""
    users, groups, shadow = (_table(etc / table) for table in ("passwd", "group", "shadow"))
    own = next((row for row in users if row[0] == name), None)
    group = next((row for row in groups if row[0] == name), None)
    return Account(
        uid=int(own[2]) if own else None,
        gid=int(own[3]) if own else 0,
        home=own[5] if own else "",
        shell=own[6] if own else "",
        own_gid=int(group[2]) if group else None,
        groups=tuple(row[0] for row in groups if row[0] != name and name in row[3].split(",")),
        members=tuple(filter(None, group[3].split(","))) if group else (),
        password=_password(own, shadow),
        twins=tuple(row[0] for row in users if own and row[0] != name and row[2] == own[2]),
        is_group_locked=not group or _is_locked(group, etc, alone=True),
    )


def _password(own: list[str] | None, shadow: list[list[str]]) -> str:
    """How an account's password begins. One in the file that everybody may read counts before that in the file of root's."""
    if own and own[1] != "x":
        return own[1][:1]
    return next((row[1] for row in shadow if own and row[0] == own[0]), "")[:1]


def remembered(name: str, numbers: Path) -> int | None:
    """The number that an account or a group had when all was well with it; None where nobody remembers."""
    number = read_json(numbers).get(name)
    return number if isinstance(number, int) else None


def reserved() -> set[int]:
    """The numbers that accounts and groups had when all was well. In a container that was built anew they come back one by one."""
    numbers = (read_json(path).values() for path in (NUMBERS, GROUP_NUMBERS))
    return {number for each in numbers for number in each if isinstance(number, int)}


def remember(name: str, number: int | None, numbers: Path) -> None:
    """Keeps the number of an account or a group. The file lies with what belongs to them, and so outlives the accounts of a container."""
    known = read_json(numbers)
    if number and known.get(name) != number:
        numbers.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_whole(numbers, json.dumps({**known, name: number}))


def others_have_uid(name: str, number: int, etc: Path = ETC) -> bool:
    """Whether another account has a number, here or in a directory of a company."""
    return bool(_names(etc / "passwd", number, lambda: pwd.getpwuid(number).pw_name) - {name})


def others_have_gid(name: str, number: int, etc: Path = ETC) -> bool:
    """Whether another group has a number, here or in a directory of a company."""
    return bool(_names(etc / "group", number, lambda: grp.getgrgid(number).gr_name) - {name})


def _names(table: Path, number: int, elsewhere: Callable[[], str]) -> set[str]:
    """The names that have a number in a table of this host; where there is none, the one that `elsewhere` finds, if any."""
    names = {row[0] for row in _table(table) if row[2] == str(number)}
    if not names:
        with suppress(KeyError):
            names = {elsewhere()}
    return names


def own_uid(name: str) -> int:
    """The number that an account had when all was well with it; where nobody remembers, the one that it has.

    Raises:
        KeyError: there is no such account, and there was none.
    """
    return int(read_json(NUMBERS).get(name) or pwd.getpwnam(name).pw_uid)


def look(name: str, has: Account, known_uid: int | None = None) -> list[Difference]:
    """In what an account differs. One that does not exist yet differs in nothing: whoever creates it knows.

    Args:
        name: the account.
        has: what the host says of it.
        known_uid: the number that it had when all was well; None where nobody remembers.
    """
    if has.uid is None:
        return []
    number = "the user number 0, which is root's" if has.uid == 0 else f"the user number {has.uid}, and had {known_uid}"
    checks = [
        (
            "uid",
            has.uid not in (0, None) and known_uid in (None, has.uid),
            str(known_uid),
            str(has.uid),
            f"has {number}",
        ),
        ("group", has.gid == has.own_gid and has.gid != 0, str(has.own_gid), str(has.gid), _group_words(name, has)),
        ("home", has.home == HOME, HOME, has.home, f"has the home {has.home}, and should have {HOME}"),
        (
            "shell",
            has.shell == SHELL,
            SHELL,
            has.shell,
            f"has the shell {has.shell or '/bin/sh'}, and should have {SHELL}",
        ),
        ("groups", not has.groups, "", ", ".join(has.groups), f"is a member of other groups: {', '.join(has.groups)}"),
        (
            "members",
            not has.members,
            "",
            ", ".join(has.members),
            f"shares its group with others: {', '.join(has.members)}",
        ),
        ("group password", has.is_group_locked, "locked", "open", "has a group that others can join"),
        ("password", has.password in LOCKED, "locked", "unlocked", "has a password that is not locked"),
    ]
    return [
        Difference(f"account {kind}", name, expected, found, f"the service account {name} {said}")
        for kind, well, expected, found, said in checks
        if not well
    ]


def _group_words(name: str, has: Account) -> str:
    if has.own_gid == 0:
        return "has a group of its name with the number 0, which is root's"
    return f"has the primary group number {has.gid}, and should have the group {name}"


def _table(path: Path) -> list[list[str]]:
    return [
        line.split(":")
        for line in (path.read_text(encoding="utf-8", errors="replace") if path.exists() else "").splitlines()
        if line.count(":") > 2
    ]
