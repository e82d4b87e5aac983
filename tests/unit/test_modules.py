"""Tests that every module of the collection must pass."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.r1.prov.plugins.module_utils.arguments import arguments

ROOT = Path(__file__).parents[2]
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py"))


def documentation(name: str) -> str:
    return importlib.import_module(f"ansible_collections.r1.prov.plugins.modules.{name}").DOCUMENTATION


def specified(options: dict[str, Any]) -> dict[str, Any]:
    """The argument spec for documented options."""
    spec = {}
    for name, option in options.items():
        spec[name] = {key: value for key, value in option.items() if key not in ("description", "suboptions")}
        if "suboptions" in option:
            spec[name]["options"] = specified(option["suboptions"])
    return spec


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_why_stock_ansible_cannot_do_its_work(name: str) -> None:
    documented = yaml.safe_load(documentation(name))
    assert documented["module"] == name
    assert documented["description"][0].startswith("Stock Ansible cannot do it, because ")


@pytest.mark.parametrize("name", MODULES)
def test_a_host_reads_the_options_as_ansible_does(name: str) -> None:
    assert arguments(documentation(name)) == specified(yaml.safe_load(documentation(name))["options"])


def test_secrets_are_marked() -> None:
    spec = arguments('\noptions: {"key": {"description": "A key."}}', key=True)
    assert spec == {"key": {"no_log": True}}


def test_ansible_documents_every_module_without_a_warning() -> None:
    program = Path(sys.executable).with_name("ansible-doc")
    done = subprocess.run(
        [program, "--type", "module", "--json", *(f"r1.prov.{name}" for name in MODULES)],
        env=os.environ | {"ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    shown = json.loads(done.stdout)
    assert set(shown) == {f"r1.prov.{name}" for name in MODULES}
    for name in MODULES:
        module = shown[f"r1.prov.{name}"]
        shared = {"environment"} if "r1.prov.fetching" in documentation(name) else set()
        assert module["doc"]["options"].keys() == arguments(documentation(name)).keys() | shared
        assert module["examples"]
