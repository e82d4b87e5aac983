"""Tests of the program with which a host reads its weights by itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import verify as reading
from ansible_collections.r1.prov.plugins.module_utils import weights_kept, weights_verify
from ansible_collections.r1.prov.plugins.module_utils.piece_digests import PIECE_BYTES
from ansible_collections.r1.prov.plugins.modules import weights as module

from r1prov.cli import show
from tests.fixtures.programs import installed

MONTH_S = 30 * 86400


class Host:
    """A host with two published files that are served, verified long ago."""

    def __init__(self, root: Path) -> None:
        self.folder, self.state, self.read = root / "m", root / "state.json", root / "read.json"
        self.folder.mkdir()
        self.lock, self.run = root / "lock.json", root / "run"
        self.files = []
        for name in ("a.gguf", "b.gguf"):
            (self.folder / name).write_bytes(name.encode() * 1000)
            content = (self.folder / name).read_bytes()
            self.files.append({"name": name, "bytes": len(content), "sha256": sha256(content).hexdigest()})
        self.remember(time.time() - MONTH_S)

    def remember(self, at: float) -> None:
        known = {
            str(self.folder / file["name"]): weights_kept.seen(self.folder / file["name"], file["sha256"])
            for file in self.files
        }
        self.state.write_text(json.dumps({"state": "done", "verified": known, "when": dict.fromkeys(known, at)}))

    @property
    def job(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "files": self.files, "merged": "", "every_s": MONTH_S}

    def reads(self) -> dict[str, Any]:
        reading.run(self.job, self.state, self.read, self.run, self.lock)
        return json.loads(self.read.read_text())["files"] if self.read.exists() else {}

    def rot(self, name: str) -> Path:
        file = self.folder / name
        times, content = file.stat(), bytearray(file.read_bytes())
        content[500] ^= 1
        with file.open("r+b") as stream:
            stream.write(content)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        return file


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_what_is_due_is_read_and_what_is_damaged_forgotten(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    file = host.rot("b.gguf")
    found = host.reads()
    assert {Path(path).name: each["state"] for path, each in found.items()} == {"a.gguf": "whole", "b.gguf": "damaged"}
    assert capsys.readouterr().out.startswith(f"<4>{file} is damaged: its sha256 is ")
    assert list(json.loads(host.state.read_text())["verified"]) == [str(host.folder / "a.gguf")]
    # It is not read again tomorrow.
    before = host.read.read_text()
    host.reads()
    assert host.read.read_text() == before


def test_damage_is_said_by_drift_and_status_until_the_file_is_brought_anew(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = host.rot("b.gguf")
    host.reads()
    monkeypatch.setattr(module, "damage", lambda file: weights_kept.damage(file, state=host.state, read=host.read))
    day = time.strftime("%Y-%m-%d", time.gmtime())
    assert module._unlike(file).startswith(f"{file} is damaged, as was found on {day}: its sha256 is ")
    told = weights_kept.last_reading(host.state, host.read)
    assert told
    assert (told["by"], list(told["damaged"])) == ("timer", [str(file)])
    host.remember(time.time() + 1)
    assert weights_kept.last_reading(host.state, host.read) == {**told, "damaged": {}}
    assert module._unlike(file) == f"{file} is not as it was when it was verified"


@pytest.mark.parametrize("why", ["fresh", "locked", "transferring", "nothing there"])
def test_it_leaves_a_host_alone(host: Host, why: str) -> None:
    if why == "fresh":
        host.remember(time.time() - MONTH_S + 60)
    elif why == "locked":
        host.lock.touch()
    elif why == "transferring":
        host.state.write_text(json.dumps(json.loads(host.state.read_text()) | {"state": "running"}))
    else:
        shutil.rmtree(host.folder)
    assert host.reads() == {}


def test_what_a_run_replaces_meanwhile_is_not_judged(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    file = host.rot("b.gguf")

    real = weights_verify.verified

    def read_and_replaced(*arguments: Any, **options: Any) -> list[dict[str, Any]]:
        rows = real(*arguments, **options)
        file.with_suffix(".new").write_bytes(b"b.gguf" * 1000)
        file.with_suffix(".new").replace(file)
        return rows

    monkeypatch.setattr(weights_verify, "verified", read_and_replaced)
    assert [Path(path).name for path in host.reads()] == ["a.gguf"]


class Disk:
    """A disk on which others move bytes, as the kernel counts them. A sleep is a time in which they do."""

    def __init__(self, *rates: int) -> None:
        self.moved, self.rates, self.slept = 0, list(rates), 0.0

    def count(self, _: Path) -> int:
        return self.moved

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.moved += round((self.rates.pop(0) if self.rates else 0) * seconds)


def test_it_waits_while_others_use_the_disk(tmp_path: Path) -> None:
    disk = Disk(50 << 20, 50 << 20, 0)
    yielding = reading.Yielding(tmp_path, lock=tmp_path / "lock", sleep=disk.sleep, moved=disk.count)
    yielding.rest()
    disk.moved += PIECE_BYTES  # its own
    yielding.rest()
    assert disk.slept == 0
    disk.moved += PIECE_BYTES + (20 << 20)
    yielding.rest()
    assert disk.slept == 3 * reading.POLL_S


def test_it_waits_for_a_run_and_not_for_ever(tmp_path: Path) -> None:
    lock, disk = tmp_path / "lock", Disk()
    lock.touch()
    yielding = reading.Yielding(tmp_path, lock=lock, sleep=disk.sleep, moved=disk.count)
    yielding.rest()
    assert disk.slept == reading.PATIENCE_S
    yielding.rest()
    assert disk.slept == reading.PATIENCE_S


def test_a_disk_of_which_the_kernel_tells_nothing_is_read(tmp_path: Path) -> None:
    yielding = reading.Yielding(
        tmp_path, lock=tmp_path / "lock", sleep=lambda _: pytest.fail("it waits"), moved=lambda _: None
    )
    yielding.rest()
    yielding.rest()


def test_it_reads_as_its_unit_runs_it_with_nothing_but_pythons_own_library(host: Host, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(host.job))
    argv = ["python3", "-I", "-S", str(installed("r1prov-weights") / "verify.py"), str(tmp_path / "job.json")]
    environment = {
        "STATE_DIRECTORY": str(tmp_path),
        "RUNTIME_DIRECTORY": str(tmp_path / "run"),
        "PATH": os.environ["PATH"],
    }
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "<6>2 files are whole\n"


def test_status_says_when_the_weights_were_read() -> None:
    status: dict[str, Any] = {"weights_read": {"read": "2026-11-30T12:00:00+00:00", "by": "timer", "damaged": {}}}
    assert show.weights_read("gpu1", status) == (
        "gpu1: the weights were read on 2026-11-30 by the host itself: whole",
        False,
    )
    status["weights_read"]["damaged"] = {"/a": "1 piece"}
    assert show.weights_read("gpu1", status) == (
        "gpu1: the weights were read on 2026-11-30 by the host itself: /a is damaged: 1 piece; `r1prov up` brings it anew",
        True,
    )
    assert show.weights_read("gpu1", {"weights_read": None}) == ("", False)
