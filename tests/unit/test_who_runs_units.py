"""Tests of the one place that knows who runs the units of a host: systemd, r1prov's own program, or nobody."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.r1.prov.plugins.module_utils import host_probe, units
from ansible_collections.r1.prov.plugins.modules import strays

ANSWERS = """
import sys
with open({log!r}, "a") as log:
    log.write(" ".join(sys.argv[1:]) + chr(10))
match sys.argv[1]:
    case "show":
        print("LoadState=loaded", "ActiveState=active", "InvocationID=7", "MainPID=12", sep=chr(10))
    case "log":
        print("first", "", "last", sep=chr(10))
    case "differences":
        print("evil.conf is none of ours")
    case "stop":
        sys.exit("no such unit")
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host without systemd, where r1prov's own program runs the units: what it was asked, a line each."""
    program = tmp_path / "r1prov-units"
    program.write_text(ANSWERS.format(log=str(tmp_path / "calls")))
    monkeypatch.setattr(units, "SYSTEMD", tmp_path / "none")
    monkeypatch.setattr(units, "PROGRAM", program)
    monkeypatch.setattr(units, "OWN", [sys.executable, str(program)])
    monkeypatch.setattr(units, "KEPT", tmp_path)
    return tmp_path / "calls"


def test_without_systemd_the_own_program_is_asked_with_the_same_verbs(calls: Path) -> None:
    assert units.show("r1prov-x.service", "ActiveState", "MainPID")["ActiveState"] == "active"
    assert units.last_lines("r1prov-x.service", 9) == ["first", "last"]
    assert units.last_words("r1prov-x.service", "7") == "first\n\nlast"
    assert units.first_lines("r1prov-x.service", 3)[0] == "first\n"
    assert units.untold("r1prov-x.service") == ""
    units.forget("r1prov*")
    with pytest.raises(units.UnitError, match=r"r1prov-units stop r1prov-x: no such unit"):
        units.systemctl("stop", "r1prov-x")
    assert calls.read_text().splitlines() == [
        "show r1prov-x.service --property=ActiveState,MainPID",
        "show r1prov-x.service --property=InvocationID",
        "log r1prov-x.service --no-times --lines 9 --start 7",
        "log r1prov-x.service --no-times --lines 1 --start 7",
        "show r1prov-x.service --property=InvocationID",
        "log r1prov-x.service --no-times --lines 3 --start 7 --first",
        "show r1prov --property=LoadState",
        "show r1prov --property=LoadState",
        "daemon-reload",
        "reset-failed r1prov*",
        "stop r1prov-x",
        "show r1prov --property=LoadState",
    ]


def test_what_somebody_has_changed_of_what_runs_the_units_is_put_right(
    calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer: dict[str, Any] = {}

    class Module:
        check_mode = True

        def __init__(self, **_: Any) -> None:
            self.params = {key: [] for key in ("known", "programs", "configuration", "accounts")}

        def warn(self, said: str) -> None:
            pass

        def exit_json(self, **result: Any) -> None:
            answer.update(result)

    monkeypatch.setattr(strays, "AnsibleModule", Module)
    for module, name in ((strays.unit_look, "strays"), (strays.place_look, "look"), (strays, "of_accounts")):
        monkeypatch.setattr(module, name, lambda *_: [])
    for name in ("of_programs", "of_configuration", "administrators"):
        monkeypatch.setattr(strays.stray_look, name, lambda *_: [])
    strays.main()
    assert answer == {"changed": True, "differences": ["evil.conf is none of ours"]}
    assert "daemon-reload" not in calls.read_text()
    Module.check_mode = False
    strays.main()
    assert calls.read_text().splitlines()[-1] == "daemon-reload"


def test_where_nobody_runs_units_none_is_known(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units.PROGRAM.unlink()
    assert units.show("r1prov-x.service", "ActiveState", "SubState", "Job") == {
        "ActiveState": "inactive",
        "SubState": "dead",
    }
    assert units.in_memory("r1prov*") == units.environment_names() == units.processes("r1prov-x.service") == []
    assert units.last_lines("r1prov-x.service", 9) == []
    assert not units.is_frozen("r1prov-x.service")
    units.forget("r1prov*")  # A removal has removed the program, too.
    with pytest.raises(units.UnitError):
        units.systemctl("start", "r1prov-x")
    assert not calls.exists()


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("#!/usr/bin/python3\n", 0),
        ("#!/usr/bin/python3\n", 0o644),
        ("", 0o755),
        ("#!/usr/bin/python3\nimport nowhere", 0o755),
        ("#!/bin/true", 0o755),
    ],
)
def test_a_program_that_somebody_has_damaged_is_no_obstacle_to_whoever_looks(
    calls: Path, monkeypatch: pytest.MonkeyPatch, text: str, mode: int
) -> None:
    units.PROGRAM.write_text(text)
    units.PROGRAM.chmod(mode)
    monkeypatch.setattr(units, "OWN", [str(units.PROGRAM)])
    units.look_ahead(["r1prov-x.service"], "ActiveState")
    assert units.show("r1prov-x.service", "ActiveState", "Job") == {"ActiveState": "inactive"}
    assert units.untold("r1prov-x.service") == f"{units.PROGRAM} does not work, so nobody can tell how the services are"
    if text != "#!/bin/true":
        for refused in ("stop", "start"):
            with pytest.raises(units.UnitError, match=r"`r1prov up` puts it right"):
                units.systemctl(refused, "r1prov-x")
    assert units.in_memory("r1prov*") == units.environment_names() == units.differences() == []
    assert units.last_lines("r1prov-x.service", 9) == []
    units.forget("r1prov*")


def test_what_a_person_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "SYSTEMD", tmp_path)
    assert units.in_words("restart", "r1prov-x") == "systemctl restart r1prov-x"
    assert units.in_words("log", "r1prov-x") == "journalctl -u r1prov-x"
    assert units.in_words("log", "r1prov-x", systemd=False) == "r1prov-units log r1prov-x"


@pytest.mark.parametrize("systemd", [True, False])
def test_another_host_chooses_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, systemd: bool) -> None:
    monkeypatch.setattr(units, "SYSTEMD", tmp_path / ("" if systemd else "none"))
    monkeypatch.setattr(units, "SYSTEMCTL", ["echo", "systemctl"])
    monkeypatch.setattr(units, "OWN", ["echo", "own"])
    done = subprocess.run(units.anywhere("show", "a b"), capture_output=True, text=True, check=True)
    assert done.stdout == ("systemctl show a b\n" if systemd else "own show a b\n")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """A keeper whose service has started another program: the numbers of the keeper and of that program."""
    monkeypatch.setattr(units, "SYSTEMD", tmp_path / "none")
    monkeypatch.setattr(units, "KEPT", tmp_path)
    monkeypatch.setattr(host_probe, "KEPT", str(tmp_path))
    odd = tmp_path / "a) S 1 (b"
    shutil.copy(shutil.which("sleep") or "", odd)
    keeps = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], sys.argv[2]])"
    serves = (
        "import subprocess, sys; p = subprocess.Popen([sys.argv[1], '60']); print(p.pid, flush=True)\nwhile True: pass"
    )
    with subprocess.Popen([sys.executable, "-c", keeps, serves, str(odd)], stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout
        program = int(keeper.stdout.readline())
        began = Path(f"/proc/{keeper.pid}/stat").read_text().split()[21]
        told = {"MainPID": program, "KeeperPID": keeper.pid, "KeeperStart": began}
        (tmp_path / "r1prov-x.service.json").write_text(json.dumps(told))
        (tmp_path / "r1prov-gone.service.json").write_text(json.dumps(told | {"KeeperStart": "1"}))
        (tmp_path / "r1prov-damaged.service.json").write_text("{")
        yield keeper.pid, program
        for pid in units.processes("r1prov-x.service"):
            os.kill(int(pid), 9)


def test_the_processes_of_a_unit_are_those_that_its_keeper_has_started(tree: tuple[int, int]) -> None:
    keeper, program = tree
    found = units.processes("r1prov-x.service")
    assert (len(found), str(program) in found, str(keeper) in found) == (2, True, False)
    for name in ("damaged", "other", "gone"):
        assert units.processes(f"r1prov-{name}.service") == []
    before = units.cpu_seconds("r1prov-x.service")
    time.sleep(0.3)
    assert units.cpu_seconds("r1prov-x.service") > before


@pytest.mark.skipif(Path("/run/systemd/system").is_dir(), reason="systemd runs this host")
def test_a_process_belongs_to_the_unit_of_the_keeper_above_it(
    tree: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, program = tree
    read = host_probe._read
    monkeypatch.setattr(host_probe, "_read", lambda path: "" if path.endswith("/cgroup") else read(path))
    assert host_probe._unit(program) == host_probe._unit(keeper) == "r1prov-x.service"
    assert host_probe._unit(os.getpid()) == ""
    assert host_probe._unit(None) == ""
