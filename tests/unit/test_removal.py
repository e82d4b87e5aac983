"""Tests of what is removed from a host and what stays; roles/removal/molecule removes it from a real host."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from ansible_collections.r1.prov.plugins.module_utils import platform_hook, units
from ansible_collections.r1.prov.plugins.modules import removal

MOUNTINFO = "23 1 0:20 / / rw - overlay overlay rw\n40 23 0:31 /x /var/cache/r1prov/ccache rw - ext4 /dev/vda rw\n"


def made(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("x")


def test_mount_points_are_read() -> None:
    assert removal.mounts(MOUNTINFO) == ["/", "/var/cache/r1prov/ccache"]


def test_a_folder_goes_as_a_whole_unless_something_in_it_stays(tmp_path: Path) -> None:
    made(tmp_path, "opt/a/b", "cache/ccache/x", "cache/build/y", "lib/r1prov-one", "lib/other")
    patterns = [f"{tmp_path}/{name}" for name in ("opt", "cache", "lib/r1prov-*", "none")]
    assert removal.doomed(patterns, [], {f"{tmp_path}/cache/ccache"}) == [
        f"{tmp_path}/opt",
        f"{tmp_path}/cache/build",
        f"{tmp_path}/lib/r1prov-one",
    ]
    assert removal.doomed(patterns, [f"{tmp_path}/opt"], set()) == [f"{tmp_path}/cache", f"{tmp_path}/lib/r1prov-one"]


def test_a_link_goes_and_not_what_it_points_to(tmp_path: Path) -> None:
    made(tmp_path, "theirs/file")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    removal.remove(str(tmp_path / "link"))
    assert (tmp_path / "theirs" / "file").exists()


def grown(path: Path, n_bytes: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * n_bytes)
    return path


def test_no_link_leads_to_a_release_that_is_half_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = tmp_path / "r1prov" / "llama.cpp" / "releases" / "1"
    release.mkdir(parents=True)
    current = tmp_path / "r1prov" / "llama.cpp" / "current"
    current.symlink_to("releases/1")

    def cut_off(_: str) -> None:
        raise InterruptedError

    with monkeypatch.context() as patched:
        patched.setattr(removal.shutil, "rmtree", cut_off)
        with pytest.raises(InterruptedError):
            removal.remove(str(tmp_path / "r1prov"))
    assert release.is_dir()
    assert not current.is_symlink()
    removal.remove(str(tmp_path / "r1prov"))
    assert not (tmp_path / "r1prov").exists()


def test_a_file_with_two_links_frees_its_bytes_once_and_only_with_its_last_link(tmp_path: Path) -> None:
    model = grown(tmp_path / "models/m/m.gguf", 1 << 20)
    grown(tmp_path / "ollama/manifest", 10)
    (tmp_path / "ollama/blob").hardlink_to(model)
    models, ollama = f"{tmp_path}/models", f"{tmp_path}/ollama"
    bytes_of = {entry["path"]: entry["bytes"] for entry in removal.freed([models, ollama])}
    assert bytes_of[models] >= 1 << 20
    assert bytes_of[ollama] < 1 << 16
    assert removal.freed([ollama])[0]["bytes"] < 1 << 16  # the model stays under its other name
    assert removal.on_disk(str(tmp_path)) < (1 << 20) + (1 << 16)


def test_what_a_link_points_to_is_not_counted(tmp_path: Path) -> None:
    grown(tmp_path / "theirs/big", 1 << 20)
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    assert removal.freed([f"{tmp_path}/link"])[0]["bytes"] < 1 << 16


def test_what_stays_is_said_with_its_reason(tmp_path: Path) -> None:
    grown(tmp_path / "models/m.gguf", 1 << 20)
    made(tmp_path, "cache/ccache/x")
    kept, mounted = f"{tmp_path}/models", f"{tmp_path}/cache/ccache"
    patterns = [f"{tmp_path}/*"]
    weights, other = sorted(
        removal.staying(patterns, {kept: "weights"}, {mounted, "/", f"{kept}/deeper"}),
        key=lambda entry: entry["why"] != "weights",
    )
    assert (weights["path"], weights["bytes"] >= 1 << 20) == (kept, True)
    assert other == {"path": mounted, "bytes": None, "why": "mounted"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_is_kept_of_a_service_is_read_by_root_alone(tmp_path: Path) -> None:
    """Also where an older r1prov had left it open to all. What was root's already stays as it was."""
    made(tmp_path, "models/weights/m.gguf", "models/embeddings/e.gguf")
    ours = tmp_path / "models/weights"
    ours.chmod(0o755)
    for path in (tmp_path / "models", ours, ours / "m.gguf"):
        os.chown(path, 65534, 65534)
    removal.give_to_root(tmp_path / "models")
    assert {(path.stat().st_uid, path.stat().st_gid) for path in (tmp_path / "models").rglob("*")} == {(0, 0)}
    assert ours.stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "models").stat().st_mode & 0o777 == 0o755  # services of the next run pass through
    assert (tmp_path / "models/embeddings").stat().st_mode & 0o777 == 0o755


def test_a_group_that_is_the_own_group_of_a_user_who_stays_is_found() -> None:
    groups = [grp.struct_group(("r1prov-operators", "x", 900, ["anna"]))]
    users = [
        pwd.struct_passwd((name, "x", 1000, gid, "", "/", "/bin/sh"))
        for name, gid in {"olga": 900, "anna": 1000, "r1prov-x": 900}.items()
    ]
    assert removal.holders(groups, users, ["r1prov-x"]) == ["olga has the group r1prov-operators as their own group"]


def test_a_process_that_uses_what_goes_is_named(tmp_path: Path) -> None:
    """The disk gets the room back only when it ends. One that ends with a unit is not named, nor one that uses other files."""
    (tmp_path / "model.gguf").write_bytes(b"x" * 4096)
    program = "import mmap, sys; f = open(sys.argv[1]); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); print(flush=True); input()"
    command = [sys.executable, "-c", program, str(tmp_path / "model.gguf")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            named = Path("/proc", str(process.pid), "comm").read_text().strip()
            told = [f"process {process.pid} ({named}) still uses {tmp_path}/model.gguf"]
            assert removal.users_of([str(tmp_path)], []) == told
            assert removal.users_of([f"{tmp_path}/other"], []) == []
            own = Path("/proc", str(process.pid), "cgroup").read_text().strip().rpartition("/")[2]
            if own:
                assert removal.users_of([str(tmp_path)], [own]) == []
        finally:
            process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run something as another user")
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_process_that_would_keep_a_user_from_being_deleted_is_found(tmp_path: Path, elsewhere: bool) -> None:
    """Not one that ends with a unit, nor one of a container, where the number is somebody else's."""
    enter = "os.chroot(sys.argv[1])" if elsewhere else "pass"
    program = f"import os, sys, time; {enter}; os.setuid(61235); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            users = {61235: "r1prov-x", 61236: "r1prov-y"}
            own = Path("/proc", str(process.pid), "cgroup").read_text().strip().rpartition("/")[2]
            named = Path("/proc", str(process.pid), "comm").read_text().strip()
            found = [] if elsewhere else [f"process {process.pid} ({named}) runs as r1prov-x"]
            assert removal.strangers(users, ["r1prov-x.service"]) == found
            assert removal.strangers({61236: "r1prov-y"}, []) == []
            if own:
                assert removal.strangers(users, [own]) == []
        finally:
            process.kill()


@pytest.mark.parametrize("listed", [["r1prov-x.service"], []])
def test_services_that_cannot_be_stopped_keep_everything_in_one_sentence(tmp_path, monkeypatch, listed):
    program = tmp_path / "r1prov-units"
    program.touch(0)
    monkeypatch.setattr(units, "SYSTEMD", tmp_path / "none")
    monkeypatch.setattr(units, "PROGRAM", program)
    monkeypatch.setattr(units, "OWN", [str(program)])

    class FailedError(Exception):
        pass

    def fails(msg: str) -> None:
        raise FailedError(msg)

    with pytest.raises(FailedError) as failed:
        removal.stop(SimpleNamespace(fail_json=fails), listed, whole=True)
    assert str(failed.value) == (
        f"the services cannot be stopped: {program} cannot be run: Permission denied; `r1prov up` puts it right. Nothing was removed"
    )


@pytest.mark.parametrize("check", [True, False])
def test_where_the_data_disk_is_away_all_else_goes_and_the_removal_has_failed(tmp_path, monkeypatch, check):
    made(tmp_path, "etc/r1prov/x")
    answer = {}

    class Module:
        params: ClassVar = {"data_dir": "/data", "keep": [], "service": ""}
        check_mode = check

        def __init__(self, **_):
            pass

        def exit_json(self, **result):
            answer.update(result)

        def fail_json(self, **result):
            answer.update(result)
            raise SystemExit(1)

    monkeypatch.setattr(removal, "AnsibleModule", Module)
    monkeypatch.setattr(removal, "OURS", tmp_path / "units")
    monkeypatch.setattr(removal, "on_host", lambda *_: [f"{tmp_path}/etc/r1prov"])
    # The removal runs to its end, and the machine of this test may be a server of r1prov itself.
    monkeypatch.setattr(removal, "STAMPS", f"{tmp_path}/stamps/{{}}*")
    monkeypatch.setattr(removal, "TRUSTED", f"{tmp_path}/trusted/*")
    monkeypatch.setattr(removal, "NFT", tmp_path / "nft")
    monkeypatch.setattr(removal.pwd, "getpwall", list)
    monkeypatch.setattr(removal, "read_json", lambda _: {})
    monkeypatch.setattr(removal.data_disk, "away", lambda _: "the data disk is away")
    monkeypatch.setattr(removal.platform_hook, "written", list)
    for name in ("groups_of", "links_into", "users_of", "strangers", "emptied"):
        monkeypatch.setattr(removal, name, lambda *_, **__: [])
    monkeypatch.setattr(removal, "stop", lambda *_, **__: None)
    with nullcontext() if check else pytest.raises(SystemExit):
        removal.main()
    assert (tmp_path / "etc/r1prov").exists() == check
    assert [path["path"] for path in answer["removed"]["paths"]] == [f"{tmp_path}/etc/r1prov"]
    assert answer["away"] == "the data disk is away"
    said = "" if check else "the data disk is away. What lies on it was not removed. Remedy: bring the disk back"
    assert answer.get("msg", "").startswith(said)


def test_the_line_in_a_platforms_script_goes_and_the_rest_stays(tmp_path):
    own = "# r1prov: BEGIN\n/usr/local/bin/r1prov-units boot\n# r1prov: END\n"
    theirs, ours = tmp_path / "autodl.sh", tmp_path / "r1prov.sh"
    theirs.write_text(f"#!/bin/bash\nstart-something\n{own}other\n")
    theirs.chmod(0o750)
    ours.write_text(own)
    for path in (theirs, ours):
        platform_hook.take_out(path)
    assert theirs.read_text() == "#!/bin/bash\nstart-something\nother\n"
    assert oct(theirs.stat().st_mode)[-3:] == "750"
    assert not ours.exists()


def test_folders_of_ansible_go_with_the_whole_and_their_own_folder_last() -> None:
    root = pwd.getpwnam("root").pw_dir
    assert removal.emptied("/srv/r1prov", whole=True)[-2:] == [f"{root}/.ansible/tmp", f"{root}/.ansible"]
    assert not [path for path in removal.emptied("/srv/r1prov", whole=False) if ".ansible" in path]
