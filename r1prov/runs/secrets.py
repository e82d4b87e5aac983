"""The secrets of a site: made here once, or taken over from hosts that have them already."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from r1prov.common.errors import UnreachableError
from r1prov.hosts import read_secret
from r1prov.site import authority, named_keys
from r1prov.site.state import SiteState, secrets_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from r1prov.hosts import HostConnection
    from r1prov.site import Site
    from r1prov.site.state import Secret


def provide(site: Site, connections: Sequence[HostConnection] = ()) -> list[Path]:
    """Make the secrets and authorities that the site lacks, and the certificates that these issue.

    One authority certifies the machines among themselves, and another one the gateway.

    Args:
        site: whose.
        connections: to hosts. A secret that another controller gave them is taken over instead of made.

    Returns:
        the files that were made.
    """
    state, gateway = SiteState.of(site.path), site.file.gateway
    missing = [secret for secret in secrets_of(site) if not state.secret(secret).is_file()]
    made = [state.keep_secret(secret, _on_a_host(secret, connections)) for secret in missing]
    if gateway and not state.keys.is_file():
        named_keys.keep(state, named_keys.on_host(next(_contents(named_keys.ON_HOST, connections), "")))
    made += authority.see_to_machines(state.authority, datetime.now(UTC))
    for host in site.hosts if site.file.one_service else ():
        made += authority.see_to_machine(state.authority, host.name, datetime.now(UTC))
    if gateway and gateway.tls.type == "local-authority":
        made += authority.see_to(state.authority, gateway.server_name, datetime.now(UTC))
    return made


def _on_a_host(secret: Secret, connections: Iterable[HostConnection]) -> str | None:
    """A secret that some host has; None where none has it."""
    return next(filter(None, map(secret.read_from, _contents(secret.on_host, connections))), None)


def _contents(path: str, connections: Iterable[HostConnection]) -> Iterator[str]:
    """A file of root as hosts have it, of those that have it. A host that goes away meanwhile is passed over."""
    for connection in connections:
        with contextlib.suppress(UnreachableError):
            if content := read_secret(connection, path):
                yield content
