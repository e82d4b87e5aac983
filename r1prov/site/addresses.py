"""Addresses of services, as the host that runs them sees them."""

from __future__ import annotations

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def reached_at(listens_on: str) -> str:
    """The address at which its host reaches a service. A service that listens on every address is reached on loopback."""
    return _EVERYWHERE.get(listens_on, listens_on)


def is_on_loopback(listens_on: str) -> bool:
    """Whether a service can be reached on loopback."""
    address = reached_at(listens_on)
    return address.startswith("127.") or address in {"::1", "localhost"}


def url(address: str, port: int, scheme: str = "http") -> str:
    """The URL of a service at an address and a port; an IPv6 address is put in brackets."""
    return f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"
