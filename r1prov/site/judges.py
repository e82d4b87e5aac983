"""Judges certificates and passwords before any host is met.

The collection judges them too, for those who run plain `ansible-playbook`. Both run the same code: that of the collection.
"""

from __future__ import annotations

import runpy
from typing import TYPE_CHECKING, Any

from r1prov.common import paths

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography import x509


def certificate_fault(chain: str, key: str, name: str, now: datetime) -> tuple[str, str] | None:
    """What is wrong with the certificate of a server called `name`, and what to do next; None where nothing is wrong.

    Args:
        chain: PEM, the server's certificate first, then those that issued it.
        key: PEM, without a passphrase.
        name: the host name or address that people will open.
        now: with its time zone.
    """
    found: tuple[str, str] | None = _module("certificate")["fault"](chain, key, name, now)
    return found


def is_permitted(authority: x509.Certificate, name: str) -> bool:
    """Whether the name constraints of an authority let it certify a host name or address."""
    return bool(_module("certificate")["is_permitted"](authority, name))


def password_weakness(password: str, email: str) -> str:
    """Why the password of `email` cannot be used or is too easy to guess, as the rest of a sentence; empty where it is fine."""
    return str(_module("password")["password_weakness"](password, email))


def _module(name: str) -> dict[str, Any]:
    """What a module_util of the collection defines. It is loaded by its path, for only Ansible can import `ansible_collections`."""
    return runpy.run_path(str(paths.collection() / "plugins" / "module_utils" / f"{name}.py"))
