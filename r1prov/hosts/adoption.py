"""Takes host keys over from the operator's known_hosts files, for an inventory that nobody makes a first contact for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1prov.hosts import known_hosts
from r1prov.hosts.target import describe

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from r1prov.site import Host


def adopt(hosts: Iterable[Host], own_file: Path) -> list[str]:
    """Copy the keys of hosts that the site's own file does not know from the files that ssh reads. Contacts nobody.

    Returns:
        the names of the hosts that no file knows.

    Raises:
        UnreachableError: this machine has no ssh client, or its configuration is wrong.
    """
    unknown = []
    for host in hosts:
        if host.local:
            continue
        target = describe(host.address, host.user, host.port, None, host.identity_file)
        if known_hosts.lookup([own_file], target.key_name):
            continue
        listed = known_hosts.lookup(target.known_hosts, target.key_name)
        revoked = {key.key for key in listed if key.revoked}
        keys = dict.fromkeys((key.type, key.key) for key in listed if key.key not in revoked)
        for key_type, key in keys:
            known_hosts.remember(own_file, target.key_name, key_type, key)
        if not keys:
            unknown.append(host.name)
    return unknown
