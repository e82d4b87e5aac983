"""Backups of the chat page's data, between one release and the next.

A release brings the database to its own form when it starts, and an older release may not be able to read that. So a release that is not
the one that has last proven itself on the data is an attempt, and the data is copied before it starts.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from ansible_collections.r1.prov.plugins.module_utils.files import whole_folder
from ansible_collections.r1.prov.plugins.module_utils.users import acting_as

DATABASE = "webui.db"
_MADE_ANEW = ("static", "cache")


class History(NamedTuple):
    """The releases that have had the data: the last that has proven itself, the one that was tried since, and the backup between them."""

    proven: str = ""
    attempt: str = ""
    backup: str = ""


def decide(history: History, release: str) -> tuple[str, History]:
    """Decides what is to be done before a release starts. The history from then on lacks the name of a backup that is still to be made."""
    if history.attempt and history.attempt != release:
        return "restore" if history.backup else "record", History(
            history.proven,
            "" if release == history.proven else release,
            "" if release == history.proven else history.backup,
        )
    if release in (history.proven, history.attempt):
        return "nothing", history
    return "backup", History(history.proven, release)


def is_there(database: Path) -> bool:
    """Whether there is a database. A page that runs while somebody removes its database makes an empty file in its place."""
    return database.exists() and database.stat().st_size > 0


def size_bytes(folder: Path) -> int:
    """The bytes that the files of a folder take."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())


def copy(data: Path, target: Path, user: str) -> None:
    """Copies the data. The folder appears whole or not at all."""
    skipped = shutil.ignore_patterns(f"{DATABASE}*")

    def ignore(folder: str, names: list[str]) -> set[str]:
        return skipped(folder, names) | (set(_MADE_ANEW) & set(names) if Path(folder) == data else set())

    with whole_folder(target) as folder:
        shutil.copytree(data, folder, symlinks=True, ignore=ignore, dirs_exist_ok=True)
        with acting_as(user):
            source = sqlite3.connect(f"file:{data / DATABASE}?mode=rw", uri=True, timeout=30)
            # Makes the files that go with it, as this user.
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
        with closing(source), closing(sqlite3.connect(folder / DATABASE)) as copied:
            source.backup(copied)


def restore(backup: Path, data: Path, aside: Path, user: str) -> None:
    """Sets the data aside and puts a backup in its place. If it is cut off, it can be done again."""
    aside.mkdir(mode=0o700)
    for entry in data.iterdir():
        # It is copied where a folder lies in a lower layer of an overlay and cannot get another name.
        shutil.move(entry, aside / entry.name)
    shutil.copytree(backup, data, symlinks=True, dirs_exist_ok=True)
    for path in [data, *data.rglob("*")]:
        shutil.chown(path, user, user) if not path.is_symlink() else None
    data.chmod(0o700)
    os.sync()


def surplus(names: list[str], keep: int) -> list[str]:
    """The names of the backups that are too old to be kept. A name begins with the time of the backup."""
    return sorted(names)[:-keep]
