"""Tests of how the module reads the output of dpkg and apt."""

from __future__ import annotations

import os
import time

import pytest
from ansible_collections.r1.prov.plugins.module_utils import progress
from ansible_collections.r1.prov.plugins.modules import apt_present
from ansible_collections.r1.prov.plugins.modules.apt_present import explain, missing, status_step


def test_removed_and_unknown_packages_are_missing() -> None:
    status = "cmake installed\nccache config-files\nlibc6 installed\nlibc6 installed\n"
    assert missing(["cmake", "ccache", "ninja-build", "libc6"], status) == ["ccache", "ninja-build"]


@pytest.mark.parametrize(
    ("output", "error", "advice"),
    [
        ("Reading...\nE: Unable to locate package cmakee", "cmakee", "build_deps_apt_mirror"),
        ("E: You don't have enough free space in /var/cache/apt/archives/.", "enough free space", "disk is full"),
        ("E: Failed to fetch http://mirror.test/x  Could not resolve 'mirror.test'", "mirror.test", "proxy"),
        ("something\nelse", "something", "by hand"),
    ],
)
def test_failures_are_explained(output: str, error: str, advice: str) -> None:
    said = explain(output)
    assert error in said
    assert advice in said


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("dlstatus:3:12.5086:Retrieving file 3 of 40 (2min 3s remaining)", ("downloading packages", 12)),
        ("pmstatus:libstdc++6:amd64:40.0:Unpacking libstdc++6", ("installing packages", 40)),
        ("media-change:x:y", None),
    ],
)
def test_apt_tells_how_far_it_is(line: str, step: tuple[str, int] | None) -> None:
    assert status_step(line) == step


BROKEN = """#!/bin/sh
echo "$*" | sed 's/.*-o [^ ]* //' >> {log}
case "$*" in
  *--fix-broken*) {mends} ;;
  *) [ -e {mended} ] || {{ echo "E: Unmet dependencies. Try 'apt --fix-broken install' with no packages."; exit 100; }} ;;
esac
"""


@pytest.mark.parametrize("mends", [True, False])
def test_packages_that_others_need_are_installed_first(tmp_path, monkeypatch, mends):
    log, mended = tmp_path / "log", tmp_path / "mended"
    action = f"touch {mended}" if mends else "exit 100"
    (tmp_path / "apt-get").write_text(BROKEN.format(log=log, mended=mended, mends=action))
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(progress, "RUN", tmp_path)
    end = time.monotonic() + 60
    if mends:
        apt_present.apt(["install", "g++"], end, progress.Progress("build_deps"))
    else:
        with pytest.raises(apt_present.AptError, match="Unmet dependencies"):
            apt_present.apt(["install", "g++"], end, progress.Progress("build_deps"))
    asked = ["install g++", "--fix-broken --no-remove install", "install g++"]
    assert log.read_text().splitlines() == asked
