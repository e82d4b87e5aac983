"""Tests of the proof that services can be kept in a private network. roles/preflight/molecule tries it with systemd, both ways."""

from __future__ import annotations

import os

import pytest
from ansible_collections.r1.prov.plugins.module_utils import private_network


def test_what_cannot_be_tried_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "systemd-run" in private_network.leak()


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel tells only root")
def test_a_kernel_that_has_rules() -> None:
    assert private_network.without_rules() == ""


def test_a_kernel_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    question = private_network._NFNETLINK_GETGEN
    monkeypatch.setattr(
        private_network, "_NFNETLINK_GETGEN", question[:5] + b"\x7f" + question[6:]
    )  # no such subsystem
    assert private_network.without_rules().startswith("the kernel has no nf_tables for it (")
