"""Tests of how the controller reaches web servers."""

from pathlib import Path

import httpx
import pytest

from r1prov.common.errors import SiteError
from r1prov.common.network import Network

PROXY = "http://proxy.example.com:3128"


@pytest.mark.parametrize(
    ("none_for", "url", "through"),
    [
        ("", "http://hub.example.com/", True),
        ("", "https://hub.example.com/", False),  # the site names a proxy only for http
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
        ("fd00::/8, 10.0.0.0/8, example.com", "http://hub.example.com/", False),
    ],
)
def test_the_proxy_of_an_address(none_for: str, url: str, through: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://of-the-environment.example.com")
    with Network({"http": PROXY}, none_for).client(1) as client:
        transport = client._transport_for_url(httpx.URL(url))
        assert (transport is not client._transport) is through


@pytest.mark.parametrize(
    ("none_for", "through"), [("", True), ("::1/128,10.0.0.0/8", True), ("localhost,.example.com", False)]
)
def test_the_environments_proxies_where_the_site_names_none(
    none_for: str, through: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "proxy.example.com:3128")  # curl accepts this form too
    monkeypatch.setenv("all_proxy", "socks://127.0.0.1:1080")  # desktops set it like this
    monkeypatch.setenv("no_proxy", none_for)
    with Network().client(1) as client:
        transport = client._transport_for_url(httpx.URL("http://hub.example.com/"))
        assert (transport is not client._transport) is through


def test_a_proxy_that_cannot_be_used_is_said() -> None:
    with pytest.raises(SiteError, match="Unknown scheme") as refused:
        Network({"https": "carrier-pigeon://u:pw@proxy.example.com"}).client(1)
    assert "sources.proxy.https" in refused.value.problems[0].remedy
    assert "pw" not in str(refused.value)


@pytest.mark.parametrize(("content", "why"), [(None, "No such file"), ("none", "no certificates can be read")])
def test_authorities_that_are_none_are_said(tmp_path: Path, content: str | None, why: str) -> None:
    file = tmp_path / "authority.crt"
    if content:
        file.write_text(content)
    with pytest.raises(SiteError, match=why):
        Network(authorities=(str(file),)).client(1)
