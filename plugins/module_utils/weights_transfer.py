"""The transfer of a model's files: the folder before it starts, and whether it is complete."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ansible_collections.r1.prov.plugins.module_utils.files import give
from ansible_collections.r1.prov.plugins.module_utils.units import last_words

UNIT_KEYS = ("LoadState", "ActiveState", "Result", "InvocationID")
"""The properties of the unit that `is_complete` looks at."""

Actions = dict[str, Callable[[], object]]


def folder_actions(path: Path, owner: str) -> Actions:
    """What makes the folder. Missing parents become root's. The folder, and the folder in which files grow, become the owner's."""
    todo: Actions = {}
    for parent in reversed(path.parents):
        if not parent.is_dir():
            todo[f"made {parent}"] = partial(give, parent, "root")
    for folder in (path.resolve(), path / ".incoming"):
        if (
            folder.is_symlink()
            or not folder.is_dir()
            or folder.owner() != owner
            or folder.stat().st_mode & 0o777 != 0o755
        ):
            todo[f"made {folder}"] = partial(give, folder, owner)
    return todo


def link_actions(path: Path, files: list[dict[str, Any]], folders: list[str]) -> Actions:
    """What links those files that are there, have the right size, lie on the same disk, and may be read by all."""
    todo: Actions = {}
    disk = next(parent for parent in (path, *path.parents) if parent.is_dir()).stat().st_dev
    for file in files:
        link = path / ".incoming" / file["sha256"]
        if link.exists() or (path / file["name"]).exists():
            continue
        for found in (Path(folder, file["name"]) for folder in folders):
            if not found.is_file() or found.is_symlink():
                continue
            status = found.stat()
            if (status.st_dev, status.st_size) == (disk, file["bytes"]) and status.st_mode & 0o004:
                todo[f"linked {found}"] = partial(os.link, found, link)
                break
    return todo


class TransferError(Exception):
    """The transfer will not complete by itself."""


def is_complete(unit: dict[str, Any], state: dict[str, Any]) -> bool:
    """Whether all files are there.

    Args:
        unit: systemd's properties of the unit.
        state: what the transfer wrote down; counts only if this start of the unit did.

    Raises:
        TransferError: it has failed, or nothing is under way.
    """
    if state.get("invocation") == unit["InvocationID"]:
        if state["state"] == "done":
            return True
        if state["state"] == "failed":
            raise TransferError(state["message"])
    if unit["LoadState"] != "loaded":
        raise TransferError("the transfer was never set up: run the role weights before joining it")
    if unit["ActiveState"] == "failed":
        raise TransferError(f"the transfer failed ({unit['Result']}): {last_words(unit['InvocationID'])}")
    if unit["ActiveState"] == "inactive":
        raise TransferError("the transfer was stopped")
    return False
