"""Tests of the program that reads a host's status: what runs, asked of real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from r1prov.hosts import Pause


@pytest.fixture
def status(tmp_path: Path) -> dict[str, Any]:
    """The program's names, with releases below tmp_path."""
    text = (resources.files("r1prov.hosts") / "on_host" / "status.py").read_text()
    names: dict[str, Any] = {}
    exec(compile(text, "status.py", "exec"), names)
    names["RELEASES"] = tmp_path
    return names


def begun(process: subprocess.Popen[bytes]) -> str:
    """The number of a process that shows its arguments. The kernel shows none for a moment after a program was started."""
    while not Path(f"/proc/{process.pid}/cmdline").read_bytes():
        time.sleep(0.01)
    return str(process.pid)


def test_the_release_that_runs_is_that_of_the_process_and_not_of_the_link(status: dict, tmp_path: Path) -> None:
    home = tmp_path / "llama.cpp"
    for release in ("old", "new"):
        (home / "releases" / release / "bin").mkdir(parents=True)
        shutil.copy(shutil.which("sleep") or "", home / "releases" / release / "bin" / "server")
    (home / "current").symlink_to("releases/old")
    with subprocess.Popen([home / "current" / "bin" / "server", "60"]) as process:
        try:
            (home / "current").unlink()
            (home / "current").symlink_to("releases/new")
            assert status["release"]("llama.cpp") == "new"
            assert status["running"]("llama.cpp", [status["words"](begun(process)), status["words"]("0")]) == ["old"]
            assert status["running"]("ollama", [status["words"](str(process.pid))]) == []
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("unit", "elapsed_s"),
    [
        (["ActiveState=activating", "InactiveExitTimestampMonotonic=BEGAN"], 90),
        (["ActiveState=inactive", "Job=17", "InactiveExitTimestampMonotonic=0"], 0),  # The engine is being stopped.
        (["ActiveState=inactive", "InactiveExitTimestampMonotonic=BEGAN"], None),
        (["ActiveState=failed", "InactiveExitTimestampMonotonic=BEGAN"], None),
    ],
)
@pytest.mark.parametrize("text", ['{"user": "ann", "controller": "laptop", "command": "r1prov tune"}', "{", ""])
def test_a_measurement_says_whose_it_is_and_how_long_it_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: list[str], elapsed_s: float | None, text: str
) -> None:
    text_of_pause = (resources.files("r1prov.hosts") / "on_host" / "pause.py").read_text().removesuffix("main()\n")
    names: dict[str, Any] = {}
    exec(compile(text_of_pause, "pause.py", "exec"), names)
    names["LOCK"], names["FILE"] = tmp_path / "lock.json", tmp_path / "unit"
    names["LOCK"].write_text(text)
    began = str(int((time.monotonic() - 90) * 1e6))
    (tmp_path / "systemctl").write_text(
        "\n".join(["#!/bin/sh", *(f"echo {line}" for line in unit)]).replace("BEGAN", began)
    )
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    names["FILE"].write_text("[Service]\nTimeoutStartSec=1320\nTimeoutStopSec=10\n")
    found = names["pause"](["systemctl"])
    if elapsed_s is None:
        assert found is None
        return
    assert found["elapsed_s"] == pytest.approx(elapsed_s, abs=30)
    assert found["limit_s"] == 1320
    assert found["lock"] == (json.loads(text) if len(text) > 1 else None)


def test_a_pause_in_words() -> None:
    since = datetime(2026, 11, 28, 9, 5).astimezone()
    told = Pause("ann@laptop", "r1prov tune", since, since + timedelta(minutes=22)).in_words("ollama")
    assert told == (
        "a measurement of ann@laptop (r1prov tune) has paused ollama since 09:05; "
        "it ends at 09:27 at the latest, and then the model is loaded again"
    )
    assert Pause("", "", since, None).in_words("ollama") == "a measurement has paused ollama since 09:05"


def test_a_script_shows_in_the_arguments_of_its_interpreter(status: dict, tmp_path: Path) -> None:
    folder = tmp_path / "open-webui" / "releases" / "0.6" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").symlink_to(sys.executable)
    with subprocess.Popen([folder / "python", "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert status["running"]("open-webui", [status["words"](begun(process))]) == ["0.6"]


@pytest.mark.parametrize(
    ("models", "health"), [(["R1:latest", "mine:7b"], "ok"), (["mine:7b"], "model missing"), ([], "model missing")]
)
def test_an_ollama_that_lacks_the_model_is_not_well(status: dict, models: list[str], health: str) -> None:
    class Ollama(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said = {"models": [{"name": name} for name in models]} if self.path == "/api/tags" else {"version": "0.12"}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Ollama) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asked = {"url": f"http://127.0.0.1:{server.server_port}", "model": "R1"}
        assert (status["without_model"](asked) or "ok") == health
        assert status["without_model"](asked | {"model": ""}) == ""
        server.shutdown()
