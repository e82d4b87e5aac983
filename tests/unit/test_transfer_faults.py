"""Tests of a transfer under each kind of fault, once. `make faults` tries each at twenty seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import kinds


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> kinds.Model:
    return kinds.publish(tmp_path_factory.mktemp("served") / "files")


@pytest.mark.parametrize("name", kinds.KINDS)
def test_a_fault_ends_with_the_right_file(name: str, served: kinds.Model, tmp_path: Path) -> None:
    kinds.run(name, 0, tmp_path / "host", served)


@pytest.mark.parametrize("name", ["a kill", "a power cut with a torn journal", "a bit that flips on the disk"])
def test_so_it_does_where_the_files_are_kept_as_they_were_published(
    name: str, served: kinds.Model, tmp_path: Path
) -> None:
    kinds.run(name, 0, tmp_path / "host", served, is_straight=False)
