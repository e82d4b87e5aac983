"""Changes the accounts and groups of a host by the programs that hold the locks of their files."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

_SYSTEM = range(999, 99, -1)
"""The numbers of system accounts, in the order in which useradd takes them."""


class EditError(Exception):
    """A program for accounts refuses; the message says which, and why."""


def run(*command: str) -> None:
    """Runs a program.

    Raises:
        EditError: it fails.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EditError(f"{' '.join(command)}: {done.stderr.strip()}")


def edit(pattern: str, replacement: str, table: str) -> None:
    """Changes one line of a table of accounts. vipw holds the locks that useradd and its kin hold, and moves a whole file into place.

    Raises:
        EditError: vipw fails.
    """
    script = f"s,{pattern},{replacement},"
    # vipw takes a file for unchanged whose time stamp is of the same second as before.
    stamped = 'before=$(stat --format %Y "$1"); {}; touch --date "@$((before + 1))" "$1"'
    edited = stamped.format(f"sed --in-place --expression='{script}' \"$1\"")
    editor = f"edited() {{ {edited}; }}; edited"
    # The shadow file of groups has no option of its own.
    tables = ["--group", "--shadow"] if table == "--gshadow" else [table]
    done = subprocess.run(
        ["vipw", "--quiet", *tables],
        env={**os.environ, "VISUAL": editor, "EDITOR": editor},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise EditError(f"vipw {table}: {done.stderr.strip()}")


def taken(table: str, number: int) -> bool:
    """Whether an account or a group has a number. `table` is passwd or group."""
    done = subprocess.run(["getent", table, str(number)], stdout=subprocess.DEVNULL, check=False)
    return done.returncode == 0


def free(reserved: Collection[int]) -> int:
    """A number of system accounts that neither an account nor a group has, and that is reserved for nobody."""
    numbers = (number for number in _SYSTEM if number not in reserved)
    return next(number for number in numbers if not (taken("passwd", number) or taken("group", number)))
