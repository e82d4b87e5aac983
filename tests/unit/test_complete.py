"""Tests of what the shell offers, in a real bash with the script that `r1prov --install-completion` installs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import typer

from r1prov.cli import complete
from r1prov.site.keys import Host
from r1prov.site.select import select
from r1prov.site.state import SiteState

R1PROV = Path(sys.executable).with_name("r1prov")
PRESS_TAB = """
source ~/.bash_completions/r1prov.sh
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_r1prov_completion r1prov
printf '%s\\n' "${COMPREPLY[@]}"
"""
DESCRIBED = """
import json, sys
from r1prov.cli import verbs

def described(command):
    inner = getattr(command, "commands", {})
    return {name: described(each) for name, each in inner.items()} or sorted(p.name for p in command.params)

told = {verb: described(verbs.command(verb)) for verb in verbs.VERBS if verb != "lab"}
print(json.dumps(told))
"""
HEAVY = {"ansible_runner", "cryptography", "httpx", "jinja2", "paramiko"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    # The shell is looked for among the processes above, and these tests may have been started by another one.
    script = f"{R1PROV} --install-completion; exit $?"
    subprocess.run(["bash", "-c", script], env=_environment(home), check=True, capture_output=True)
    return home


def _environment(home: Path, **more: str) -> dict[str, str]:
    path = f"{R1PROV.parent}:{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(home), "PATH": path, "XDG_STATE_HOME": str(home / "state"), **more}
    return environment if "R1PROV_SITE" in more else {k: v for k, v in environment.items() if k != "R1PROV_SITE"}


@pytest.fixture
def offered(home: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """What bash offers for the last of some words, where nothing but that is said."""

    def press_tab(*words: str, **variables: str) -> list[str]:
        done = subprocess.run(
            ["bash", "-c", PRESS_TAB, "bash", "r1prov", *words],
            cwd=tmp_path, env=_environment(home, **variables), capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stderr == ""
        return done.stdout.split()

    return press_tab


def test_hosts_of_the_site_file_are_offered(offered: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "r1prov.yml").write_text(
        "profile: demo\nhosts: [gpu1, root@gpu2:2222, {name: lab, address: 10.0.0.7}]\n"
    )
    assert offered("status", "") == ["gpu1", "gpu2-2222", "lab"]
    assert offered("down", "gpu1", "g") == ["gpu2-2222"]
    assert offered("ask", "--host", "l") == ["lab"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "site.yml").write_text("profile: demo\nhosts: [elsewhere]\n")
    assert offered("status", "--site", "other/site.yml", "") == ["elsewhere"]
    assert offered("status", "", R1PROV_SITE="other/site.yml") == ["elsewhere"]


def test_a_site_that_cannot_be_read_offers_what_was_last_applied_or_nothing(
    offered: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert offered("status", "", R1PROV_SITE="/not/there.yml") == []
    file = tmp_path / "r1prov.yml"
    file.write_text("profile: demo\nhosts: [gpu1]\n")
    monkeypatch.chdir(tmp_path)
    SiteState.of(file).remember(select(file, ())[0])
    file.write_text(": [")
    assert offered("status", "") == ["gpu1"]
    context = SimpleNamespace(params={})
    for broken in ("hosts: 7\n", "hosts: [{address: x}]\n", "- x\n", ""):
        file.write_text(broken)
        assert complete.hosts(cast("typer.Context", context), "g") == ["gpu1"]


def test_profiles_and_quants_are_offered(offered: Callable[..., list[str]]) -> None:
    assert offered("up", "--profile", "4x") == ["4x4090", "4xh800"]
    assert offered("explain", "--quant", "UD-IQ1") == ["UD-IQ1_S", "UD-IQ1_M"]


@pytest.mark.parametrize("written", ["gpu1", "a@gpu1.example.com:22", "[fe80::1]:22", "u@[::1]", "10.0.0.7:2222"])
def test_a_host_is_offered_under_the_name_that_it_is_given(written: str) -> None:
    assert complete._name(written) == Host.parse(written).name


def test_the_options_are_those_of_the_verbs_although_nothing_of_their_work_is_imported() -> None:
    completing = {**os.environ, "_R1PROV_COMPLETE": "complete_bash"}
    empty = f"from r1prov.cli import empty\nempty.import_no_doing()\n{DESCRIBED}print(json.dumps(list(sys.modules)))"
    real = subprocess.run([sys.executable, "-c", DESCRIBED], capture_output=True, text=True, check=True)
    done = subprocess.run([sys.executable, "-c", empty], env=completing, capture_output=True, text=True, check=True)
    told, modules = map(json.loads, done.stdout.splitlines())
    assert told == json.loads(real.stdout)
    # A library that is read late is there by its name alone.
    assert {module.partition(".")[0] for module in modules if "." in module} & HEAVY == set()
