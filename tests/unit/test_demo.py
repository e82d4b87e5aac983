"""Tests of how the demo ends: with the r1prov that it runs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from r1prov.common.errors import Exit

if TYPE_CHECKING:
    from pathlib import Path

DEMO = """
import sys
from r1prov.common import signals
from tests import demo
signals.heed()
sys.executable = sys.argv[1]
try:
    demo._r1prov("up")
except KeyboardInterrupt:
    sys.exit(42)
"""
R1PROV = f"""#!{sys.executable}
import sys, time
from pathlib import Path
from r1prov.common import signals
signals.heed()
here = Path(__file__).parent
try:
    (here / "began").touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.3)
    (here / "tidied").touch()
    sys.exit({Exit.INTERRUPTED.value})
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_whoever_ends_the_demo_ends_its_r1prov_first(tmp_path: Path, number: signal.Signals) -> None:
    """It is started as a shell does in the background, deaf to Ctrl-C, and alone is told."""
    program = tmp_path / "r1prov"
    program.write_text(R1PROV)
    program.chmod(0o755)
    in_the_background = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]
    process = subprocess.Popen([*in_the_background, sys.executable, "-c", DEMO, program])
    deadline = time.monotonic() + 30
    while not (tmp_path / "began").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=30) == 42
    assert (tmp_path / "tidied").exists()
