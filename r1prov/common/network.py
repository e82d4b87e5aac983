"""The controller's way to web servers: proxies, certificate authorities, and why a server could not be reached."""

from __future__ import annotations

import ipaddress
import re
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@dataclass(frozen=True)
class Network:
    """The way to web servers.

    Attributes:
        proxies: the proxy for each scheme (`http`, `https`). Where there is none at all, the environment's proxies are used.
        none_for: names and addresses that are reached without a proxy, as `no_proxy` lists them.
        authorities: files of certificates to trust beside the system's.
    """

    proxies: Mapping[str, str] = field(default_factory=dict)
    none_for: str = ""
    authorities: Sequence[str] = ()

    def client(self, timeout_s: float) -> httpx.Client:
        """A client that follows redirects. It shows a token of one server to no other.

        Args:
            timeout_s: how long a connection, and each next part of an answer, may take.
        """
        trust = ssl.create_default_context()
        for file in self.authorities:
            trust.load_verify_locations(file)
        mounts = {f"{scheme}://": httpx.HTTPTransport(verify=trust, proxy=url) for scheme, url in self.proxies.items()}
        direct = dict.fromkeys(_patterns(self.none_for)) if self.proxies else {}
        return httpx.Client(
            verify=trust,
            mounts={**mounts, **direct},
            trust_env=not self.proxies,
            timeout=timeout_s,
            follow_redirects=True,
            headers={"User-Agent": "r1prov"},
        )

    def environment(self) -> dict[str, str]:
        """The variables that give the same proxies to a program; empty where the environment's own hold."""
        if not self.proxies:
            return {}
        found = {f"{scheme}_proxy": self.proxies.get(scheme, "") for scheme in ("http", "https")}
        found["no_proxy"] = self.none_for
        return found | {name.upper(): value for name, value in found.items()}


def reason(error: httpx.HTTPError | httpx.InvalidURL) -> str:
    """Why there is no answer, or none that helps, in a few words."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"it answers {error.response.status_code} {error.response.reason_phrase}"
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__


def _patterns(none_for: str) -> Iterator[str]:
    """The addresses that `none_for` lists, in the form in which httpx wants them. A name stands for those below it too."""
    for entry in filter(None, (part.strip().lstrip(".") for part in none_for.split(","))):
        try:
            yield f"all://[{ipaddress.IPv6Address(entry.strip('[]'))}]"
        except ValueError:
            yield from ("http://", "https://") if entry == "*" else (f"all://*{entry}",)
