"""Tests of the contents of the built wheel; tests/e2e installs the wheel and runs it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COLLECTION = "r1prov/_collection/ansible_collections/r1/prov"


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files in the wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_the_wheel_carries_the_whole_package_and_the_whole_collection(names: set[str]) -> None:
    package = {str(path.relative_to(ROOT)) for path in ROOT.glob("r1prov/**/*.py")}
    parts = ("inventory", "playbooks", "plugins", "roles", "templates")
    acting = [path for part in parts for path in (ROOT / part).rglob("*") if path.is_file()]
    acting += [ROOT / name for name in ("ansible.cfg", "galaxy.yml", "meta/runtime.yml", "docs/site.md")]
    collection = {
        f"{COLLECTION}/{path.relative_to(ROOT)}"
        for path in acting
        if not {"molecule", "__pycache__", ".ansible"} & set(path.parts)
    }
    assert not (package | collection) - names
    assert {f"r1prov/lab/{name}.sh" for name in ("boot", "enter", "supervise")} <= names


def test_the_wheel_carries_nothing_that_only_tests_and_the_demo_need(names: set[str]) -> None:
    fixtures = {path.name for path in ROOT.glob("tests/fixtures/[!_]*.py")} - {
        "ollama.py"
    }  # r1prov.offload has an ollama.py too
    strays = {name for name in names if Path(name).name in fixtures or {"molecule", "tests"} & set(Path(name).parts)}
    assert not strays
    assert {name.partition("/")[0] for name in names} == {"r1prov"}
