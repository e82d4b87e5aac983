"""Jinja filter r1.prov.certificate_fault: what is wrong with a certificate, said on the controller before a host is changed."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from ansible_collections.r1.prov.plugins.module_utils.certificate import fault


def certificate_fault(chain: str, key: str, name: str) -> str:
    """What is wrong and what to do next; empty where nothing is.

    Args:
        chain: PEM, the server's certificate first.
        key: PEM, without a passphrase.
        name: the host name or address that people will open.
    """
    found = fault(chain, key, name, datetime.now(timezone.utc))
    return f"{found[0]}. Remedy: {found[1]}." if found else ""


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """The filters by name."""
        return {"certificate_fault": certificate_fault}
