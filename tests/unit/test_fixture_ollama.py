"""Tests of the fixture `ollama` that need no compiler; roles/ollama/molecule installs an archive that it has built."""

from __future__ import annotations

import fcntl
import os
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

from r1prov.common.errors import LabError, Problem
from tests.fixtures import ollama


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "r1prov"


def tree(folder: Path) -> Path:
    for name, mode in (("bin/ollama", 0o700), ("lib/ollama/VERSION", 0o600)):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(name)
        (folder / name).chmod(mode)
    return folder


@pytest.mark.parametrize("version", ["0.12.11", "0.17.4"])
def test_an_archive_is_packed_as_releases_are_and_always_the_same(tmp_path: Path, version: str) -> None:
    archives = []
    for attempt in ("a", "b"):
        (tmp_path / attempt).mkdir()
        archives.append(tmp_path / attempt / ollama.archive_name(version))
        folder = tree(tmp_path / attempt / "tree")
        os.utime(folder / "bin/ollama", (len(archives), len(archives)))
        ollama.pack(folder, archives[-1])
    first, second = (archive.read_bytes() for archive in archives)
    assert first == second
    assert archives[0].name == {"0.12.11": "ollama-linux-amd64.tgz", "0.17.4": "ollama-linux-amd64.tar.zst"}[version]
    sums = archives[0].with_name("sha256sum.txt").read_text()
    assert sums == f"{sha256(first).hexdigest()}  ./{archives[0].name}\n"
    listed = subprocess.run(
        ["tar", "-tvf", archives[0]], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [line.split()[0] for line in listed] == [
        "drwxr-xr-x",
        "-rwxr-xr-x",
        "drwxr-xr-x",
        "drwxr-xr-x",
        "-rw-r--r--",
    ]
    assert [line.split()[-1] for line in listed][1::3] == ["./bin/ollama", "./lib/ollama/VERSION"]


def test_it_is_built_once_and_a_build_that_fails_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def make(version: str, making: Path, say: object) -> None:
        built.append(version)
        if len(built) == 1:
            raise LabError(Problem("it", "does not compile", "wait"))
        (making / "release").mkdir()
        (making / "release" / ollama.archive_name(version)).write_text("an archive")

    monkeypatch.setattr(ollama, "_make", make)
    with pytest.raises(LabError, match="does not compile"):
        ollama.release("0.12.11", print)
    assert [path.suffix for path in (cache / "ollama").iterdir()] == [".lock"]
    archive = ollama.release("0.12.11", print)
    assert archive == ollama.release("0.12.11", print)
    assert (archive.name, len(built)) == ("ollama-linux-amd64.tgz", 2)
    assert archive.parent != ollama.release("0.12.10", print).parent
    with (archive.parent.parent / f"{archive.parent.name}.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock is free again


def test_a_compiler_that_fails_has_the_last_word(tmp_path: Path) -> None:
    go = tmp_path / "go" / "bin" / "go"
    go.parent.mkdir(parents=True)
    go.write_text('#!/bin/sh\necho "$CGO_CXXFLAGS" >&2\necho "json.hpp: No such file" >&2\nexit 1\n')
    go.chmod(0o755)
    with pytest.raises(LabError, match=r"(?s)-O2 .*-I/headers.*json.hpp: No such file"):
        ollama._compile("0.12.11", tmp_path, Path("/headers"), print)
