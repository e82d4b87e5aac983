"""Tests of what is said while a Go module compiles. A script stands for the compiler, and prints the names of packages as Go does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures import golang

GO = """#!/bin/sh
echo 'go: downloading golang.org/x/text v0.3.0' >&2
echo internal/goarch >&2
echo errors >&2
mkdir -p "$GOBIN"
touch "$GOBIN/program"
"""


def test_the_name_of_a_package_does_not_read_like_a_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "go/bin/go"
    program.parent.mkdir(parents=True)
    program.write_text(GO)
    program.chmod(0o755)
    monkeypatch.setattr(golang, "_SAY_EVERY_S", 0)
    said: list[str] = []
    assert golang.install("Ollama", "example.org/x@v1", tmp_path, said.append).name == "program"
    assert said == [
        "Ollama: fetching what it is built from, go: downloading golang.org/x/text v0.3.0",
        "Ollama: packages compiled or begun: 1, the newest is the package `internal/goarch`",
        "Ollama: packages compiled or begun: 2, the newest is the package `errors`",
    ]
