"""Tests of what a look saves: one question to systemd for many units, and a program that runs elsewhere without a new Python."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.r1.prov.plugins.module_utils import package_look, unit_look, units
from ansible_collections.r1.prov.plugins.module_utils.elsewhere import Running
from ansible_collections.r1.prov.plugins.modules import service_unit

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
    yield tmp_path / "calls"
    units._ahead.clear()
    units._variables.clear()


def test_systemd_is_asked_once_for_many_units(calls: Path) -> None:
    service_unit.look_ahead([{"name": "r1prov-a", "socket": ""}, {"name": "r1prov-b", "socket": "[Socket]"}])
    for name in ("r1prov-a.service", "r1prov-b.service", "r1prov-b.socket"):
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
