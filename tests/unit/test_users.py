"""Tests of what a process of root may do while it acts as somebody else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.r1.prov.plugins.module_utils.users import acting_as


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as others")
def test_whoever_acts_as_another_user_is_in_the_groups_of_that_user(tmp_path: Path) -> None:
    """A folder of root that lets others pass, but not its group, as /root is in a container."""
    outer, before = tmp_path / "root", os.getgroups()
    inner = outer / "data"
    inner.mkdir(parents=True)
    for folder in [tmp_path, *tmp_path.parents[:-2]]:
        folder.chmod(folder.stat().st_mode | 0o001)
    inner.chmod(0o777)
    outer.chmod(0o701)
    os.setgroups([0])
    try:
        with acting_as("nobody"):
            (inner / "file").write_text("written")
        assert os.getgroups() == [0]
    finally:
        os.setgroups(before)
    assert (inner / "file").stat().st_uid != 0
