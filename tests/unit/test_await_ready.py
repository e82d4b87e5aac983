"""Tests of the program that waits until a service is ready."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

READY = Path(__file__).parents[2] / "roles/service/files/await_ready.py"


def test_a_server_with_one_client_at_a_time_is_started_when_it_listens() -> None:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
        command = [sys.executable, str(READY), f"tcp://127.0.0.1:{port}"]
        with subprocess.Popen(command, env=os.environ | {"MAINPID": str(os.getpid())}) as waiting:
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(0.7)
            door.listen()
            assert waiting.wait(10) == 0
        door.setblocking(False)
        with pytest.raises(BlockingIOError):  # Nobody has knocked.
            door.accept()
