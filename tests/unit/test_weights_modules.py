from __future__ import annotations

import getpass
import grp
import json
import os
import pwd
import struct
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.r1.prov.plugins.module_utils.units import UNKNOWN
from ansible_collections.r1.prov.plugins.module_utils.weights_kept import is_as_verified
from ansible_collections.r1.prov.plugins.modules import weights
from ansible_collections.r1.prov.plugins.modules.weights import (
    TransferError,
    folder_actions,
    is_complete,
    link_actions,
    open_folders,
)

OWN_GROUP = grp.getgrgid(os.getgid()).gr_name
FILES = [{"name": "a.gguf", "bytes": 3, "sha256": "a" * 64}, {"name": "b.gguf", "bytes": 4, "sha256": "b" * 64}]
LETS_NOBODY_READ = struct.pack(
    "<I" + 5 * "HHI",
    2,  # the version
    *(1, 7, 2**32 - 1),  # the owner
    *(2, 5, 65534),  # nobody
    *(4, 5, 2**32 - 1),  # the group
    *(16, 5, 2**32 - 1),  # the most that all but the owner may
    *(32, 0, 2**32 - 1),  # others
)
"""An access list, as the kernel takes it (linux/posix_acl_xattr.h)."""
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


def test_what_was_damaged_is_said_by_the_run_that_mended_it_and_by_no_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit stays active after its end, so later runs read what the same start of it wrote down."""
    state = tmp_path / "state.json"
    state.write_text(
        json.dumps({"invocation": "2", "state": "done", "damaged": ["a.gguf"], "verified": {"a.gguf": {"bytes": 3}}})
    )
    monkeypatch.setattr(weights, "show", lambda *_: RUNNING)
    monkeypatch.setattr(weights, "STATE", state)
    monkeypatch.setattr(weights, "USER", getpass.getuser())

    def told(*, check_mode: bool = False) -> tuple[list[str], list[str]]:
        said: list[str] = []
        ended: dict[str, Any] = {}
        module: Any = SimpleNamespace(warn=said.append, exit_json=ended.update, check_mode=check_mode)
        weights.wait(module, {})
        assert ended["complete"]
        return said, ended["damaged"]

    once = (["a.gguf was damaged, and is replaced"], ["a.gguf"])
    assert told(check_mode=True) == once
    assert told() == once
    assert told() == ([], [])
    assert json.loads(state.read_text())["verified"] == {"a.gguf": {"bytes": 3}}


def test_a_look_says_why_nobody_can_tell_whether_a_transfer_was_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "it does not work, so nobody can tell"
    answer: dict[str, Any] = {}

    def ends(**result: Any) -> None:
        answer.update(result)
        raise SystemExit

    module: Any = SimpleNamespace(exit_json=ends, fail_json=ends, check_mode=True)
    monkeypatch.setattr(weights, "show", lambda *_: UNKNOWN)
    for told in (said, ""):
        monkeypatch.setattr(weights, "untold", lambda _, told=told: told)
        answer.clear()
        with pytest.raises(SystemExit):
            weights.wait(module, {})
        assert (answer.get("untold"), answer.get("differences")) == ((True, [said]) if told else (None, None))
    assert "was never set up" in answer["msg"]


@pytest.mark.parametrize("stranger", ["link", "link to nowhere", "file"])
def test_what_is_no_folder_is_removed_where_files_grow_and_nothing_that_it_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stranger: str
) -> None:
    monkeypatch.setattr(weights, "USER", getpass.getuser())
    monkeypatch.setattr(weights, "READERS", OWN_GROUP)
    path, elsewhere = tmp_path / "m", tmp_path / "elsewhere"
    path.mkdir()
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "precious").write_text("not ours")
    incoming = path / ".incoming"
    if stranger == "file":
        incoming.write_text("x")
    else:
        incoming.symlink_to(elsewhere if stranger == "link" else tmp_path / "nowhere")
    for act in folder_actions(path).values():
        act()
    assert incoming.is_dir()
    assert not incoming.is_symlink()
    assert not list(incoming.iterdir())
    assert (elsewhere / "precious").read_text() == "not ours"
    assert elsewhere.stat().st_mode & 0o777 == 0o700
    assert not folder_actions(path)


def test_a_folder_that_is_open_to_all_stays_so_until_the_run_settles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that serves from it may have been started without the group."""
    monkeypatch.setattr(weights, "USER", getpass.getuser())
    monkeypatch.setattr(weights, "READERS", OWN_GROUP)
    path, other, new = (tmp_path / "models" / name for name in ("served", "other", "new"))
    for folder in (path, path / ".incoming", other):
        folder.mkdir(parents=True)
        folder.chmod(0o755)
    assert not folder_actions(path)
    for act in folder_actions(new).values():
        act()
    assert new.stat().st_mode & 0o777 == 0o750
    (tmp_path / "models" / "link").symlink_to(tmp_path)
    (tmp_path / "models" / "file").touch()
    assert list(open_folders(path, [])) == [other, path]
    path.chmod(0o777)
    assert folder_actions(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_whatever_holds_weights_is_closed_also_what_is_not_wanted_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older r1prov has left open the registry of an Ollama that is switched off, and a model of whose users none is there."""
    monkeypatch.setattr(weights, "USER", "root")
    monkeypatch.setattr(weights, "READERS", "root")
    monkeypatch.setattr(weights, "replaced", lambda *_: [])
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        served, kept, blobs, embeddings = (root / part for part in ("models/m", "models/k", "ollama/blobs", "models/e"))
        for folder in (served, kept / ".incoming", blobs, embeddings):
            folder.mkdir(parents=True)
        for folder in (served, kept, embeddings):
            (folder / "x.gguf").write_text("weights")
        os.link(served / "x.gguf", blobs / "x")
        for path in (root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        for path in (kept, kept / ".incoming", kept / "x.gguf", root / "ollama", blobs):
            os.chown(path, 61234, 61234)

        def settled() -> dict[str, Any]:
            found: dict[str, Any] = {}
            module: Any = SimpleNamespace(check_mode=False, exit_json=found.update, fail_json=pytest.fail)
            weights.settle(
                module, {"path": str(served), "merged": "", "files": [], "registries": [str(root / "ollama"), "/none"]}
            )
            return found

        def reads(file: Path) -> bool:
            nobody: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
            return not subprocess.run(["head", "-c1", str(file)], **nobody, capture_output=True, check=False).returncode

        monkeypatch.setattr(weights, "is_ours", lambda folder: folder == served)
        files = (served / "x.gguf", kept / "x.gguf", blobs / "x")
        assert all(map(reads, files))
        assert settled()["closed"] == [str(kept), str(served), str(root / "ollama")]
        assert not any(map(reads, files))
        assert reads(embeddings / "x.gguf")  # it has no `.incoming`, and everybody may read it
        assert not settled()["changed"]
        os.setxattr(served, "system.posix_acl_access", LETS_NOBODY_READ)
        assert served.stat().st_mode & 0o777 == 0o750
        assert reads(served / "x.gguf")
        assert settled()["closed"] == [str(served)]
        assert not reads(served / "x.gguf")


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


MOUNTS = "/dev/sda / ext4 rw 0 0\nhost:/x /srv/r1prov nfs4 rw 0 0\n/dev/sdb /srv/r1prov/models/local xfs rw 0 0\n"


@pytest.mark.parametrize(
    ("path", "far"), [("/srv/r1prov/models/a", True), ("/srv/r1prov/models/local/a", False), ("/srv/other", False)]
)
def test_a_file_system_that_another_machine_keeps(path: str, far: bool) -> None:
    assert weights.is_elsewhere(Path(path), MOUNTS) == far


def test_files_of_a_model_that_others_may_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "USER", pwd.getpwuid(os.geteuid()).pw_name)
    for name in ("a.gguf", "b.gguf", "whole.gguf"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o644)
    files = [{"name": "a.gguf"}, {"name": "b.gguf"}, {"name": "gone.gguf"}]
    assert weights.wrong_files(tmp_path, files, "whole.gguf") == []
    (tmp_path / "a.gguf").chmod(0o666)
    (tmp_path / "whole.gguf").chmod(0o600)
    found = weights.wrong_files(tmp_path, files, "whole.gguf")
    assert [Path(each.place).name for each in found] == ["a.gguf", "whole.gguf"]
    for each in found:
        weights.put_right(each)
    assert weights.wrong_files(tmp_path, files, "whole.gguf") == []
