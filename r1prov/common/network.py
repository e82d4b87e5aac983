"""The controller's way to web servers: proxies and certificate authorities."""

from __future__ import annotations

import ssl
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import http.client
    from collections.abc import Sequence


@dataclass(frozen=True)
class Network:
    """The way to web servers.

    Attributes:
        proxies: by scheme; None for those of the environment.
        none_for: names and addresses that are reached without a proxy, as `no_proxy` lists them.
        authorities: files of certificates to trust beside the system's.
    """

    proxies: dict[str, str] | None = None
    none_for: str = ""
    authorities: Sequence[str] = ()

    def open(self, request: urllib.request.Request, timeout_s: float) -> http.client.HTTPResponse:
        """The answer to a request. `timeout_s` is for it to begin or go on."""
        proxies = self.proxies
        if proxies and urllib.request.proxy_bypass_environment(request.host, {"no": self.none_for}):  # type: ignore[attr-defined]
            proxies = {}
        handlers = (urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=self._trust))
        answer: http.client.HTTPResponse = urllib.request.build_opener(*handlers).open(request, timeout=timeout_s)
        return answer

    @cached_property
    def _trust(self) -> ssl.SSLContext:
        trust = ssl.create_default_context()
        for file in self.authorities:
            trust.load_verify_locations(file)
        return trust
