"""Judges certificates, passwords and the files of the operator before any host is met.

The collection judges certificates and passwords too, for those who run plain `ansible-playbook`. Both run the same code: that of the
collection.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1prov.common import paths
from r1prov.common.errors import Problem
from r1prov.common.files import looseness
from r1prov.site.keys import Certificate

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography import x509

    from r1prov.site.keys import SiteFile


def loose_files(site_path: Path | None, file: SiteFile) -> list[Problem]:
    """The files of the operator that other users of this machine may use as they should not. They are not ours to change.

    Args:
        site_path: the site file; None where there is none.
        file: what it says, with full paths.
    """
    tls = file.gateway.tls if file.gateway else None
    own = tls if isinstance(tls, Certificate) else None
    secret = [source.token_file for source in file.sources.weights if source.type == "hub" and source.token_file]
    secret += [host.identity_file for host in file.hosts if host.identity_file]
    secret += [own.key] if own else []
    trusted = [str(site_path)] if site_path else []
    profiles = {file.profile, *(group.profile or "" for group in file.groups.values())}
    trusted += sorted(each for each in profiles if each.endswith((".yml", ".yaml")))
    trusted += [*file.sources.ca_certificates, *([own.chain] if own else [])]
    return [
        *_loose(
            secret, "chmod 600 {}; and where others had the time to read it, get another in its place", secret=True
        ),
        *_loose(trusted, "chmod o-w {}; and see that it says what you wrote", secret=False),
    ]


def _loose(names: list[str], remedy: str, *, secret: bool) -> list[Problem]:
    found = {name: looseness(Path(name), secret=secret) for name in names}
    return [Problem(name, what, remedy.format(name)) for name, what in found.items() if what]


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
