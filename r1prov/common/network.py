"""The controller's way to web servers: proxies, certificate authorities, and why a server could not be reached."""

from __future__ import annotations

import ipaddress
import re
import ssl
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx

from r1prov.common.errors import Problem, SiteError

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

        Raises:
            SiteError: a proxy or a file of certificates cannot be used.
        """
        trust = self._trust()
        proxies = self.proxies or urllib.request.getproxies()
        none_for = self.none_for if self.proxies else proxies.get("no", "")
        mounts: dict[str, httpx.BaseTransport | None] = {}
        for scheme in ("http", "https"):
            url = proxies.get(scheme, "")
            try:
                if url:
                    proxy = url if "://" in url else f"http://{url}"
                    mounts[f"{scheme}://"] = httpx.HTTPTransport(verify=trust, proxy=proxy)
            except (ValueError, ImportError, httpx.InvalidURL) as error:
                remedy = f"correct sources.proxy.{scheme} in the site file, or the variable {scheme}_proxy"
                raise SiteError(Problem(f"the proxy for {scheme}", f"cannot be used: {error}", remedy)) from None
        mounts |= dict.fromkeys(_patterns(none_for))
        return httpx.Client(
            verify=trust,
            mounts=mounts,
            trust_env=False,  # what the environment says is in `mounts`
            timeout=timeout_s,
            follow_redirects=True,
            headers={"User-Agent": "r1prov"},
        )

    def _trust(self) -> ssl.SSLContext:
        trust = ssl.create_default_context()
        for file in self.authorities:
            try:
                trust.load_verify_locations(file)
            except OSError as error:  # SSLError is one
                what = f"no certificates can be read from it: {error.strerror or error}"
                raise SiteError(Problem(file, what, "name files in PEM form in sources.ca_certificates")) from None
        return trust

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


def without_login(text: str) -> str:
    """A text whose addresses have lost `user:password@`. The login ends at the last @ before the path, whatever it holds."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def _patterns(none_for: str) -> Iterator[str]:
    """The addresses that `none_for` lists, in the form in which httpx wants them. A name stands for those below it too."""
    for entry in filter(None, (part.strip().lstrip(".") for part in none_for.split(","))):
        try:
            yield f"all://[{ipaddress.IPv6Address(entry.strip('[]'))}]"
        except ValueError:
            if entry == "*":
                yield from ("http://", "https://")
            elif "/" not in entry:  # neither httpx nor Python's own library knows networks
                yield f"all://*{entry}"
