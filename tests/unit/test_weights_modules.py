from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.r1.prov.plugins.module_utils.merged_weights import is_as_verified
from ansible_collections.r1.prov.plugins.modules.weights import TransferError, is_complete, link_actions

FILES = [{"name": "a.gguf", "bytes": 3, "sha256": "a" * 64}, {"name": "b.gguf", "bytes": 4, "sha256": "b" * 64}]
RUNNING = {"LoadState": "loaded", "ActiveState": "active", "Result": "success", "InvocationID": "2"}


@pytest.mark.parametrize(
    ("unit", "state", "complete"),
    [
        ({}, {"invocation": "2", "state": "done"}, True),
        ({}, {"invocation": "2", "state": "running"}, False),
        ({}, {}, False),  # the unit has only just started
        ({}, {"invocation": "1", "state": "done"}, False),  # an earlier start of the unit wrote this
        ({}, {"invocation": "1", "state": "failed", "message": "old"}, False),
        ({"ActiveState": "activating"}, {}, False),
    ],
)
def test_complete_or_to_be_waited_for(unit: dict[str, str], state: dict[str, str], complete: bool) -> None:
    assert is_complete(RUNNING | unit, state) is complete


@pytest.mark.parametrize(
    ("unit", "state", "says"),
    [
        ({"ActiveState": "failed"}, {"invocation": "2", "state": "failed", "message": "no source"}, "no source"),
        ({"LoadState": "not-found", "ActiveState": "inactive", "InvocationID": ""}, {}, "never set up"),
        ({"ActiveState": "inactive"}, {}, "was stopped"),
    ],
)
def test_what_will_not_complete_by_itself(unit: dict[str, str], state: dict[str, str], says: str) -> None:
    with pytest.raises(TransferError, match=says):
        is_complete(RUNNING | unit, state)


def test_files_elsewhere_on_the_disk_are_linked_in_to_be_verified(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "models" / "m", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.gguf").write_text("aaa")
    (elsewhere / "b.gguf").write_text("not 4 bytes")
    todo = link_actions(path, FILES, [str(tmp_path / "none"), str(elsewhere)])
    assert list(todo) == [f"linked {elsewhere / 'a.gguf'}"]
    (path / ".incoming").mkdir(parents=True)
    for act in todo.values():
        act()
    assert (path / ".incoming" / ("a" * 64)).stat().st_nlink == 2
    assert not link_actions(path, FILES, [str(elsewhere)])


def test_a_file_that_not_all_may_read_is_not_linked(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_text("aaa")
    (tmp_path / "a.gguf").chmod(0o600)
    assert not link_actions(tmp_path / "m", FILES, [str(tmp_path)])


def test_whether_files_are_as_they_were_verified(tmp_path: Path) -> None:
    state = tmp_path / "state.json"

    def remember() -> None:
        verified: dict[str, Any] = {}
        for file in FILES:
            status = (tmp_path / file["name"]).stat()
            looks = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
            verified[str(tmp_path / file["name"])] = {"sha256": file["sha256"], **looks}
        state.write_text(json.dumps({"verified": verified}))

    assert not is_as_verified(tmp_path, FILES, state)
    (tmp_path / "a.gguf").write_text("aaa")
    (tmp_path / "b.gguf").write_text("bbbb")
    remember()
    assert is_as_verified(tmp_path, FILES, state)
    (tmp_path / "b.gguf").write_text("cccc!")
    assert not is_as_verified(tmp_path, FILES, state)
    remember()
    (tmp_path / "a.gguf").unlink()
    assert not is_as_verified(tmp_path, FILES, state)
