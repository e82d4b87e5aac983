"""Tests of programs that somebody wants to end: what they hear, and how often."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import sys, time
from pathlib import Path
from r1prov.common import signals
signals.heed()
ended = Path(sys.argv[1])
try:
    ended.with_name("ready").touch()
    time.sleep(60)
except KeyboardInterrupt:
    try:
        print("tidying up", file=sys.stderr, flush=True)
        time.sleep(1.5)
        ended.write_text("tidied up")
    except KeyboardInterrupt:
        ended.write_text("hurried")
    except OSError as error:
        ended.write_text(f"failed: {error}")
"""


def started(folder: Path, **how) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, folder / "ended"], **how)
    deadline = time.monotonic() + 30
    while not (folder / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def ended(process: subprocess.Popen, folder: Path) -> str:
    process.wait(timeout=30)
    return (folder / "ended").read_text() if (folder / "ended").exists() else f"status {process.returncode}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_is_heard_and_told_twice_it_is_one_wish(tmp_path: Path, number: signal.Signals) -> None:
    process = started(tmp_path, stderr=subprocess.DEVNULL)
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # `make demo` passes on what the terminal has said already
    assert ended(process, tmp_path) == "tidied up"


def test_who_asks_again_later_is_in_a_hurry(tmp_path: Path) -> None:
    process = started(tmp_path, stderr=subprocess.DEVNULL)
    process.send_signal(signal.SIGINT)
    time.sleep(1.2)
    process.send_signal(signal.SIGINT)
    assert ended(process, tmp_path) == "hurried"


def test_a_shells_background_does_not_keep_ctrl_c_away_but_nohup_keeps_the_hangup_away(tmp_path: Path) -> None:
    def in_the_background() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = started(tmp_path, stderr=subprocess.DEVNULL, preexec_fn=in_the_background)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    assert not (tmp_path / "ended").exists()
    process.send_signal(signal.SIGINT)
    assert ended(process, tmp_path) == "tidied up"


def test_a_terminal_that_is_gone_does_not_stop_the_tidying_up(tmp_path: Path) -> None:
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # The tests may run under nohup.
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM, str(tmp_path / "ended")])
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    os.close(terminal)
    os.waitpid(child, 0)
    assert (tmp_path / "ended").read_text() == "tidied up"
