"""Addresses of services, as the host that runs them sees them."""

from __future__ import annotations

import ipaddress

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def reached_at(listens_on: str) -> str:
    """The address at which its host reaches a service. A service that listens on every address is reached on loopback."""
    return _EVERYWHERE.get(listens_on, listens_on)


def is_an_address(text: str) -> str:
    """The text, if systemd can listen on it.

    Raises:
        ValueError: it is neither an IP address nor `localhost`.
    """
    try:
        if text != "localhost":
            ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(
            f"`{text}` is not an IP address: write 127.0.0.1, ::1, 0.0.0.0, or one that the server has"
        ) from None
    return text


def is_reached_by_others(text: str) -> str:
    """The text, if it is an IP address at which other hosts can reach one.

    Raises:
        ValueError: it is none, or one that means the host itself or all its addresses.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"`{text}` is not an IP address: write one that the server has in your own network") from None
    if address.is_loopback or address.is_unspecified:
        raise ValueError(f"other hosts cannot reach `{text}`: write an address that the server has in your own network")
    return text


def url(address: str, port: int, scheme: str = "http") -> str:
    """The URL of a service at an address and a port; an IPv6 address is put in brackets."""
    return f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"
