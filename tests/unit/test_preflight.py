"""Tests of the module's own part of preflight: its arguments, what the host has already, and its messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ansible_collections.r1.prov.plugins.modules import preflight

if TYPE_CHECKING:
    from pathlib import Path


def test_an_unknown_check_is_named_with_the_valid_ones():
    message = preflight.wrong_arguments(["floor", "flor"], [])
    assert message.startswith("there is no check named flor to override; there are: os, arch, sudo")


def test_a_source_that_cannot_be_asked():
    assert "git@host:x" in preflight.wrong_arguments([], ["https://a", "/b", "file:///c", "http://d", "git@host:x"])


def test_arguments_that_are_right():
    assert preflight.wrong_arguments(["floor"], ["https://a"]) == ""


def test_what_is_there_counts_with_the_space_it_takes(tmp_path: Path):
    whole, hole, folder = tmp_path / "whole", tmp_path / "hole", tmp_path / "folder"
    whole.write_bytes(b"x" * 8192)
    with hole.open("wb") as file:
        file.truncate(10**9)
    folder.mkdir()
    files = [{"path": str(path), "bytes": 8192} for path in (whole, hole, folder, tmp_path / "none")]
    assert preflight.present_bytes(files) == {str(whole): 8192, str(hole): 0, str(folder): 8192}


def test_the_summary_names_every_problem_and_its_remedy():
    problems = [{"check": "ram", "what": "too little", "remedy": "add some"}] * 2
    assert preflight.summary(problems).splitlines() == [
        "The host does not fit what is asked of it (2 problems); nothing was changed.",
        *["- ram: too little.", "  Remedy: add some."] * 2,
    ]
