"""Tests of the line with which a platform starts the services, in scripts that bash really runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from ansible_collections.r1.prov.plugins.module_utils import platform_hook
from ansible_collections.r1.prov.plugins.modules import platform_hook as module
from ansible_collections.r1.prov.plugins.modules import removal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OLD = "# r1prov: BEGIN\n/usr/local/bin/r1prov-units boot\n# r1prov: END\n"
"""The line as it stands in a script when nothing is said of what comes after it."""
SCRIPTS = [
    "",
    "\n",
    "echo theirs",
    "#!/bin/bash",
    "#!/bin/bash\necho theirs\nexit 0\n",
    "#!/bin/bash\nexec true\n",
    "#!/bin/bash -e\necho theirs\nfalse\n",
    "#!/bin/bash\r\necho theirs\r\n",
    "#!/bin/bash\necho k\udce4se\n",
    "exit 0\n",
]


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script of the platform of this container, which is not there yet."""
    (tmp_path / "boot.sh").touch()
    monkeypatch.setattr(platform_hook, "PLATFORMS", {str(tmp_path / "boot.sh"): str(tmp_path / "autodl.sh")})
    return tmp_path / "autodl.sh"


def put(path: Path, text: str, mode: int = 0o755) -> None:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    path.chmod(mode)


class EndedError(Exception):
    """A module has answered."""


def ends(**answer: Any) -> None:
    raise EndedError(answer)


def asked(command: str, check: bool = False) -> dict[str, Any]:
    """What the module answers."""
    ansible = SimpleNamespace(params={"command": command}, check_mode=check, exit_json=ends, fail_json=ends)
    with mock.patch.object(module, "AnsibleModule", return_value=ansible), pytest.raises(EndedError) as ended:
        module.main()
    answer: dict[str, Any] = ended.value.args[0]
    return answer


@pytest.mark.parametrize(
    ("content", "is_runpods"),
    [
        ('#!/bin/bash\nexecute_script() { [[ -f $1 ]] && bash $1; }\nexecute_script "/post_start.sh"\n', True),
        ("#!/bin/sh\nexec sleep infinity\n", False),
        (None, False),
    ],
)
def test_a_script_is_runpods_if_it_runs_the_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, is_runpods: bool
) -> None:
    start, hook = tmp_path / "start.sh", tmp_path / "post_start.sh"
    if content is None:
        start.mkdir()
    else:
        start.write_text(content)
    monkeypatch.setattr(platform_hook, "PLATFORMS", {str(start): str(hook)})
    assert platform_hook.here() == (hook if is_runpods else None)


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_folder_of_scripts_is_a_platforms_if_it_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_folder: bool
) -> None:
    folder = tmp_path / "vast_boot.d"
    folder.mkdir() if is_folder else folder.touch()
    monkeypatch.setattr(platform_hook, "PLATFORMS", {str(folder): str(folder / "90-r1prov.sh")})
    assert platform_hook.here() == (folder / "90-r1prov.sh" if is_folder else None)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_services_start_whatever_else_a_script_does_and_it_is_restored(script: str, hook: Path) -> None:
    command = f"cat > {hook}.said; echo begun >> {hook}.said; false"
    put(hook, script)
    assert asked(command)["changed"]
    assert not asked(command)["changed"]
    subprocess.run(["bash", hook], stdin=subprocess.DEVNULL, check=False)
    assert hook.with_name("autodl.sh.said").read_text() == "begun\n"
    platform_hook.take_out(hook)
    if script:
        assert hook.read_bytes().decode("utf-8", "surrogateescape").removesuffix("\n") == script.removesuffix("\n")


def test_what_follows_in_a_script_is_done_though_the_services_cannot_be_started(hook: Path) -> None:
    put(hook, "set -e\nread word\necho $word\n")
    asked("cat; false")
    for command in (["bash", "-e", str(hook)], ["bash", "-ec", f". {hook}"]):
        done = subprocess.run(command, input="theirs\n", capture_output=True, text=True, check=False)
        assert done.stdout == "theirs\n"


@pytest.mark.parametrize("script", ["#!/bin/sh\n{}exit 0\n", "#!/bin/sh\nexit 0\n{}", "echo theirs\n{}"])
def test_a_line_that_stands_elsewhere_is_named_and_moved(script: str, hook: Path) -> None:
    command = "/usr/local/bin/r1prov-units boot"
    put(hook, "#!/bin/sh\nexit 0\n")
    asked(command)
    block = hook.read_text().removeprefix("#!/bin/sh\n").removesuffix("exit 0\n")
    put(hook, script.format(block))
    if script.startswith("#!/bin/sh\n{}"):
        assert asked(command, check=True)["differences"] == []
        return
    before = hook.read_text()
    found = asked(command, check=True)
    (said,) = found["differences"]
    assert said.startswith(f"r1prov's line in {hook} is at a place that may not be reached")
    assert found["changed"]
    assert hook.read_text() == before
    asked(command)
    assert asked(command, check=True)["differences"] == []
    assert hook.read_text().count(block) == 1
    assert hook.read_text().replace(block, "") == script.format("")


def test_what_is_not_as_it_should_be_names_the_script(hook: Path) -> None:
    command = "/usr/local/bin/r1prov-units boot"
    lacks = [f"{hook} lacks the line that starts r1prov's services with the container"]
    assert asked(command, check=True)["differences"] == lacks
    assert not hook.exists()
    put(hook, "echo theirs\n")
    assert asked(command, check=True)["differences"] == lacks
    put(hook, f"{OLD}echo theirs\n")
    assert asked(command)["differences"] == [f"r1prov's line in {hook} is another one than it should be"]
    assert asked(command)["differences"] == []


def test_a_script_keeps_owner_and_mode_and_a_new_one_can_be_run(hook: Path) -> None:
    asked("true")
    assert hook.stat().st_mode & 0o777 == 0o755
    owner = 61234 if os.geteuid() == 0 else os.geteuid()
    put(hook, "echo theirs\n", 0o600)
    os.chown(hook, owner, -1)
    for change in (lambda: asked("true"), lambda: platform_hook.take_out(hook)):
        change()
        assert (hook.stat().st_mode & 0o777, hook.stat().st_uid) == (0o600, owner)


def test_a_script_behind_a_link_is_written_where_it_lies(hook: Path, tmp_path: Path) -> None:
    put(tmp_path / "theirs", "echo theirs\n")
    hook.symlink_to("theirs")
    asked("true")
    assert hook.is_symlink()
    assert "\ntrue " in (tmp_path / "theirs").read_text()
    assert platform_hook.written() == [str(hook)]
    platform_hook.take_out(hook)
    assert hook.is_symlink()
    assert (tmp_path / "theirs").read_text() == "echo theirs\n"


def test_a_container_of_an_unknown_platform_is_left_alone(hook: Path) -> None:
    hook.with_name("boot.sh").unlink()
    assert not asked("true")["changed"]
    assert not hook.exists()


def folder(hook: Path) -> None:
    hook.mkdir()


def pipe(hook: Path) -> None:
    os.mkfifo(hook)


def nowhere(hook: Path) -> None:
    hook.symlink_to("missing/theirs")


def below_a_file(hook: Path) -> None:
    hook.symlink_to("boot.sh/theirs")


def circle(hook: Path) -> None:
    hook.symlink_to("autodl.sh")


def linked_folder(hook: Path) -> None:
    hook.symlink_to(".")


@pytest.mark.parametrize(
    ("obstacle", "what", "remedy"),
    [
        (folder, "is a folder", "mv HOOK HOOK.old"),
        (pipe, "is no file", "mv HOOK HOOK.old"),
        (nowhere, "there is no folder PLACE/missing", "rm HOOK"),
        (below_a_file, "PLACE/boot.sh is no folder", "rm HOOK"),
        (circle, "leads to itself", "rm HOOK"),
        (linked_folder, "a link to PLACE, is a folder", "mv HOOK HOOK.old"),
    ],
)
def test_what_keeps_a_script_from_being_written_is_said_first(
    obstacle: Callable[[Path], None], what: str, remedy: str, hook: Path
) -> None:
    obstacle(hook)
    found = platform_hook.fault(hook)
    assert found["what"].startswith(str(hook))
    what, remedy = (text.replace("HOOK", str(hook)).replace("PLACE", str(hook.parent)) for text in (what, remedy))
    assert what in found["what"]
    assert f"`{remedy}`" in found["remedy"]
    answer = asked("true")
    assert found["what"] in answer["msg"]
    assert "changed" not in answer


@pytest.fixture
def own_mounts(hook: Path) -> Iterator[Path]:
    """A file system of its own below the script's folder, for what only a file system can forbid."""
    disk = hook.parent / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", disk], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        put(disk / "theirs", "echo theirs\n")
        hook.symlink_to(disk / "theirs")
        assert platform_hook.fault(hook) == {}
        yield disk
    finally:
        subprocess.run(["umount", "--recursive", disk], check=True)


def test_a_script_on_a_read_only_file_system_is_said_first(own_mounts: Path, hook: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", own_mounts], check=True)
    assert "lies on a read-only file system" in platform_hook.fault(hook)["what"]


def test_a_script_that_is_mounted_is_said_first(own_mounts: Path, hook: Path, tmp_path: Path) -> None:
    put(tmp_path / "mounted", "echo theirs\n")
    subprocess.run(["mount", "--bind", tmp_path / "mounted", own_mounts / "theirs"], check=True)
    found = platform_hook.fault(hook)
    assert "is mounted there" in found["what"]
    assert found["remedy"].endswith(f"`umount {own_mounts}/theirs`")


def test_a_script_on_a_layered_disk_is_not_taken_for_a_mounted_one(own_mounts: Path, tmp_path: Path) -> None:
    """A container's own disk is such a one. Its files may have other numbers of file systems than their folder."""
    (tmp_path / "low/etc").mkdir(parents=True)
    for name in ("up", "work", "over"):
        (own_mounts / name).mkdir()
    layers = f"lowerdir={tmp_path}/low,upperdir={own_mounts}/up,workdir={own_mounts}/work"
    over = own_mounts / "over"
    if subprocess.run(
        ["mount", "-t", "overlay", "none", "-o", layers, over], capture_output=True, check=False
    ).returncode:
        pytest.skip("no layered disk can be mounted here")
    put(over / "etc/autodl.sh", "echo theirs\n")
    assert platform_hook.fault(over / "etc/autodl.sh") == {}


@pytest.mark.parametrize("locked", ["theirs", "."])
def test_an_immutable_script_is_said_first_and_left_alone_once_it_has_the_line(
    locked: str, own_mounts: Path, hook: Path
) -> None:
    has_program = shutil.which("chattr")
    if (
        not has_program
        or subprocess.run(["chattr", "+i", own_mounts / locked], capture_output=True, check=False).returncode
    ):
        pytest.skip("no file can be made immutable here")
    assert f"`chattr -i {(own_mounts / locked).resolve()}`" in platform_hook.obstacle()["remedy"]
    subprocess.run(["chattr", "-i", own_mounts / locked], check=True)
    asked("true")
    subprocess.run(["chattr", "+i", own_mounts / locked], check=True)
    assert platform_hook.obstacle() == {}
    assert not asked("true")["changed"]


def test_removal_refuses_while_the_line_cannot_be_taken_out(own_mounts: Path, hook: Path) -> None:
    asked("true")
    subprocess.run(["mount", "-o", "remount,ro", own_mounts], check=True)
    params = {"data_dir": str(hook.parent), "keep": [], "service": ""}
    ansible = SimpleNamespace(params=params, check_mode=True, exit_json=ends, fail_json=ends)
    with mock.patch.object(removal, "AnsibleModule", return_value=ansible), pytest.raises(EndedError) as ended:
        removal.main()
    assert f"{hook}, a link to {own_mounts}/theirs, lies on a read-only" in ended.value.args[0]["msg"]
    assert "Nothing was removed. Remedy: Start the container with" in ended.value.args[0]["msg"]
