"""The places of things on the controller: the collection, the caches, the state of a site."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

SITE_FILE = "r1prov.yml"
"""The site file that is taken where none is named, if it lies in this folder."""

_PACKAGE = Path(__file__).resolve().parents[1]


def collections_path() -> Path:
    """The folder for ANSIBLE_COLLECTIONS_PATH. It lies inside the installed wheel, or is `.collections` of the source tree."""
    packaged = _PACKAGE / "_collection"
    return packaged if packaged.is_dir() else _PACKAGE.parent / ".collections"


def collection() -> Path:
    """The root of the collection `r1.prov`, which holds playbooks, roles, plugins, inventory and templates."""
    return collections_path() / "ansible_collections" / "r1" / "prov"


def page(name: str) -> Path:
    """A page of the documentation, which hints name. It is relative to the current folder where it lies below it."""
    path = (collection() / "docs" / name).resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def module_util(name: str) -> ModuleType:
    """Import a module of the collection's `plugins/module_utils` under the name that it has on the hosts."""
    if str(collections_path()) not in sys.path:
        sys.path.append(str(collections_path()))
    return importlib.import_module(f"ansible_collections.r1.prov.plugins.module_utils.{name}")


def cache_dir() -> Path:
    """The folder for what may be deleted at any time: `$XDG_CACHE_HOME/r1prov`."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def state_dir() -> Path:
    """The folder for the state of a site that has no folder of its own: `$XDG_STATE_HOME/r1prov`."""
    return _xdg("XDG_STATE_HOME", ".local/state")


def _xdg(variable: str, fallback: str) -> Path:
    base = os.environ.get(variable)
    return (Path(base) if base else Path.home() / fallback) / "r1prov"
