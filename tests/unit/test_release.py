"""Tests of releases from archives and from wheels: how they are made, tried, switched to and pruned."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.r1.prov.plugins.module_utils import release, uv
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


def test_releases_lie_side_by_side_and_only_the_one_before_is_kept(tmp_path: Path, progress: Progress) -> None:
    for name in "abc":
        assert not release.exists(tmp_path, name)
        release.install(tmp_path, Made(name), progress)
        assert release.exists(tmp_path, name)
        assert release.current(tmp_path) == name
        assert (tmp_path / "current" / "whole").exists()
    assert sorted(path.name for path in (tmp_path / "releases").iterdir()) == ["b", "c"]


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
    assert sorted(path.name for path in (tmp_path / "current/").iterdir()) == ["half", "release.json", "whole"]


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
        return Archive(self.wanted | changes, version or self.version, self.home, self.cache)


def test_an_archive_becomes_a_release_that_is_named_after_it(tmp_path: Path, progress: Progress) -> None:
    packed = Packed(tmp_path)
    release.install(packed.home, packed.build(), progress)
    assert release.current(packed.home) == f"0.12.11-{packed.sha256[:12]}"
    assert (packed.home / "current" / "bin" / "ollama").exists()


def test_the_list_beside_an_archive_is_asked_once(tmp_path: Path, progress: Progress) -> None:
    packed = Packed(tmp_path)
    sums, wanted = tmp_path / "sha256sum.txt", {"source": packed.file.as_uri(), "sha256": ""}
    with pytest.raises(ArtefactError, match=r"sha256sum.txt cannot be read.*Set ollama_archive_sha256"):
        release.install(packed.home, packed.build(**wanted), progress)
    sums.write_text(f"{'0' * 64}  ./other-0.12.11.tgz\n")
    with pytest.raises(ArtefactError, match=r"does not name 0\.12\.11\.tgz"):
        release.install(packed.home, packed.build(**wanted), progress)
    sums.write_text(f"{'0' * 64}  ./other.tgz\n{packed.sha256}  ./0.12.11.tgz\n")
    release.install(packed.home, packed.build(**wanted), progress)
    sums.unlink()
    packed.file.unlink()
    assert release.exists(packed.home, packed.build(**wanted).id)
    assert not list(packed.cache.glob("[!.]*"))
    assert not packed.build("0.12.10", **wanted).id


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sha256": "0" * 64}, r"expected 000.*it is not whole"),
        ({"source": "/none.tgz"}, "neither here nor on the controller"),
        ({"sha256": ""}, "Set ollama_archive_sha256"),
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
        "source": "pypi", "archive": "", "sha256": "0" * 64, "git_url": "", "git_ref": "", "backend": "cpu",
        "cuda_architectures": [], "cuda_root": "/nowhere", "rpc": False, "jobs": 0,
    }  # fmt: skip
    build = LlamaCpp(wanted, "1", tmp_path)
    assert re.fullmatch(r"1-cpu-[0-9a-f]{12}", build.id)
    assert build.id == LlamaCpp(wanted | {"jobs": 7}, "1", tmp_path / "other").id
    assert build.id != LlamaCpp(wanted | {"rpc": True}, "1", tmp_path).id


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
    assert sorted(path.name for path in toolkit.iterdir()) == ["bin", "include", "lib", "lib64", "release.json"]
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
