"""Lets a verb be imported without what it does, for the shell that only wants to know its options.

Somebody waits at each press of Tab, and Ansible, ssh and all models of the site take half a second. While the shell completes,
nothing of them is called. So they are empty modules then, in which every name is there and means nothing.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

DOING = (
    "r1prov.common.network",
    "r1prov.runs",
    "r1prov.hosts",
    "r1prov.inventory",
    "r1prov.decision",
    "r1prov.cli.running",
    "r1prov.cli.show",
    "r1prov.cli.show_plan",
    "r1prov.site.select",
    "r1prov.site.load",
)
"""What verbs call and do not describe their options with."""


class _Empty(ModuleType):
    """A module with every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty module in the place of each of DOING and of what lies below it."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not any(fullname == name or fullname.startswith(f"{name}.") for name in DOING):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave it empty."""


def import_no_doing() -> None:
    """Let this process, which only completes, import empty modules in the place of DOING."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
