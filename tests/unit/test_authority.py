"""Tests that a site's own authority is made once, is renewed in time, and is trusted by real TLS."""

from __future__ import annotations

import contextlib
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from r1prov.site import authority

NOW = datetime.now(UTC)
NAME = "r1.example.com"


def names(made: list[Path]) -> list[str]:
    return [path.name for path in made]


def certificate(folder: Path, name: str = authority.SERVER) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / name).read_bytes())


def test_it_is_made_once_and_its_keys_are_private(tmp_path: Path) -> None:
    made = authority.see_to(tmp_path / "authority", NAME, NOW)
    assert names(made) == ["authority.key", "authority.crt", "server.key", "server.crt"]
    assert [path.stat().st_mode & 0o777 for path in made if path.suffix == ".key"] == [0o600, 0o600]
    assert authority.see_to(tmp_path / "authority", NAME, NOW) == []


@pytest.mark.parametrize(
    ("later", "name", "made"),
    [
        (timedelta(days=334), NAME, []),
        (timedelta(days=336), NAME, ["server.key", "server.crt"]),
        (timedelta(), "192.0.2.7", ["server.key", "server.crt"]),
    ],
)
def test_the_servers_certificate_is_renewed_in_time(tmp_path: Path, later: timedelta, name: str, made: list) -> None:
    authority.see_to(tmp_path, NAME, NOW)
    assert names(authority.see_to(tmp_path, name, NOW + later)) == made


def test_another_authority_means_another_certificate(tmp_path: Path) -> None:
    authority.see_to(tmp_path, NAME, NOW)
    (tmp_path / authority.AUTHORITY_KEY).unlink()
    assert len(authority.see_to(tmp_path, NAME, NOW)) == 4


def test_it_lasts_no_longer_than_browsers_allow(tmp_path: Path) -> None:
    authority.see_to(tmp_path, NAME, NOW)
    found = certificate(tmp_path)
    assert found.not_valid_after_utc - found.not_valid_before_utc == timedelta(days=365)


def test_near_its_own_end_the_authority_promises_no_more_than_it_has(tmp_path: Path) -> None:
    authority.see_to(tmp_path, NAME, NOW)
    authority.see_to(tmp_path, NAME, NOW + timedelta(days=3600))
    assert certificate(tmp_path).not_valid_after_utc == certificate(tmp_path, authority.AUTHORITY).not_valid_after_utc
    assert len(authority.see_to(tmp_path, NAME, NOW + timedelta(days=3640))) == 4


@pytest.mark.parametrize("name", [NAME, "192.0.2.7"])
def test_a_client_that_trusts_the_authority_trusts_the_server(tmp_path: Path, name: str) -> None:
    authority.see_to(tmp_path, name, NOW)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(tmp_path / authority.SERVER, tmp_path / authority.SERVER_KEY)
    client = ssl.create_default_context(cafile=tmp_path / authority.AUTHORITY)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    one, two, three, four = (ssl.MemoryBIO() for _ in range(4))
    ends = [
        client.wrap_bio(one, two, server_hostname=name),
        server.wrap_bio(three, four, server_side=True),
    ]
    for _ in range(3):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
            three.write(two.read())
            one.write(four.read())
    assert ends[0].version() == "TLSv1.3"
