"""Tests of the trial of a configuration, by scripts. Real programs are tried in the scenarios of gateway and tunnel."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.r1.prov.plugins.modules.tried_configuration import complaint

FOLDER = "/run/credentials/x.service"
"""It is there only while the service runs."""


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("grep -q wanted $1", ""),
        ('grep -q "a secret" $(dirname $1)/key', ""),
        ("grep -q $(dirname $1) $1", ""),
        ("echo '[ALERT] no' >&2; echo more >&2; exit 1", "[ALERT] no"),
        ("echo why >&2; exit 1", "why"),
        ("exit 3", "it ends with 3"),
    ],
)
def test_what_a_program_has_against_a_configuration(tmp_path: Path, script: str, says: str) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    assert complaint([str(program)], f"wanted in {FOLDER}", {"key": "a secret"}, [FOLDER]) == says
