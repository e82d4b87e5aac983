"""Tests of the proof that services can be kept in a private network. roles/preflight/molecule tries it with systemd, both ways."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ansible_collections.r1.prov.plugins.module_utils import private_network


def test_what_cannot_be_tried_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "systemd-run" in private_network.leak()


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel tells only root")
def test_a_kernel_that_has_rules() -> None:
    assert private_network.without_rules() == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel tells only root")
@pytest.mark.parametrize(
    ("has_systemd", "shares", "takes"), [(False, True, False), (False, False, True), (True, True, True)]
)
def test_no_rules_go_to_a_machine_whose_network_a_container_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_systemd: bool, shares: bool, takes: bool
) -> None:
    monkeypatch.setattr(private_network.units, "SYSTEMD", tmp_path if has_systemd else tmp_path / "away")
    monkeypatch.setattr(private_network, "MACHINES_OWN", tmp_path if shares else tmp_path / "away")
    assert private_network.takes_rules() == takes


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a network")
def test_a_machine_shows_settings_of_its_cards_in_its_own_network_alone() -> None:
    there = subprocess.run(["unshare", "--net", "test", "-e", private_network.MACHINES_OWN], check=False)
    assert there.returncode == 1


def test_a_kernel_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    question = private_network._NFNETLINK_GETGEN
    monkeypatch.setattr(
        private_network, "_NFNETLINK_GETGEN", question[:5] + b"\x7f" + question[6:]
    )  # no such subsystem
    assert private_network.without_rules().startswith("the kernel has no nf_tables for it (")
