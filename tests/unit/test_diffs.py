"""Tests of `r1prov drift --diff`: what tasks of a check say of files whose content differs, in the forms in which Ansible says it."""

from __future__ import annotations

from typing import Any

import pytest

from r1prov.hosts import FileDiff
from r1prov.runs.diffs import LIMIT, file_diffs
from r1prov.runs.events import TaskDone

DEST = "/usr/local/lib/r1prov-await-ready"


def told(result: dict[str, Any]) -> list[FileDiff]:
    return list(file_diffs(TaskDone("gpu1", "service", "Install it", True, result, "ansible.builtin.copy")))


def content(**changes: Any) -> dict[str, Any]:
    return {
        "before_header": DEST,
        "before": "a\nX\nc\n",
        "after_header": "/here/await_ready.py",
        "after": "a\nb\nc\n",
    } | changes


def test_what_was_added_has_a_plus_and_what_is_missing_a_minus() -> None:
    (found,) = told({"dest": DEST, "diff": [content()]})
    assert (found.step, found.task, found.path) == ("service", "Install it", DEST)
    assert found.diff.splitlines() == [
        f"--- {DEST} as it should be",
        f"+++ {DEST} as it is",
        "@@ -1,3 +1,3 @@",
        " a",
        "-b",
        "+X",
        " c",
    ]


def test_modules_of_ours_and_each_item_of_a_loop_say_it_too() -> None:
    unit = content(before_header="/etc/systemd/system/x.service", after_header="/etc/systemd/system/x.service")
    assert [each.path for each in told({"diff": unit})] == ["/etc/systemd/system/x.service"]
    assert [each.path for each in told({"results": [{"diff": [content()]}, {"diff": unit}, {"skipped": True}]})] == [
        DEST,
        "/etc/systemd/system/x.service",
    ]


@pytest.mark.parametrize(
    ("diff", "says"),
    [
        ({"dst_binary": 1, "after_header": "/here/x", "after": "text"}, "it is no text"),
        (content(before="a\0b"), "it is no text"),
        ({"dst_larger": 104448, "after_header": "/here/x", "after": "text"}, "it is too large to be shown"),
        (content(before="a\n" * LIMIT * 2), "it is too large to be shown"),
    ],
)
def test_what_cannot_be_shown_is_said(diff: dict[str, Any], says: str) -> None:
    assert [(each.path, each.diff) for each in told({"dest": DEST, "diff": [diff]})] == [(DEST, says)]


@pytest.mark.parametrize(
    "result",
    [
        {"censored": "the output has been hidden due to the fact that 'no_log: true' was specified for this result"},
        {"dest": DEST, "diff": [{"before": "", "after_header": "/here/x", "after": "text"}]},  # It is not there.
        {"path": DEST, "diff": {"before": {"path": DEST, "mode": "0777"}, "after": {"path": DEST, "mode": "0755"}}},
        {"diff": {"before": "", "after": "setting x\n", "after_header": "/var/lib/r1prov/open-webui/webui.db"}},
        {"dest": DEST, "diff": []},
        {"dest": DEST, "diff": [content(before="same\n", after="same\n")]},
        {},
    ],
)
def test_what_is_no_difference_of_content_or_hidden_is_not_shown(result: dict[str, Any]) -> None:
    assert told(result) == []
