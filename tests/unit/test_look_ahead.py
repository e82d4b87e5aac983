"""Tests of what a look saves: one question to systemd for many units, and a program that runs elsewhere without a new Python."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.r1.prov.plugins.module_utils import (
    listening,
    look_program,
    manifest,
    package_look,
    unit_look,
    units,
)
from ansible_collections.r1.prov.plugins.module_utils.elsewhere import Running
from ansible_collections.r1.prov.plugins.modules import release, service_unit

SYSTEMCTL = """#!/bin/sh
echo "$*" >> {log}
case $1 in
  show-environment) echo LANG=C;;
  show) shift; first=1; for unit; do case $unit in
    --*) ;;
    *) [ $first ] || echo; first=; echo "FragmentPath=/etc/$unit"; echo ActiveState=active;;
    esac; done;;
esac
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The calls of systemctl, a line each."""
    (tmp_path / "systemctl").write_text(SYSTEMCTL.format(log=tmp_path / "calls"))
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(units, "SYSTEMD", tmp_path)
    yield tmp_path / "calls"
    for kept in (units._ahead, units._ahead_keys, units._variables, unit_look._ahead, listening._ahead):
        kept.clear()


def test_systemd_is_asked_once_for_many_units(calls: Path) -> None:
    service_unit.look_ahead([{"name": "r1prov-a", "timer": "[Timer]"}, {"name": "r1prov-b", "socket": "[Socket]"}])
    for name in ("r1prov-a.service", "r1prov-a.timer", "r1prov-b.service", "r1prov-b.socket"):
        assert units.show(name, "FragmentPath", "MainPID") == {"FragmentPath": f"/etc/{name}"}
    assert units.environment_names() == ["LANG"]
    assert [line.split()[:2] for line in calls.read_text().splitlines()] == [
        ["show-environment"],
        ["show", "r1prov-a.service"],
    ]
    assert units.show("other.service", "ActiveState")["FragmentPath"] == "/etc/other.service"
    assert len(calls.read_text().splitlines()) == 3


def test_an_answer_about_other_units_than_were_asked_for_is_not_used(calls: Path, tmp_path: Path) -> None:
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\necho x >> {calls}\necho ActiveState=active\n")
    units.look_ahead(["a.service", "b.service"], "ActiveState")
    before = len(calls.read_text().splitlines())
    units.show("a.service", "ActiveState")
    assert len(calls.read_text().splitlines()) == before + 1


def test_a_property_that_was_not_asked_for_ahead_is_asked_for(calls: Path) -> None:
    units.look_ahead(["a.service"], "ActiveState")
    before = len(calls.read_text().splitlines())
    units.show("a.service", "ActiveState", "LoadState")
    assert len(calls.read_text().splitlines()) == before + 1


def test_dpkg_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "nginx\tnginx\tno\toptional\tinstalled\t\t, libc6\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(package_look, "_ahead", [])
    package_look.look_ahead()
    assert [*package_look.installed()] == [*package_look.installed()] == ["nginx"]
    assert len(asked) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root enters a network")
def test_a_program_runs_in_another_network_and_its_end_is_seen(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(
        "import os, pathlib, socket, sys, time\n"
        "names = sorted(name for _, name in socket.if_nameindex())\n"
        "pathlib.Path(sys.argv[1]).write_text(f'{names} {os.environ[\"MAINPID\"]}')\n"
        "time.sleep(float(sys.argv[2]))\n"
    )
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        network = Path(f"/proc/{other.pid}/ns/net")
        assert Running(network, str(program), str(tmp_path / "told"), "0", MAINPID="7").ends_within(20)
        assert (tmp_path / "told").read_text() == "['lo'] 7"
        began = time.monotonic()
        sleeping = Running(network, str(program), str(tmp_path / "told"), "60", MAINPID="7")
        assert not sleeping.ends_within(0.2)
        sleeping.kill()
        assert time.monotonic() - began < 20
        other.kill()
    assert "MAINPID" not in os.environ


def test_a_link_by_which_a_target_starts_a_unit_and_that_leads_nowhere_is_seen(tmp_path: Path) -> None:
    (tmp_path / "multi-user.target.wants").mkdir()
    (tmp_path / "r1prov-x.service").write_text("[Service]\n")
    link = tmp_path / "multi-user.target.wants" / "r1prov-x.service"
    link.symlink_to("/nowhere")
    found = unit_look.look("r1prov-x.service", folders=[tmp_path], ours=tmp_path)
    assert [each.sentence for each in found if each.kind == "wanted"] == [
        f"{link} leads to /nowhere, and should lead to the unit"
    ]


def test_the_folders_of_systemd_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r1prov-x.service").write_text("[Service]\n")
    (tmp_path / "other.service").symlink_to("r1prov-x.service")
    (tmp_path / "r1prov-.service.d").mkdir()
    (tmp_path / "r1prov-.service.d" / "own.conf").write_text("[Service]\nUser=root\n")
    found = unit_look.look("r1prov-x.service", folders=[tmp_path], ours=tmp_path)
    assert {each.kind for each in found} >= {"drop-in", "link"}
    monkeypatch.setattr(unit_look, "FOLDERS", (tmp_path, tmp_path / "none"))
    monkeypatch.setattr(unit_look, "_ahead", {})
    unit_look.look_ahead()
    monkeypatch.setattr(os, "scandir", None)
    monkeypatch.setattr(unit_look, "_conf", lambda folder: [folder / "own.conf"])
    assert unit_look.look("r1prov-x.service", folders=unit_look.FOLDERS, ours=tmp_path) == found


def test_a_release_of_which_several_questions_are_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "releases" / "1").mkdir(parents=True)
        (tmp_path / name / "current").symlink_to("releases/1")
    monkeypatch.setattr(manifest, "_ahead", {})
    release.look_ahead([{"home": str(tmp_path / name)} for name in ("one", "two", "one", "none", "none")])
    assert [*manifest._ahead] == [tmp_path / "one" / "releases" / "1"]
    found = manifest.look(tmp_path / "one" / "releases" / "1")
    assert found.wrong
    monkeypatch.setattr(manifest, "_is_sealed", None)
    assert manifest.look(tmp_path / "one" / "releases" / "1") == found


def test_what_ansible_imports_late_is_there() -> None:
    """Otherwise each process of a look would compile it."""
    assert all(importlib.util.find_spec(name) for name in look_program._LATE)


def test_what_takes_longest_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["release", "file", "apt_present", "release", "service_unit"]
    asked = [{"module": f"modules.{name}", "number": number} for number, name in enumerate(names)]
    begun: list[int] = []

    class Worker(look_program._Worker):
        def take(self, number: int) -> None:
            begun.append(number)
            super().take(number)

    monkeypatch.setattr(look_program, "_Worker", Worker)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    answers = look_program._asked_at_once(asked, lambda: None, lambda each: {"said": each["number"]})
    assert [answer["said"] for answer in answers] == [0, 1, 2, 3, 4]
    assert begun == [3, 0, 2, 4, 1]
