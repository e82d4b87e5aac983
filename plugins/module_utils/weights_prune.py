"""Removes what nobody needs of models: other quants, files that belong to nothing, beginnings that were left over."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.r1.prov.plugins.module_utils import weights_kept, weights_there
from ansible_collections.r1.prov.plugins.module_utils.users import acting_as

if TYPE_CHECKING:
    from collections.abc import Sequence


def surplus(folder: Path, files: list[dict[str, Any]], merged: str, only: Sequence[str]) -> list[dict[str, Any]]:
    """The files beside what is served that nobody needs.

    Args:
        folder: of the model that is served.
        files: its published files.
        merged: the file that is made of them and served; empty where they are themselves.
        only: the files that may go; empty for all.

    Returns:
        As `weights_there.surplus`.
    """
    job = {
        "models": str(folder.parent),
        "wanted": [{"folder": str(folder), "files": files, "merged": merged}],
    }
    rows = weights_there.surplus(weights_there.there(job))
    return [row for row in rows if not only or row["path"] in only]


def in_use(paths: Sequence[str], processes: Path = Path("/proc")) -> dict[str, str]:
    """Which of these files a process has mapped, each with the process: its program and number."""
    found: dict[str, str] = {}
    names = {re.escape(path) for path in paths}
    if not names:
        return found
    mapped = re.compile(f" ({'|'.join(names)})(?: \\(deleted\\))?$", re.MULTILINE)
    for process in processes.glob("[0-9]*"):
        with suppress(OSError):  # Many end meanwhile.
            for path in mapped.findall((process / "maps").read_text(errors="replace")):
                found[path] = f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return found


def remove(folder: Path, rows: Sequence[dict[str, Any]], user: str) -> None:
    """Removes the files, and the folders of other models that are empty then.

    Args:
        folder: of the model that is served, which stays.
        rows: from `surplus`.
        user: whose the files are. It removes them, so that no link leads root elsewhere.

    Raises:
        OSError: one cannot be removed.
    """
    with acting_as(user):
        weights_kept.forget([Path(row["path"]) for row in rows])
        for path in (Path(each) for row in rows for each in (*row["also"], row["path"])):
            path.unlink(missing_ok=True)
        for model in {_model(folder, Path(row["path"])) for row in rows}:
            with suppress(OSError):  # Something else lies there.
                (model / ".incoming").rmdir() if model != folder else None
    for model in {_model(folder, Path(row["path"])) for row in rows} - {folder}:
        with suppress(OSError):
            model.rmdir()


def _model(folder: Path, path: Path) -> Path:
    """The folder of the model to which a file belongs."""
    return folder.parent / path.relative_to(folder.parent).parts[0]
