"""Tests of the look with which plain ansible-playbook begins: real runs of it over this machine, with paths in a folder of the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_looking import file_as_it_is

from r1prov.common import paths
from r1prov.hosts import Expectation
from r1prov.runs import expectations
from r1prov.site.state import SiteState

PLAYBOOK = paths.collection() / "playbooks" / "up.yml"
PLAY = yaml.safe_load(PLAYBOOK.read_text())[0]


class Plain:
    """A site with one host, which is this machine, and the beginning of the playbook `up`."""

    def __init__(self, folder: Path) -> None:
        self.state = SiteState(folder / ".r1prov")
        for each in (self.state.inventory, self.state.secrets, folder / "bin"):
            each.mkdir(parents=True)
        host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        hosts = {"all": {"hosts": {"gpu1": host}, "vars": {"r1prov_site_dir": "{{ inventory_dir }}/.."}}}
        (self.state.inventory / "hosts.yml").write_text(yaml.safe_dump(hosts))
        self.folder, self.told = folder, folder / "told.json"
        copy = {"dest": str(self.told), "content": "{{ r1prov_look | default({}) | to_json }}"}
        look, leave = (task for task in PLAY["tasks"] if task.get("tags") == ["look"])
        look["r1.prov.look"] |= {"playbook": str(PLAYBOOK)}
        rest = {"ansible.builtin.copy": copy, "check_mode": False}
        play = {"hosts": "all", "strategy": "free", "gather_facts": False, "tasks": [look, leave, rest]}
        (folder / "up.yml").write_text(yaml.safe_dump([play], sort_keys=False))
        python = folder / "bin" / "python3"
        python.write_text(f"#!/bin/sh\nsed 's#/run/r1prov#{folder}/run#' | {sys.executable} \"$@\"\n")
        python.chmod(0o755)

    def expects(self, *expected: Expectation) -> None:
        expectations.keep(self.state, "gpu1", expectations.made_of(self.state), expected)

    def run(self, *options: str) -> tuple[dict[str, Any] | None, str]:
        """What the look told the steps that follow it; None where the run left the host as it is. And all that was shown."""
        self.told.unlink(missing_ok=True)
        environment = os.environ | {
            "ANSIBLE_COLLECTIONS_PATH": str(paths.collections_path()),
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "ANSIBLE_CONFIG": str(paths.collection() / "ansible.cfg"),
        }
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        argv = [program, "-i", str(self.state.inventory), *options, str(self.folder / "up.yml")]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return (json.loads(self.told.read_text()) if self.told.exists() else None), done.stdout


@pytest.fixture
def plain(tmp_path: Path) -> Plain:
    return Plain(tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "nginx.conf"
    path.write_text("right\n")
    return path


def of_gateway(path: Path) -> Expectation:
    expected = file_as_it_is(path)
    return Expectation("gateway", expected.task, expected.module, expected.arguments, expected.sha1)


def roles(told: dict[str, Any] | None) -> set[str]:
    assert told
    return {name.removeprefix("r1.prov.") for name in told["due"]}


def test_a_host_on_which_nothing_differs_is_left_and_another_gets_what_is_due(plain: Plain, config: Path) -> None:
    plain.expects(of_gateway(config))
    told, shown = plain.run()
    assert told is None
    assert "gpu1: nothing differs (1 questions" in shown
    config.write_text("wrong\n")
    for options in (["--check"], ["-e", "r1prov_break_lock=true"]):
        told, shown = plain.run(*options)
        assert roles(told) == {"preflight", "gateway", "smoke_bench"}
        assert f"gpu1: {config} has another content than it should have (mended by gateway)" in shown
    assert plain.run("--skip-tags", "look")[0] == {}


@pytest.mark.parametrize("why", ["nothing kept", "another inventory", "variables", "a lock", "no answer"])
def test_where_it_cannot_be_told_what_differs_all_steps_run(plain: Plain, config: Path, why: str) -> None:
    options, reason = [], "nothing is kept of a run of `r1prov up` over it"
    if why != "nothing kept":
        plain.expects(of_gateway(config))
    if why == "another inventory":
        (plain.state.inventory / "group_vars").mkdir()
        (plain.state.inventory / "group_vars" / "all.yml").write_text("r1prov_ollama: false\n")
    if why == "variables":
        options, reason = ["-e", '{"ollama_state": "stopped"}'], "this run has variables of its own (ollama_state)"
    if why == "a lock":
        (plain.folder / "run").mkdir()
        (plain.folder / "run" / "lock.json").write_text("3")
        reason = "another run is at work on it"
    if why == "no answer":
        (plain.folder / "bin" / "python3").write_text("#!/bin/sh\necho 'sorry, no Python' >&2\nexit 1\n")
        reason = "sorry, no Python"
    told, shown = plain.run(*options)
    assert roles(told) > {"preflight", "build_deps", "ollama", "gateway", "watch", "smoke_bench"}
    assert f"gpu1: all steps run, because it could not be told what differs: {reason}" in shown


def test_steps_that_are_not_due_are_left_out_with_the_roles_that_they_bring_in(tmp_path: Path) -> None:
    (converge,) = (task for task in PLAY["tasks"] if "block" in task)
    for role, tasks in {
        "due": [{"include_role": {"name": "service"}}],
        "other": [{"include_role": {"name": "service"}}],
        "service": [{"debug": {"msg": "service in {{ ansible_parent_role_names | default(['nothing']) | first }}"}}],
    }.items():
        (tmp_path / "roles" / role / "tasks").mkdir(parents=True)
        (tmp_path / "roles" / role / "tasks" / "main.yml").write_text(yaml.safe_dump(tasks))
    block = [{"import_role": {"name": name}} for name in ("due", "other", "service")]
    always = [{"debug": {"msg": "unlocked"}}]
    tasks = [
        {"set_fact": {"r1prov_look": {"due": ["due"]}}},
        {"when": converge["when"], "block": block, "always": always},
    ]
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "strategy": "free", "tasks": tasks}
    (tmp_path / "up.yml").write_text(yaml.safe_dump([play]))
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    argv = [program, str(tmp_path / "up.yml")]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True)
    said = [line.strip() for line in done.stdout.splitlines() if '"msg":' in line]
    assert said == ['"msg": "service in due"', '"msg": "unlocked"']
