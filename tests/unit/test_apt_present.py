"""Tests of how the module reads the output of dpkg and apt."""

from __future__ import annotations

import pytest
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
