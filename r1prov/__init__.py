"""r1prov: one command turns fresh GPU servers into a private, full DeepSeek-R1 671B."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

LATE = ("ansible_runner", "httpx", "invoke")
"""Libraries that most commands import and do not use. `invoke` is of paramiko, which wants it for `Match exec` in an ssh configuration.
r1prov lets ssh itself read that."""

_reading = threading.RLock()


class _Late(ModuleType):
    """A library that is read when something of it is first used."""

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        with _reading:
            if name.startswith("__") or not spec or not spec.loader or not self.__dict__.pop("_is_late", False):
                return super().__getattribute__(name)
            spec.loader.exec_module(self)
        return getattr(self, name)


def _read_late() -> None:
    for name in LATE:
        spec = importlib.util.find_spec(name) if name not in sys.modules else None
        if spec:
            module = _Late(name)
            module.__spec__, module.__path__ = spec, spec.submodule_search_locations or []
            module.__dict__["_is_late"] = True
            sys.modules[name] = module


_read_late()
# pydantic would search all installed distributions for plugins, which takes as long as one of these libraries.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
