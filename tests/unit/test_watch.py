"""Tests of the host's own watch. What a run leaves is executed here as on a host, with paths that lead into a folder of the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from test_looking import Here, file_as_it_is

from r1prov.cli import show
from r1prov.common import paths
from r1prov.hosts import Expectation, HostConnection
from r1prov.runs import watch
from r1prov.site.keys import SiteFile

HOUR_S = 3600


class Watched(Here):
    """A host that looks by itself."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(folder)
        self.last, self.file = folder / "watch" / "last.json", folder / "watch" / "look.pyz"
        self.file.parent.mkdir(parents=True)
        plain, job = watch._on_host, paths.module_util("look_job")

        def moved(name: str) -> str:
            return plain(name).replace("/var/lib/r1prov/watch", str(folder / "watch"))

        def zipped(files: dict[str, bytes]) -> bytes:
            before, after = b"/run/r1prov", str(folder).encode()
            program = "ansible_collections/r1/prov/plugins/module_utils/look_program.py"
            return plain_zip(files | {program: files[program].replace(before, after)})

        plain_zip = job.zipped
        monkeypatch.setattr(watch, "_on_host", moved)
        monkeypatch.setattr(job, "zipped", zipped)

    def leave(self, *expected: Expectation) -> None:
        watch.leave(cast(HostConnection, self), expected, HOUR_S)

    def looks(self) -> list[str]:
        """What the timer does. Returns the lines of the journal."""
        done = subprocess.run([sys.executable, "-I", self.file], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    @property
    def found(self) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads(self.last.read_text()))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(tmp_path / "host", monkeypatch)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "nginx.conf"
    path.write_text("right\n")
    path.chmod(0o644)
    return path


def expected(path: Path) -> Expectation:
    return replace(file_as_it_is(path), step="gateway")


def test_a_host_looks_by_itself_and_says_and_keeps_what_differs(host: Watched, config: Path) -> None:
    host.leave(expected(config))
    assert host.file.stat().st_mode & 0o777 == 0o600
    (line,) = host.looks()
    assert line.startswith("<6>nothing differs (1 questions")
    assert (host.found["differences"], host.found["unknown"], host.found["every_s"]) == ([], "", HOUR_S)
    config.write_text("wrong\n")
    config.chmod(0o666)
    whats = [f"{config} has the mode 0666, and should have 0644", f"{config} has another content than it should have"]
    assert host.looks() == [f"<4>{what} (mended by gateway)" for what in whats]
    assert host.found["differences"] == [{"step": "gateway", "task": "Write it", "what": what} for what in whats]
    assert host.last.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in host.last.parent.iterdir()) == ["last.json", "look.pyz"]
    assert config.read_text() == "wrong\n"


def test_a_module_that_breaks_is_not_taken_for_nothing_differs(host: Watched, config: Path) -> None:
    host.leave(expected(config), Expectation("x", "Break", "ansible.modules.none_such", {}))
    assert subprocess.run([sys.executable, "-I", host.file], capture_output=True, check=False).returncode != 0
    assert not host.last.exists()
    config.write_bytes(b"\xff")
    host.leave(
        expected(config), Expectation("x", "Break", "ansible.modules.command", {"argv": ["/none"]}, "", {"rc": 0})
    )
    assert host.looks()[-1].endswith("(mended by x)")


@pytest.mark.parametrize("lock", ['{"run": "1"}', "{"])
def test_it_tells_nothing_while_a_run_holds_the_host(host: Watched, config: Path, lock: str) -> None:
    host.leave(expected(config))
    host.looks()
    before = host.last.read_bytes()
    config.write_text("being written\n")
    (host.folder / "lock.json").write_text(lock)
    assert host.looks() == []
    assert host.last.read_bytes() == before
    (host.folder / "lock.json").unlink()
    assert len(host.looks()) == 1


def test_where_nothing_is_known_there_is_nothing_to_look_by(host: Watched, config: Path) -> None:
    host.leave(expected(config))
    host.leave()
    assert not host.file.exists()
    host.leave()  # It was not there.


def test_what_is_left_is_always_the_same(config: Path) -> None:
    once, again = (watch.program([expected(config)], HOUR_S) for _ in range(2))
    assert once == again
    assert once != watch.program([expected(config)], 2 * HOUR_S)


def seen(**changes: Any) -> dict[str, Any]:
    last = {"looked": "2026-11-29T12:00:00+00:00", "age_s": 600, "differences": [], "unknown": "", "every_s": HOUR_S}
    return {"watch": last | changes}


@pytest.mark.parametrize(
    ("status", "is_news", "says"),
    [
        ({"watch": None}, False, ""),
        ({}, False, ""),
        (seen(looked=None), True, "gpu1 has not looked by itself yet, and does so every 1:00:00"),
        (seen(), False, "gpu1 looked by itself 10:00 ago: nothing differs"),
        (seen(differences=[{"what": "/x is missing"}]), True, "gpu1 looked by itself 10:00 ago: /x is missing"),
        (seen(unknown="a: b"), True, "gpu1 looked by itself 10:00 ago: not all could be told: a: b"),
        (seen(age_s=7201), True, "2:00:01 ago: nothing differs. That is long ago"),
        (seen(age_s=7201), True, "`journalctl -u r1prov-watch` there says why"),
        (seen(age_s=7201) | {"systemd": False}, True, "r1prov-units log r1prov-watch` there says why"),
    ],
)
def test_status_says_what_a_host_has_seen(status: dict[str, Any], *, is_news: bool, says: str) -> None:
    text, news = show.own_watch("gpu1", status)
    assert says in text
    assert bool(text) == bool(says)
    assert news == is_news


@pytest.mark.parametrize(("text", "seconds"), [("1h", HOUR_S), ("5m", 300), (None, None)])
def test_how_often_it_looks_is_a_duration(text: str | None, seconds: int | None) -> None:
    assert SiteFile.model_validate({"profile": "demo", "hosts": ["gpu1"], "watch": text}).watch == seconds


def test_it_does_not_look_all_the_time() -> None:
    with pytest.raises(ValueError, match="`10s` is too often for a host to look: write `1m` or more"):
        SiteFile.model_validate({"profile": "demo", "hosts": ["gpu1"], "watch": "10s"})


def test_the_program_runs_where_a_host_keeps_nothing_compiled(host: Watched, config: Path) -> None:
    """The unit may write nowhere but to its folder, and the program is no folder, so Python can keep nothing beside it."""
    host.leave(expected(config))
    done = subprocess.run([sys.executable, "-I", host.file], cwd="/", env={"PATH": os.defpath}, check=False)
    assert done.returncode == 0
