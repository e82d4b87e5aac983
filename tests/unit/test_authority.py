"""Tests that a site's authorities certify what they should and nothing else, and that nobody's trust ends without a word.

What an authority may certify is asked of real TLS.
"""

from __future__ import annotations

import contextlib
import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from r1prov.common.errors import SiteError
from r1prov.site import authority

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
NAME = "r1.example.com"


def names(made: list[Path]) -> list[str]:
    return [path.name for path in made]


def certificate(folder: Path, name: str = authority.SERVER) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / name).read_bytes())


def contents(folder: Path, *files: str) -> list[bytes]:
    return [(folder / file).read_bytes() for file in files]


def alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def issue(folder: Path, signer: str, *alternatives: str) -> tuple[Path, Path]:
    """Does by hand what one can do who holds the key of an authority: certifies any names. Returns certificate and key."""
    issuer = certificate(folder, f"{signer}.crt")
    signing = load_pem_private_key((folder / f"{signer}.key").read_bytes(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.SubjectAlternativeName([alternative(name) for name in alternatives]), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
        .sign(signing, hashes.SHA256())
    )
    files = folder / "issued.crt", folder / "issued.key"
    files[0].write_bytes(made.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


def is_trusted(trust: Path, server_files: tuple[Path, Path], name: str) -> bool:
    """Whether a client that trusts an authority talks TLS to a server that has these files, under that name."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(*server_files)
    client = ssl.create_default_context(cafile=trust)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    one, two, three, four = (ssl.MemoryBIO() for _ in range(4))
    ends = [
        client.wrap_bio(one, two, server_hostname=name),
        server.wrap_bio(three, four, server_side=True),
    ]
    try:
        for _ in range(3):
            for end in ends:
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
                three.write(two.read())
                one.write(four.read())
    except ssl.SSLCertVerificationError:
        return False
    assert ends[0].version() == "TLSv1.3"
    return True


def unconstrained(folder: Path) -> None:
    """An authority as earlier versions of r1prov made it: for ten years, for any name."""
    folder.mkdir(exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "r1prov, made 2026-01-01")])
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    usage |= dict.fromkeys(("encipher_only", "decipher_only", "digital_signature"), False)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 100 * DAY)
        .not_valid_after(NOW + 3552 * DAY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "authority.crt").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / "authority.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def test_it_is_made_once_and_its_keys_are_private(tmp_path: Path) -> None:
    made = authority.see_to(tmp_path / "authority", NAME, NOW)
    assert names(made) == ["authority.key", "authority.crt", "server.key", "server.crt"]
    assert [path.stat().st_mode & 0o777 for path in made if path.suffix == ".key"] == [0o600, 0o600]
    assert authority.see_to(tmp_path / "authority", NAME, NOW) == []
    assert list(authority.news(tmp_path / "authority", NOW)) == []


@pytest.mark.parametrize("name", [NAME, "192.0.2.7", "2001:db8::7"])
def test_a_client_that_trusts_the_authority_trusts_the_gateway(tmp_path: Path, name: str) -> None:
    authority.see_to(tmp_path, name, NOW)
    assert is_trusted(tmp_path / "authority.crt", (tmp_path / "server.crt", tmp_path / "server.key"), name)


@pytest.mark.parametrize(
    ("gateway", "others"),
    [
        (NAME, ["example.com", "bank.example", "192.0.2.7", "2001:db8::7"]),
        ("192.0.2.7", ["192.0.2.8", "2001:db8::7", NAME]),
        ("2001:db8::7", ["2001:db8::8", "192.0.2.7", NAME]),
    ],
)
def test_who_holds_its_key_can_certify_nothing_but_the_gateway(tmp_path: Path, gateway: str, others: list) -> None:
    authority.see_to(tmp_path, gateway, NOW)
    assert is_trusted(tmp_path / "authority.crt", issue(tmp_path, "authority", gateway), gateway)
    for other in others:
        assert not is_trusted(tmp_path / "authority.crt", issue(tmp_path, "authority", other), other)
        assert not is_trusted(tmp_path / "authority.crt", issue(tmp_path, "authority", other, gateway), gateway)


def test_it_can_be_told_from_authorities_for_other_purposes(tmp_path: Path) -> None:
    authority.see_to(tmp_path, NAME, NOW)
    found = certificate(tmp_path, "authority.crt")
    assert found.not_valid_after_utc - found.not_valid_before_utc == 1826 * DAY
    assert list(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        x509.ExtendedKeyUsageOID.SERVER_AUTH
    ]


@pytest.mark.parametrize(
    ("later", "made"), [(334 * DAY, []), (336 * DAY, ["server.key", "server.crt"])], ids=["in time", "near its end"]
)
def test_the_servers_certificate_is_renewed_in_time(tmp_path: Path, later: timedelta, made: list) -> None:
    authority.see_to(tmp_path, NAME, NOW)
    assert names(authority.see_to(tmp_path, NAME, NOW + later)) == made


def test_it_lasts_no_longer_than_browsers_allow(tmp_path: Path) -> None:
    authority.see_to(tmp_path, NAME, NOW)
    found = certificate(tmp_path)
    assert found.not_valid_after_utc - found.not_valid_before_utc == 365 * DAY


def test_its_end_is_announced_a_year_ahead_and_its_successor_is_there(tmp_path: Path) -> None:
    authority.see_to(tmp_path, NAME, NOW)
    before = contents(tmp_path, "authority.crt", "authority.key")
    assert authority.see_to(tmp_path, NAME, NOW + 1400 * DAY)
    assert list(authority.news(tmp_path, NOW + 1400 * DAY)) == []
    (word,) = authority.news(tmp_path, NOW + 1462 * DAY)
    assert "`r1prov up` makes its successor" in word
    assert names(authority.see_to(tmp_path, NAME, NOW + 1462 * DAY)) == ["next.key", "next.crt"]
    (word,) = authority.news(tmp_path, NOW + 1462 * DAY)
    ends = certificate(tmp_path, "authority.crt").not_valid_after_utc
    assert f"ends on {ends:%Y-%m-%d}" in word
    assert f"next.crt takes its place on {ends - 30 * DAY:%Y-%m-%d}" in word
    assert contents(tmp_path, "authority.crt", "authority.key") == before

    successor = contents(tmp_path, "next.crt", "next.key")
    authority.see_to(tmp_path, NAME, NOW + 1790 * DAY)
    assert contents(tmp_path, "authority.crt", "authority.key") == before
    assert certificate(tmp_path).not_valid_after_utc == ends
    assert names(authority.see_to(tmp_path, NAME, NOW + 1797 * DAY)) == ["authority.crt", "server.key", "server.crt"]
    assert contents(tmp_path, "authority.crt", "authority.key") == successor
    assert not list(tmp_path.glob("next.*"))
    assert list(authority.news(tmp_path, NOW + 1797 * DAY)) == []


def test_an_authority_for_any_name_serves_on_until_people_had_a_year_for_its_successor(tmp_path: Path) -> None:
    unconstrained(tmp_path)
    before = contents(tmp_path, "authority.crt", "authority.key")
    made = authority.see_to(tmp_path, NAME, NOW)
    assert names(made) == ["next.key", "next.crt", "server.key", "server.crt"]
    assert contents(tmp_path, "authority.crt", "authority.key") == before
    assert is_trusted(tmp_path / "authority.crt", (tmp_path / "server.crt", tmp_path / "server.key"), NAME)
    (word,) = authority.news(tmp_path, NOW)
    assert "can certify any name" in word
    assert f"next.crt takes its place on {NOW + 365 * DAY - authority.SKEW:%Y-%m-%d}" in word
    assert authority.see_to(tmp_path, NAME, NOW + 300 * DAY) == []
    successor = contents(tmp_path, "next.crt", "next.key")
    assert names(authority.see_to(tmp_path, NAME, NOW + 366 * DAY)) == ["authority.crt", "server.key", "server.crt"]
    assert contents(tmp_path, "authority.crt", "authority.key") == successor


def test_who_moves_the_old_authority_away_gets_its_successor_at_once(tmp_path: Path) -> None:
    unconstrained(tmp_path)
    authority.see_to(tmp_path, NAME, NOW)
    successor = contents(tmp_path, "next.crt", "next.key")
    for file in ("authority.crt", "authority.key"):
        (tmp_path / file).unlink()
    authority.see_to(tmp_path, NAME, NOW)
    assert contents(tmp_path, "authority.crt", "authority.key") == successor
    assert is_trusted(tmp_path / "authority.crt", (tmp_path / "server.crt", tmp_path / "server.key"), NAME)


def test_a_change_of_authorities_that_was_cut_off_is_made_good(tmp_path: Path) -> None:
    unconstrained(tmp_path)
    authority.see_to(tmp_path, NAME, NOW)
    successor = contents(tmp_path, "next.crt", "next.key")
    (tmp_path / "authority.key").write_bytes(successor[1])
    authority.see_to(tmp_path, NAME, NOW + 366 * DAY)
    assert contents(tmp_path, "authority.crt", "authority.key") == successor


def test_another_name_never_replaces_what_people_trust(tmp_path: Path) -> None:
    authority.see_to(tmp_path, NAME, NOW)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for attempt in (authority.see_to, authority.judge):
        with pytest.raises(SiteError, match=r"it cannot certify other\.example\.com"):
            attempt(tmp_path, "other.example.com", NOW)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    for file in ("authority.crt", "authority.key"):
        (tmp_path / file).unlink()
    assert len(authority.see_to(tmp_path, "other.example.com", NOW)) == 4


def test_its_key_may_lie_elsewhere_until_it_is_needed(tmp_path: Path) -> None:
    authority.see_to(tmp_path, NAME, NOW)
    key = tmp_path / "authority.key"
    kept = key.rename(tmp_path / "elsewhere")
    before = contents(tmp_path, "authority.crt")
    assert authority.see_to(tmp_path, NAME, NOW + 300 * DAY) == []
    for attempt in (authority.see_to, authority.judge):
        with pytest.raises(SiteError, match=f"authority.key: the key of authority.crt is needed to certify {NAME}"):
            attempt(tmp_path, NAME, NOW + 340 * DAY)
    assert contents(tmp_path, "authority.crt") == before
    kept.rename(key)
    assert names(authority.see_to(tmp_path, NAME, NOW + 340 * DAY)) == ["server.key", "server.crt"]


def test_what_is_no_certificate_is_said_plainly(tmp_path: Path) -> None:
    authority.see_to(tmp_path, NAME, NOW)
    (tmp_path / "authority.crt").write_text("x")
    with pytest.raises(SiteError, match="is no certificate"):
        authority.see_to(tmp_path, NAME, NOW)


def test_machines_have_an_authority_of_their_own_that_certifies_no_name_of_the_world(tmp_path: Path) -> None:
    folder = tmp_path / "authority"
    made = authority.see_to_machines(folder, NOW)
    assert names(made) == ["machines.key", "machines.crt"]
    assert [path.stat().st_mode & 0o777 for path in made] == [0o600, 0o644]
    assert authority.see_to_machines(folder, NOW) == []
    trust = folder / "machines.crt"
    assert is_trusted(trust, issue(folder, "machines", "gpu1.r1prov.internal"), "gpu1.r1prov.internal")
    for other in (NAME, "192.0.2.7", "2001:db8::7"):
        assert not is_trusted(trust, issue(folder, "machines", other), other)
    authority.see_to(folder, NAME, NOW)
    assert not is_trusted(folder / "authority.crt", issue(folder, "machines", NAME), NAME)
    assert len(authority.see_to_machines(folder, NOW + 1500 * DAY)) == 2
