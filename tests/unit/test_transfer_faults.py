"""Tests of a transfer under each kind of fault, once. `make faults` tries each at twenty seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import kinds


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kinds.publish(tmp_path_factory.mktemp("served") / "files")


@pytest.mark.parametrize("name", kinds.KINDS)
def test_a_fault_ends_with_the_right_files(name: str, served: Path, tmp_path: Path) -> None:
    kinds.run(name, 0, tmp_path / "host", served)
