"""Tests of releases from archives and from wheels: how they are made, tried, switched to and pruned."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.r1.prov.plugins.module_utils import manifest, release, uv
from ansible_collections.r1.prov.plugins.module_utils.artefact import ArtefactError
from ansible_collections.r1.prov.plugins.module_utils.build_archive import Archive
from ansible_collections.r1.prov.plugins.module_utils.build_llama_cpp import LlamaCpp
from ansible_collections.r1.prov.plugins.module_utils.build_wheels import CudaToolkit, OpenWebui
from ansible_collections.r1.prov.plugins.module_utils.progress import Progress
from ansible_collections.r1.prov.plugins.module_utils.release import ReleaseError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    return Progress("ollama", tmp_path / "run")


class Made(release.Build):
    """The build of a release that consists of one file."""

    def __init__(self, release_id: str, *, fails: bool = False) -> None:
        self.id, self.record, self._fails = release_id, {"made": True}, fails

    def fill(self, folder: Path, progress: Progress) -> None:
        (folder / "half").touch()
        if self._fails:
            raise ReleaseError("it does not run here")
        (folder / "whole").touch()


def lying(home: Path) -> str:
    return "".join(sorted(path.name for path in (home / "releases").iterdir()))


def test_releases_lie_side_by_side_and_what_served_before_is_kept(tmp_path: Path, progress: Progress) -> None:
    for name in "abc":
        assert not release.path(tmp_path, name).exists()
        release.install(tmp_path, Made(name), progress)
        assert not manifest.look(release.path(tmp_path, name)).wrong
        assert release.current(tmp_path) == name
        assert (tmp_path / "current" / "whole").exists()
    assert lying(tmp_path) == "bc"


STORIES = {
    "each is well": ("A B C", "bc"),
    "an attempt fails and is put back": ("A B c B", "ab"),
    "an attempt fails and a better one follows": ("A B c D", "bd"),
    "many attempts fail": ("A B c d e", "abde"),
    "many attempts fail before the first is well": ("a b c", "bc"),
    "many attempts fail before the first is well, and more is tried": ("a b C d", "cd"),
    "the second is an attempt that is put back": ("A b A", "a"),
    "back to the one before": ("A B A", "ab"),
    "back, and forth again": ("A B A c A B", "ab"),
    "the same again": ("A B B", "ab"),
}
"""The releases that become current, in capitals where they serve well, and those that lie there in the end."""


@pytest.mark.parametrize(("story", "left"), STORIES.values(), ids=STORIES)
def test_a_release_that_never_served_well_takes_no_place(
    tmp_path: Path, progress: Progress, story: str, left: str
) -> None:
    for name in story.split():
        release.install(tmp_path, Made(name.lower()), progress)
        if name.isupper():
            release.prove(tmp_path)
            assert not release.prove(tmp_path, look=True)
    assert lying(tmp_path) == left
    assert release.current(tmp_path) == story[-1].lower()
    well = [name.lower() for name in story.split() if name.isupper()]
    assert release.proven(tmp_path) == (well[-1] if well else "")


def test_a_check_takes_note_of_nothing(tmp_path: Path, progress: Progress) -> None:
    release.install(tmp_path, Made("a"), progress)
    assert release.prove(tmp_path, look=True)
    assert not release.proven(tmp_path)


def test_what_lies_elsewhere_is_no_release(tmp_path: Path) -> None:
    """As a toolkit of the distribution, or no toolkit at all."""
    assert not release.prove(tmp_path / "none")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "current").symlink_to(tmp_path / "elsewhere")
    assert not release.prove(tmp_path)
    assert not release.proven(tmp_path)


def test_a_folder_of_the_same_name_elsewhere_is_not_current(tmp_path: Path, progress: Progress) -> None:
    home = tmp_path / "home"
    release.install(home, Made("a"), progress)
    assert release.is_current(home, "a")
    shutil.copytree(release.path(home, "a"), tmp_path / "a")
    (home / "current").unlink()
    (home / "current").symlink_to(tmp_path / "a")
    assert not release.is_current(home, "a")
    release.install(home, Made("a"), progress)
    assert release.is_current(home, "a")


def test_a_failure_leaves_what_serves_and_nothing_beside_it(tmp_path: Path, progress: Progress) -> None:
    release.install(tmp_path, Made("a"), progress)
    with pytest.raises(ReleaseError):
        release.install(tmp_path, Made("b", fails=True), progress)
    assert release.current(tmp_path) == "a"
    assert [path.name for path in (tmp_path / "releases").iterdir()] == ["a"]


def test_what_is_there_is_not_made_again_and_a_folder_without_a_record_is(tmp_path: Path, progress: Progress) -> None:
    (tmp_path / "releases" / "a" / "without a record").mkdir(parents=True)
    with pytest.raises(ReleaseError):
        release.install(tmp_path, Made("a", fails=True), progress)
    assert [path.name for path in (tmp_path / "releases" / "a").iterdir()] == ["without a record"]
    release.install(tmp_path, Made("a"), progress)
    release.install(tmp_path, Made("b"), progress)
    release.install(tmp_path, Made("a", fails=True), progress)
    assert release.current(tmp_path) == "a"
    assert sorted(path.name for path in (tmp_path / "current/").iterdir()) == [
        "half",
        "manifest.json",
        "manifest.seal",
        "release.json",
        "whole",
    ]


# --- Damage


class Full(release.Build):
    """The build of a release that has some of everything."""

    id, record = "1", {"made": True}

    def fill(self, folder: Path, progress: Progress) -> None:
        for name in ("bin/serve", "lib/deep/code.py", "lib/deep/data"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
        (folder / "bin" / "serve").chmod(0o755)
        (folder / "lib64").symlink_to("lib")


def in_secret(file: Path) -> None:
    """Changes a file, and sets back all that can be set back."""
    before = file.stat()
    file.write_text(file.read_text().swapcase())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def swapped(file: Path, link: str) -> None:
    file.unlink()
    file.symlink_to(link)


def capable(file: Path) -> None:
    """Gives whoever runs a file a capability."""
    try:
        os.setxattr(file, "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 21, 0, 0, 0))
    except OSError:
        pytest.skip("only root may do this, and not on every file system")


DAMAGES = {
    "a program is gone": (lambda at: (at / "bin/serve").unlink(), "bin/serve is gone"),
    "a program is cut": (lambda at: os.truncate(at / "bin/serve", 3), "bin/serve has 3 bytes, and had 9"),
    "a program is empty": (lambda at: os.truncate(at / "bin/serve", 0), "bin/serve has 0 bytes"),
    "a program has other bytes": (lambda at: in_secret(at / "bin/serve"), "bin/serve has other bytes"),
    "a program gives capabilities": (lambda at: capable(at / "bin/serve"), "bin/serve has capabilities, and had none"),
    "a file has other bytes": (lambda at: in_secret(at / "lib/deep/code.py"), "lib/deep/code.py has other bytes"),
    "a folder is gone": (lambda at: shutil.rmtree(at / "lib/deep"), "lib/deep is gone, lib/deep/code.py is gone"),
    "a folder is a file": (
        lambda at: (shutil.rmtree(at / "lib/deep"), (at / "lib/deep").touch()),
        "lib/deep is a file and was a folder",
    ),
    "a file is a link": (lambda at: swapped(at / "lib/deep/data", "code.py"), "lib/deep/data is a link and was a file"),
    "a link leads elsewhere": (lambda at: swapped(at / "lib64", "/etc"), "lib64 leads to /etc, and led to lib"),
    "a link is gone": (lambda at: (at / "lib64").unlink(), "lib64 is gone"),
    "a file is new": (lambda at: (at / "lib/sitecustomize.py").touch(), "lib/sitecustomize.py does not belong there"),
    "a pipe is new": (lambda at: os.mkfifo(at / "bin/pipe"), "bin/pipe does not belong there"),
    "the record is gone": (lambda at: (at / "release.json").unlink(), "release.json is gone"),
    "the record is empty": (lambda at: os.truncate(at / "release.json", 0), "release.json is gone, or is no JSON"),
    "the manifest is gone": (lambda at: (at / "manifest.json").unlink(), "manifest.json is gone"),
    "the manifest is cut": (lambda at: os.truncate(at / "manifest.json", 99), "manifest.json is gone, or is no JSON"),
    "all is gone": (lambda at: [shutil.rmtree(at), at.mkdir()], "release.json is gone"),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_release_is_found_and_made_anew(
    tmp_path: Path, progress: Progress, damage: Callable[[Path], object], says: str
) -> None:
    release.install(tmp_path, Full(), progress)
    place = release.path(tmp_path, "1")
    damage(place)
    assert says in str(manifest.look(place))
    release.install(tmp_path, Full(), progress)
    assert not manifest.look(place).wrong
    assert (place / "bin" / "serve").read_text() == "bin/serve"
    assert lying(tmp_path) == "1"


class Broken(Full):
    def fill(self, folder: Path, progress: Progress) -> None:
        super().fill(folder, progress)
        raise ReleaseError("the source is gone")


def test_what_is_damaged_serves_until_its_successor_is_whole(tmp_path: Path, progress: Progress) -> None:
    release.install(tmp_path, Full(), progress)
    (release.path(tmp_path, "1") / "lib" / "deep" / "data").unlink()
    with (tmp_path / "current" / "bin" / "serve").open() as running:
        with pytest.raises(ReleaseError, match="the source is gone"):
            release.install(tmp_path, Broken(), progress)
        assert (tmp_path / "current" / "bin" / "serve").read_text() == "bin/serve"
        release.install(tmp_path, Full(), progress)
        assert running.read() == "bin/serve"


@pytest.fixture
def overlaid(tmp_path: Path) -> Iterator[Path]:
    """A folder of an overlay. Whoever fills `lower` beside it fills the lower layer, if before the first look into the folder."""
    lower, upper, work, home = (tmp_path / name for name in ("lower", "upper", "work", "home"))
    for folder in (lower, upper, work, home):
        folder.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    done = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, home], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no overlay can be mounted here: {done.stderr.decode()}")
    yield home
    subprocess.run(["umount", home], check=True)


def test_a_damaged_release_in_a_lower_layer_of_an_overlay_is_made_anew(
    overlaid: Path, tmp_path: Path, progress: Progress
) -> None:
    """A folder there cannot get another name: the kernel says that it lies on another device."""
    release.install(tmp_path / "lower", Full(), progress)
    (release.path(overlaid, "1") / "lib" / "deep" / "data").unlink()
    release.install(overlaid, Full(), progress)
    assert not manifest.look(release.path(overlaid, "1")).wrong


@pytest.mark.parametrize(
    "name", [".", "bin", "bin/serve", "lib/deep/data", "release.json", "manifest.json", "manifest.seal"]
)
def test_a_mode_alone_is_put_right_in_place(tmp_path: Path, progress: Progress, name: str) -> None:
    release.install(tmp_path, Full(), progress)
    place = release.path(tmp_path, "1")
    mode, inode = (place / name).stat().st_mode, (place / name).stat().st_ino
    (place / name).chmod(0o777)
    assert f"{name} has owner and mode" in str(manifest.look(place))
    release.install(tmp_path, Broken(), progress)  # which would fail if it were made anew
    assert not manifest.look(place).wrong
    assert (place / name).stat().st_mode == mode
    assert name == "manifest.seal" or (place / name).stat().st_ino == inode  # A seal is written anew.


def test_other_time_stamps_alone_are_no_damage_and_are_read_once(tmp_path: Path, progress: Progress) -> None:
    """Files that are links into a cache get others when the cache goes."""
    release.install(tmp_path, Full(), progress)
    place = release.path(tmp_path, "1")
    (tmp_path / "cache").hardlink_to(place / "lib" / "deep" / "data")
    assert manifest.look(place) == manifest.Look({}, stale=True)
    manifest.put_right(place)
    assert manifest.look(place) == manifest.Look({})


@pytest.mark.parametrize("cache", ["lib/__pycache__", "lib/deep/__pycache__"])
def test_a_compiled_file_that_r1prov_has_not_left_is_found_and_removed(
    tmp_path: Path, progress: Progress, cache: str
) -> None:
    release.install(tmp_path, Full(), progress)
    place = release.path(tmp_path, "1")
    (place / cache).mkdir()
    stray = f"{cache}/code.cpython-311.pyc"
    (place / stray).write_bytes(b"Python would run it")
    assert manifest.look(place).wrong == {cache: "does not belong there", stray: "does not belong there"}
    release.install(tmp_path, Broken(), progress)  # which would fail if it were made anew
    assert manifest.look(place) == manifest.Look({})
    assert not (place / cache).exists()


@pytest.mark.parametrize("young", [False, True])
def test_the_names_in_a_sealed_folder_are_read_again_only_where_its_stamps_tell_nothing(
    tmp_path: Path, progress: Progress, monkeypatch: pytest.MonkeyPatch, young: bool
) -> None:
    """A folder that was changed a moment ago may be changed again without another time stamp."""
    release.install(tmp_path, Full(), progress)
    place = release.path(tmp_path, "1")
    if young:  # However long this test has waited for a processor.
        monkeypatch.setattr(manifest, "_JUST_NOW_NS", 3600 * 10**9)
    else:
        time.sleep(0.15)
    manifest._put_seal(place, 0o755)
    read: list[str] = []
    listdir = os.listdir

    def told(path: bytes) -> list[bytes]:
        read.append(os.path.relpath(os.fsdecode(path), place))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", told)
    assert manifest.look(place) == manifest.Look({})
    # The seal itself was put into the first one.
    assert read == [".", *(["lib", "lib/deep", "bin"] if young else [])]


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "another", "a folder"])
def test_a_name_that_changed_in_a_sealed_folder_is_found(tmp_path: Path, progress: Progress, change: str) -> None:
    release.install(tmp_path, Full(), progress)
    place = release.path(tmp_path, "1")
    time.sleep(0.15)
    manifest._put_seal(place, 0o755)
    data, more = place / "lib" / "deep" / "data", place / "lib" / "deep" / "more"
    if change == "added":
        more.write_text("more")
    elif change == "removed":
        data.unlink()
    elif change == "renamed":
        data.rename(more)
    elif change == "another":
        more.write_text("lib/deep/data")
        more.replace(data)
        data.chmod(0o600)
    else:
        more.mkdir()
    assert manifest.look(place).wrong


def rotten(place: Path, name: str) -> None:
    """Changes a file as a failing disk does, which moves no time stamp. Here, manifest and seal are told the new ones."""
    in_secret(place / name)
    entries = json.loads((place / "manifest.json").read_text())
    status = (place / name).stat()
    entries[name]["stamps"] = [status.st_mtime_ns, status.st_ctime_ns]
    (place / "manifest.json").write_text(json.dumps(entries))
    manifest._put_seal(place, 0o755)


def test_a_byte_that_a_disk_has_changed_is_found_where_all_is_read(tmp_path: Path, progress: Progress) -> None:
    release.install(tmp_path, Full(), progress)
    place = release.path(tmp_path, "1")
    rotten(place, "lib/deep/data")
    assert not manifest.look(place).wrong
    assert manifest.read(place, progress).wrong == {"lib/deep/data": "has other bytes"}
    told = json.loads((tmp_path / "run" / "ollama" / "progress.json").read_text())
    n_bytes = sum(map(len, ("bin/serve", "lib/deep/code.py", "lib/deep/data")))
    assert (told["unit"], told["done"], told["state"]) == ("bytes", n_bytes, "done")
    # From now on a plain look finds it, too, so that a run mends it.
    assert manifest.look(place).wrong == {"lib/deep/data": "has other bytes"}
    release.install(tmp_path, Full(), progress)
    assert (place / "lib" / "deep" / "data").read_text() == "lib/deep/data"
    assert not manifest.read(place, progress).wrong


def test_reading_a_whole_release_changes_nothing(tmp_path: Path, progress: Progress) -> None:
    release.install(tmp_path, Full(), progress)
    place = release.path(tmp_path, "1")
    before = {path: path.lstat() for path in place.rglob("*")}
    assert manifest.read(place, progress) == manifest.Look({})
    assert {path: path.lstat() for path in place.rglob("*")}.keys() == before.keys()
    assert all(path.lstat().st_ctime_ns == status.st_ctime_ns for path, status in before.items())
    (place / "lib" / "deep" / "data").unlink()
    assert manifest.read(place, progress).wrong == {"lib/deep/data": "is gone"}


# --- Archives


class Packed:
    """An archive with a program that prints its version, and the role's description of the release."""

    def __init__(self, folder: Path, version: str = "0.12.11", says: str = "") -> None:
        program = folder / version / "bin" / "ollama"
        program.parent.mkdir(parents=True)
        program.write_text(says or f"#!/bin/sh\necho Warning: client version is {version}\n")
        program.chmod(0o755)
        self.version, self.home, self.cache, self.file = (
            version,
            folder / "home",
            folder / "cache",
            folder / f"{version}.tgz",
        )
        with tarfile.open(self.file, "w:gz") as tar:
            tar.add(folder / version, ".")
        self.sha256 = hashlib.sha256(self.file.read_bytes()).hexdigest()
        self.wanted: dict[str, Any] = {
            "source": str(self.file),
            "sha256": self.sha256,
            "variable": "ollama_archive",
            "program": "bin/ollama",
            "arguments": ["--version"],
            "says": r"version is (\S+)",
        }

    def build(self, version: str = "", **changes: str) -> Archive:
        return Archive(self.wanted | changes, version or self.version, self.cache)


def test_an_archive_becomes_a_release_that_is_named_after_it(tmp_path: Path, progress: Progress) -> None:
    packed = Packed(tmp_path)
    release.install(packed.home, packed.build(), progress)
    assert release.current(packed.home) == f"0.12.11-{packed.sha256[:12]}"
    assert (packed.home / "current" / "bin" / "ollama").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sha256": "0" * 64}, r"expected 000.*it is not whole"),
        ({"source": "/none.tgz"}, "neither here nor on the controller"),
        ({"version": "0.12.10"}, r"is not 0\.12\.10: ollama says 'Warning: client version is 0\.12\.11'"),
        ({"program": "bin/other"}, r"holds no bin/other\. Correct ollama_archive"),
    ],
)
def test_an_archive_that_was_not_meant_is_not_installed(
    tmp_path: Path, progress: Progress, change: dict[str, str], says: str
) -> None:
    packed = Packed(tmp_path)
    with pytest.raises((ReleaseError, ArtefactError), match=says):
        release.install(packed.home, packed.build(**change), progress)
    assert not list(packed.home.glob("releases/*"))
    assert not release.current(packed.home)


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("\x7fELF for another machine", "does not run here: Exec format error"),
        ("#!/bin/sh\necho dying >&2; exit 3\n", r"does not run here \(status 3\): dying"),
    ],
)
def test_a_program_that_does_not_run_is_not_installed(
    tmp_path: Path, progress: Progress, program: str, says: str
) -> None:
    packed = Packed(tmp_path, says=program)
    with pytest.raises(ReleaseError, match=says):
        release.install(packed.home, packed.build(), progress)
    assert not list(packed.home.glob("releases/*"))


def test_a_url_that_sends_something_else(tmp_path: Path, progress: Progress) -> None:
    packed = Packed(tmp_path)
    with pytest.raises(ArtefactError, match="expected 000"):
        release.install(packed.home, packed.build(source=packed.file.as_uri(), sha256="0" * 64), progress)


# --- Compiled


def test_a_build_of_llama_cpp_is_named_after_all_that_decides_it(tmp_path: Path) -> None:
    wanted: dict[str, Any] = {
        "source": "pypi", "archive": "", "sha256": "0" * 64, "git_url": "", "git_ref": "", "git_commit": "",
        "environment_file": "", "backend": "cpu", "cuda_architectures": [], "cuda_root": "/nowhere", "rpc": False, "jobs": 0,
    }  # fmt: skip
    build = LlamaCpp(wanted, "1", tmp_path)
    assert re.fullmatch(r"1-cpu-[0-9a-f]{12}", build.id)
    assert build.id == LlamaCpp(wanted | {"jobs": 7}, "1", tmp_path / "other").id
    assert build.id != LlamaCpp(wanted | {"rpc": True}, "1", tmp_path).id


COMMIT = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.com"}
COMMIT |= {"GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.com"}


class Repository:
    """A git repository with one file, in which a tag moves with each commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.git("init", "--quiet")

    def git(self, *arguments: str) -> str:
        command, environment = ["git", "-C", str(self.folder), *arguments], {**os.environ, **COMMIT}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    def commit(self, content: str, *, annotated: bool = False) -> str:
        """Commits the file with this content, moves the tag b1 there, and returns the commit."""
        (self.folder / "file").write_text(content)
        self.git("add", "file")
        self.git("commit", "--quiet", "--message", content)
        self.git("tag", "--force", *(["--annotate", "--message", content] if annotated else []), "b1")
        return self.git("rev-parse", "HEAD")


def from_git(repository: Repository, cache: Path, commit: str, ref: str = "b1") -> LlamaCpp:
    wanted: dict[str, Any] = {
        "source": "git", "archive": "", "sha256": "", "git_url": repository.folder.as_uri(), "git_ref": ref,
        "git_commit": commit, "environment_file": "", "backend": "cpu", "cuda_architectures": [], "cuda_root": "/nowhere",
        "rpc": False, "jobs": 0,
    }  # fmt: skip
    build = LlamaCpp(wanted, ref, cache)
    build.tree.mkdir(parents=True)
    return build


@pytest.mark.parametrize("annotated", [False, True])
def test_a_tag_that_has_moved_is_refused(tmp_path: Path, progress: Progress, *, annotated: bool) -> None:
    repository = Repository(tmp_path / "repository")
    seen = repository.commit("good", annotated=annotated)
    assert (from_git(repository, tmp_path / "a", seen)._fetch_git(progress) / "file").read_text() == "good"
    moved = repository.commit("evil", annotated=annotated)
    with pytest.raises(ReleaseError, match=f"tag b1 .* is commit {moved} now, and was {seen} when it was seen first"):
        from_git(repository, tmp_path / "b", seen)._fetch_git(progress)
    # What was fetched before is not asked for again.
    shutil.rmtree(tmp_path / "a" / "build")
    assert (from_git(repository, tmp_path / "a", seen)._fetch_git(progress) / "file").read_text() == "good"
    assert (from_git(repository, tmp_path / "c", "", seen)._fetch_git(progress) / "file").read_text() == "good"


def test_the_script_of_a_platform_counts_for_what_git_fetches_and_for_nothing_else(
    tmp_path: Path, progress: Progress
) -> None:
    """The repository has another address, which only the script tells git."""
    repository = Repository(tmp_path / "repository")
    commit = repository.commit("good")
    script = tmp_path / "network turbo"
    settings = f"GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=url.{tmp_path.as_uri()}/.insteadOf GIT_CONFIG_VALUE_0=https://github.invalid/"
    script.write_text(f"echo welcome; export {settings}\n")
    build = from_git(repository, tmp_path / "a", commit)
    build._wanted |= {"git_url": "https://github.invalid/repository", "environment_file": str(script)}
    assert (build._fetch_git(progress) / "file").read_text() == "good"
    assert "GIT_CONFIG_COUNT" not in os.environ
    lost = from_git(repository, tmp_path / "b", commit)
    lost._wanted |= {"environment_file": str(tmp_path / "none")}
    with pytest.raises(ReleaseError, match=r"none cannot be sourced.* Correct llama_cpp_environment_file"):
        lost._fetch_git(progress)


def test_the_same_commit_is_the_same_release_whatever_it_is_called(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    tagged = from_git(repository, tmp_path / "a", "1" * 40)
    assert tagged.record["source"] == from_git(repository, tmp_path / "b", "", "1" * 40).record["source"]
    assert tagged.id != from_git(repository, tmp_path / "c", "2" * 40).id


# --- Wheels


def test_uv_is_the_one_of_the_controller() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pattern = rf"^uv=={re.escape(uv.VERSION)} \\\n(?:    .*\n)*?    --hash=sha256:{uv.SHA256}"
    assert re.search(pattern, lock, re.MULTILINE)


def test_the_chat_page_is_named_after_all_that_decides_it(tmp_path: Path) -> None:
    wanted = {"requirements_sha256": "a", "python": "/usr/bin/python3.11"}
    name = OpenWebui(wanted, "0.12.4", tmp_path).id
    assert re.fullmatch(r"0\.12\.4-[0-9a-f]{12}", name)
    assert name != OpenWebui(wanted | {"requirements_sha256": "b"}, "0.12.4", tmp_path).id
    assert name != OpenWebui(wanted | {"python": "/usr/bin/python3.12"}, "0.12.4", tmp_path).id


def test_pins_are_found_by_the_names_of_wheels() -> None:
    text = "# x\nPy_Thing.two==1.0 \\\n    --hash=sha256:00\nuvicorn[standard]==0.3 ; python_version < '4' \\\n"
    assert uv.pinned(text) == {"py_thing_two": "1.0", "uvicorn": "0.3"}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("Downloading scipy (33.5MiB)\n", ("scipy", 35127296)),
        (" Downloaded scipy\n", ("scipy", 0)),
        ("Prepared 2 packages in 837ms\n", None),
    ],
)
def test_what_uv_says_of_downloads(line: str, found: tuple[str, int] | None) -> None:
    assert uv.fetched_bytes(line) == found


@pytest.mark.parametrize(
    ("said", "advised"),
    [
        ("Hash mismatch for `six==1.17.0`", "other files than the pinned ones"),
        ("Because there is no version of six==999.1", "The package index lacks it"),
        ("error sending request for url", "Check PIP_INDEX_URL"),
        ("No space left on device (os error 28)", "The disk is full"),
    ],
)
def test_advice(said: str, advised: str) -> None:
    assert advised in uv.advice(said)


class Wheels:
    """A cache with all wheels on the host, and no index, so an installation uses no network."""

    def __init__(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache, self.folder = cache, cache / "sources" / "wheels"
        self.folder.mkdir(parents=True)
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        monkeypatch.setattr(uv.Uv, "_program", str(Path(sys.executable).with_name("uv")))

    def pin(self, name: str, files: dict[str, str]) -> str:
        """Makes the wheel NAME-1 with executable programs, and returns the line that pins it."""
        wheel = self.folder / f"{name}-1-py3-none-manylinux_2_17_x86_64.whl"
        info = f"{name}-1.dist-info"
        files = files | {
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-manylinux_2_17_x86_64\n",
        }
        record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
        with zipfile.ZipFile(wheel, "w") as archive:
            for file, text in (files | {f"{info}/RECORD": record}).items():
                member = zipfile.ZipInfo(file)
                member.external_attr = (0o100755 if "/bin/" in file else 0o100644) << 16
                archive.writestr(member, text)
        return f"{name}==1 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheels:
    return Wheels(tmp_path / "cache", monkeypatch)


@pytest.mark.parametrize("status", [0, 1])
def test_wheels_become_a_toolkit_whose_compiler_runs(
    tmp_path: Path, progress: Progress, wheels: Wheels, status: int
) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(
        wheels.pin("nvidia_cuda_nvcc", {"nvidia/cu13/bin/nvcc": f"#!/bin/sh\nexit {status}\n"})
        + wheels.pin("nvidia_cublas", {"nvidia/cu13/lib/libcublas.so.13": "", "nvidia/cu13/include/cublas.h": ""})
    )
    wanted = {"requirements": str(requirements), "requirements_sha256": "0123456789abcdef", "python": None}
    home = tmp_path / "cuda"
    if status:
        with pytest.raises(ReleaseError, match=r"nvcc does not run here \(status 1\)"):
            release.install(home, CudaToolkit(wanted, "13.0", wheels.cache), progress)
        assert not list(home.glob("releases/*"))
        return
    release.install(home, CudaToolkit(wanted, "13.0", wheels.cache), progress)
    toolkit = home / "releases" / "13.0-0123456789ab"
    assert sorted(path.name for path in toolkit.iterdir()) == [
        "bin",
        "include",
        "lib",
        "lib64",
        "manifest.json",
        "manifest.seal",
        "release.json",
    ]
    assert (toolkit / "lib64" / "libcublas.so").readlink().name == "libcublas.so.13"
    assert os.access(toolkit / "bin" / "nvcc", os.X_OK)


@pytest.mark.parametrize(("says", "fault"), [("1", ""), ("2", "it says it is 2, not 1"), ("", "does not run here")])
def test_wheels_become_a_page_that_says_its_version(
    tmp_path: Path, progress: Progress, wheels: Wheels, says: str, fault: str
) -> None:
    requirements = tmp_path / "requirements.txt"
    page = {"open_webui/__init__.py": "", "open_webui/main.py": "print('hello')"}
    page |= {"open_webui/env.py": f"VERSION = {says!r}"} if says else {}
    requirements.write_text(wheels.pin("open_webui", page))
    wanted = {"requirements": str(requirements), "requirements_sha256": "0", "python": sys.executable}
    build, home = OpenWebui(wanted, "1", wheels.cache), tmp_path / "page"
    if fault:
        with pytest.raises(ReleaseError, match=fault):
            release.install(home, build, progress)
        assert not list(home.glob("releases/*"))
        return
    release.install(home, build, progress)
    done = subprocess.run(
        [home / "current/bin/python", "-c", "from open_webui.env import VERSION; print(VERSION)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "1\n"


def test_a_damaged_page_is_not_made_of_the_same_damaged_files(
    tmp_path: Path, progress: Progress, wheels: Wheels
) -> None:
    """uv links files out of its cache, so a file of the page that was changed in place is changed there, too."""
    requirements = tmp_path / "requirements.txt"
    page = {"open_webui/__init__.py": "", "open_webui/main.py": "print('hello')", "open_webui/env.py": "VERSION = '1'"}
    requirements.write_text(wheels.pin("open_webui", page))
    wanted = {"requirements": str(requirements), "requirements_sha256": "0", "python": sys.executable}
    build, home = OpenWebui(wanted, "1", wheels.cache), tmp_path / "page"
    release.install(home, build, progress)
    (main,) = home.glob("releases/*/lib/*/site-packages/open_webui/main.py")
    with main.open("r+") as file:
        file.write("print('HELLO')")
    release.install(home, build, progress)
    assert main.read_text() == "print('hello')"


def test_a_wheel_with_another_hash_is_not_installed(tmp_path: Path, progress: Progress, wheels: Wheels) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(re.sub(r"sha256:.*", f"sha256:{'0' * 64}", wheels.pin("open_webui", {"open_webui/a": ""})))
    with pytest.raises(ReleaseError, match="other files than the pinned ones"):
        uv.Uv(wheels.cache, progress).install(requirements, "--target", str(tmp_path / "t"), "--python", sys.executable)


def test_where_one_wheel_is_missing_the_index_is_asked(tmp_path: Path, progress: Progress, wheels: Wheels) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(wheels.pin("here", {"here/a": ""}) + f"missing==1 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(ReleaseError, match=r"127\.0\.0\.1:9"):
        uv.Uv(wheels.cache, progress).install(requirements, "--target", str(tmp_path / "t"), "--python", sys.executable)
