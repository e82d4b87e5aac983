"""How files on a host differ from what a run would write there, as far as its tasks say so."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from r1prov.hosts import FileDiff

if TYPE_CHECKING:
    from collections.abc import Iterator

    from r1prov.runs.events import TaskDone

LIMIT = 100_000
"""Texts with more characters are not compared. Ansible reads none that are larger than this, either."""

_UNSHOWN = {
    "larger": "it is too large to be shown",
    "binary": "it is no text",
}
"""What is said instead of a difference, by how Ansible's keys for it end."""


def file_diffs(event: TaskDone) -> Iterator[FileDiff]:
    """What a task of a check with differences says of files whose content differs. A task with secrets says nothing."""
    for result in event.result.get("results") or [event.result]:
        told = result.get("diff") if isinstance(result, dict) else None
        for each in told if isinstance(told, list) else [told]:
            if isinstance(each, dict):
                # Of a file that it does not show, Ansible names the one on the controller alone.
                path = str(each.get("before_header") or result.get("dest") or "")
                if path.startswith("/") and (text := _text(path, each)):
                    yield FileDiff(event.step, event.task, path, text)


def _text(path: str, told: dict[str, Any]) -> str:
    """The difference that is told; empty where it is none of the content, or the file is not there."""
    if why := next((said for end, said in _UNSHOWN.items() if any(key.endswith(end) for key in told)), ""):
        return why
    before, after = told.get("before"), told.get("after")
    if "before_header" not in told or not isinstance(before, str) or not isinstance(after, str):
        return ""
    if "\0" in before + after:
        return _UNSHOWN["binary"]
    if len(before) + len(after) > 2 * LIMIT:
        return _UNSHOWN["larger"]
    lines = difflib.unified_diff(
        after.splitlines(), before.splitlines(), f"{path} as it should be", f"{path} as it is", lineterm=""
    )
    return "\n".join(lines)
