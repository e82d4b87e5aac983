"""The controller's way to web servers."""

import httpx
import pytest

from r1prov.common.network import Network

PROXY = "http://proxy.example.com:3128"


@pytest.mark.parametrize(
    ("none_for", "url", "through"),
    [
        ("", "http://hub.example.com/", True),
        ("", "https://hub.example.com/", False),  # the site names a proxy for http alone
        ("hub.example.com", "http://hub.example.com/", False),
        ("example.com", "http://hub.example.com/", False),
        (".example.com", "http://hub.example.com/", False),
        ("example.com", "http://anexample.com/", True),
        ("a.example.com, b.example.com", "http://b.example.com/", False),
        ("10.0.0.7", "http://10.0.0.7:8080/", False),
        ("10.0.0.7", "http://10.0.0.70/", True),
        ("hub.example.com:8080", "http://hub.example.com:8080/", False),
        ("hub.example.com:8080", "http://hub.example.com/", True),
        ("::1", "http://[::1]:8080/", False),
        ("[::1]", "http://[::1]/", False),
        ("*", "http://hub.example.com/", False),
    ],
)
def test_the_proxy_of_an_address(none_for: str, url: str, through: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://of-the-environment.example.com")
    with Network({"http": PROXY}, none_for).client(1) as client:
        transport = client._transport_for_url(httpx.URL(url))
        assert (transport is not client._transport) is through


def test_the_environments_proxy_where_the_site_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with Network().client(1) as client, pytest.raises(httpx.ConnectError):
        client.get("http://hub.invalid/")
