"""Tests of the module that installs a program that is a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.r1.prov.plugins.module_utils.carried import installed
from ansible_collections.r1.prov.plugins.module_utils.look_job import zipped
from ansible_collections.r1.prov.plugins.modules.program import Program

FILES = {"run.py": b"#!/usr/bin/python3\n", "parts/one.py": b"1\n", "parts/deep/two.py": b"2\n"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "r1prov-x"


@pytest.fixture
def program(folder: Path) -> Program:
    """A program that is not there yet."""
    digests = {place: hashlib.sha256(content).hexdigest() for place, content in FILES.items()}
    return Program(folder, digests, ["run.py"])


def test_it_comes_whole_and_is_left_alone_then(program: Program, folder: Path) -> None:
    assert program.differences() == [f"{folder} is missing"]
    program.put_right(zipped(FILES))
    assert program.differences() == []
    assert {place: (folder / place).read_bytes() for place in FILES} == FILES
    modes = {place: (folder / place).stat().st_mode & 0o777 for place in (*FILES, "parts")}
    assert modes == {"run.py": 0o755, "parts/one.py": 0o644, "parts/deep/two.py": 0o644, "parts": 0o755}
    before = {path: path.stat().st_ino for path in folder.rglob("*")}
    (folder / "parts/one.py").write_bytes(b"3\n")
    program.put_right(zipped(FILES))
    after = {path: path.stat().st_ino for path in folder.rglob("*")}
    assert [path.name for path in before if after[path] != before[path]] == ["one.py"]


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def folder_instead(path: Path) -> None:
    path.unlink()
    (path / "below").mkdir(parents=True)


def elsewhere(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


@pytest.mark.parametrize(
    ("place", "harm", "said"),
    [
        ("run.py", lambda path: path.write_bytes(b"x"), "has another content than it should have"),
        ("run.py", lambda path: path.chmod(0o644), "has owner and mode {me} 0644, and should have {me} 0755"),
        ("parts/one.py", lambda path: path.chmod(0o666), "has owner and mode {me} 0666, and should have {me} 0644"),
        ("parts/one.py", Path.unlink, "is missing"),
        ("parts/one.py", link, "is something else than a file"),
        ("parts/one.py", folder_instead, "is something else than a file"),
        ("parts/deep", elsewhere, "is something else than a folder"),
        ("parts/deep", lambda path: path.chmod(0o777), "has owner and mode {me} 0777, and should have {me} 0755"),
        ("parts/old.py", Path.touch, "is there, and should not be"),
    ],
)
def test_what_somebody_has_changed_is_named_and_put_right(
    program: Program, folder: Path, place: str, harm: Callable[[Path], object], said: str
) -> None:
    program.put_right(zipped(FILES))
    (folder / "parts/__pycache__").mkdir()  # What Python keeps of it is nobody's business.
    harm(folder / place)
    found = program.differences()
    assert found[0] == f"{folder / place} {said.format(me=f'{os.geteuid()}:{os.getegid()}')}"
    program.put_right(zipped(FILES))
    assert program.differences() == []
    assert {place: (folder / place).read_bytes() for place in FILES} == FILES
    assert (folder / "parts/__pycache__").is_dir()


def test_what_is_installed_is_the_folder_and_what_it_imports(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/one.py").write_text("import os\n")
    assert installed(tmp_path) == {"parts/one.py": "import os\n"}
    package = "ansible_collections.r1.prov.plugins.module_utils"
    (tmp_path / "run.py").write_text(f"from {package} import disk_away\n")
    place = package.replace(".", "/")
    assert list(installed(tmp_path)) == [
        "parts/one.py",
        "run.py",
        "ansible_collections/__init__.py",
        f"{place}/disk_away.py",
    ]
