"""Tests that every module of the collection must pass."""

import importlib
from pathlib import Path

import pytest
import yaml

MODULES = sorted(path.stem for path in (Path(__file__).parents[2] / "plugins" / "modules").glob("*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_why_stock_ansible_cannot_do_its_work(name: str) -> None:
    module = importlib.import_module(f"ansible_collections.r1.prov.plugins.modules.{name}")
    documentation = yaml.safe_load(module.DOCUMENTATION)
    assert documentation["module"] == name
    assert documentation["description"][0].startswith("Stock Ansible cannot do it, because ")
