"""Tests of what of our modules goes along with a program to a host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.r1.prov.plugins.module_utils import carried


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two modules, of which one imports the other when it runs, and the other that one for types alone."""
    monkeypatch.setattr(carried, "FOLDER", tmp_path)
    upper = f"from dataclasses import dataclass\nfrom {carried.PACKAGE}.lower import NAME\n@dataclass\nclass Said:\n    word: str = NAME\n"
    lower = f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from {carried.PACKAGE}.upper import Said\nNAME = 'lower'\n"
    (tmp_path / "upper.py").write_text(upper)
    (tmp_path / "lower.py").write_text(lower)
    (tmp_path / "other.py").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    "program",
    [
        f"from {carried.PACKAGE} import upper",
        f"from {carried.PACKAGE}.upper import Said",
        f"def later():\n    return importlib.import_module('{carried.PACKAGE}.upper')",
    ],
)
def test_what_is_imported_goes_along_behind_what_it_imports_itself(modules: Path, program: str) -> None:
    found = carried.imported([program, f"from {carried.PACKAGE} import lower"])
    assert list(found) == ["lower", "upper"]
    assert found["upper"] == (modules / "upper.py").read_text()


def test_a_program_runs_alone(modules: Path) -> None:
    program = f"from {carried.PACKAGE} import lower\nfrom {carried.PACKAGE}.upper import Said\ndef main():\n    print(Said(), lower.NAME)\n"
    text = f"{carried.alone(program)}\n\nmain()\n"
    done = subprocess.run([sys.executable, "-I", "-"], input=text, capture_output=True, text=True, check=True)
    assert done.stdout == "Said(word='lower') lower\n"
