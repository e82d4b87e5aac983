"""What the collection judges, for those who run plain `ansible-playbook`, r1prov judges by the same code before it meets a host."""

from __future__ import annotations

import runpy
from typing import TYPE_CHECKING, Any

from r1prov.common import paths

if TYPE_CHECKING:
    from datetime import datetime


def certificate_fault(chain: str, key: str, name: str, now: datetime) -> tuple[str, str] | None:
    """What is wrong with the certificate of a server called `name`, and what to do next; None where nothing is. All in PEM."""
    found: tuple[str, str] | None = _module("certificate")["fault"](chain, key, name, now)
    return found


def password_weakness(password: str, email: str) -> str:
    """Why the password of `email` is too easy to guess; empty where it is not."""
    return str(_module("password")["password_weakness"](password, email))


def _module(name: str) -> dict[str, Any]:
    """What a module_util of the collection defines. By its path: r1prov's own Python does not know Ansible's names."""
    return runpy.run_path(str(paths.collection() / "plugins" / "module_utils" / f"{name}.py"))
