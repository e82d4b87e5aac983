"""Tests that good certificates pass, and that the others are refused with the right reason."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta

import pytest
from ansible_collections.r1.prov.plugins.filter.certificate import certificate_fault
from ansible_collections.r1.prov.plugins.module_utils.certificate import covers, fault, is_permitted
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
CA_KEY, KEY, OTHER_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))


def certificate(
    common_name, key, alternative=(), starts=-DAY, ends=30 * DAY, issuer="authority", signer=CA_KEY, only=None
):
    def named(text):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .subject_name(named(common_name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + starts)
        .not_valid_after(NOW + ends)
    )
    if alternative:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternative), critical=False)
    if only:
        builder = builder.add_extension(only, critical=True)
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def pem(key, encryption=None):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()).decode()


NAMES = [x509.DNSName("r1.example.com"), x509.IPAddress(ipaddress.ip_address("192.0.2.7"))]
LEAF = certificate("r1", KEY, NAMES)
AUTHORITY = certificate("authority", CA_KEY)


@pytest.mark.parametrize("chain", [LEAF, LEAF + AUTHORITY])
@pytest.mark.parametrize("name", ["r1.example.com", "R1.Example.com.", "192.0.2.7"])
def test_a_good_one_passes(chain, name) -> None:
    assert fault(chain, pem(KEY), name, NOW) is None


@pytest.mark.parametrize(
    ("chain", "key", "name", "says"),
    [
        ("no", pem(KEY), "r1.example.com", "holds no PEM certificates"),
        (LEAF, "no", "r1.example.com", "is no PEM private key"),
        (LEAF, pem(KEY, BestAvailableEncryption(b"x")), "r1.example.com", "has a passphrase"),
        (LEAF, pem(OTHER_KEY), "r1.example.com", "does not belong"),
        (certificate("r1", KEY, NAMES, ends=timedelta()), pem(KEY), "r1.example.com", "expired on 2030-01-01 00:00"),
        (certificate("r1", KEY, NAMES, starts=DAY), pem(KEY), "r1.example.com", "valid from 2030-01-02"),
        (
            LEAF + certificate("authority", CA_KEY, ends=timedelta()),
            pem(KEY),
            "r1.example.com",
            "CN=authority in the chain expired",
        ),
        (LEAF + certificate("authority", OTHER_KEY), pem(KEY), "r1.example.com", "did not issue CN=r1"),
        (LEAF + certificate("stranger", CA_KEY), pem(KEY), "r1.example.com", "CN=stranger did not issue"),
        (LEAF, pem(KEY), "other.example.com", "is for r1.example.com, 192.0.2.7, not for other.example.com"),
        (LEAF, pem(KEY), "192.0.2.8", "not for 192.0.2.8"),
        (
            LEAF + certificate("authority", CA_KEY, only=x509.NameConstraints([x509.DNSName("example.org")], None)),
            pem(KEY),
            "r1.example.com",
            "the name constraints of CN=authority in the chain do not permit r1.example.com",
        ),
        (certificate("r1.example.com", KEY), pem(KEY), "r1.example.com", "no name at all"),
    ],
)
def test_what_cannot_serve_is_told_in_plain_words(chain, key, name, says) -> None:
    assert says in " ".join(fault(chain, key, name, NOW))


@pytest.mark.parametrize(
    ("pattern", "name", "does"),
    [
        ("*.example.com", "r1.example.com", True),
        ("*.example.com", "a.r1.example.com", False),
        ("*.example.com", "example.com", False),
        ("*.example.com", ".example.com", False),
        ("2001:db8::1", "2001:DB8:0::1", True),
    ],
)
def test_names_that_stand_for_others(pattern, name, does) -> None:
    assert covers(pattern, name) is does


def dns(name):
    return x509.DNSName(name)


def network(text):
    return x509.IPAddress(ipaddress.ip_network(text))


@pytest.mark.parametrize(
    ("permitted", "excluded", "name", "may"),
    [
        ([dns("example.com")], None, "example.com", True),
        ([dns("example.com")], None, "R1.Example.com.", True),
        ([dns("example.com")], None, "notexample.com", False),
        ([dns("example.com")], None, "192.0.2.7", True),
        ([dns("example.com")], [network("0.0.0.0/0"), network("::/0")], "192.0.2.7", False),
        ([dns("example.com")], [dns("r1.example.com")], "r1.example.com", False),
        ([network("192.0.2.7/32")], [dns("")], "192.0.2.7", True),
        ([network("192.0.2.7/32")], [dns("")], "192.0.2.8", False),
        ([network("192.0.2.7/32")], [dns("")], "2001:db8::7", False),
        ([network("192.0.2.7/32")], [dns("")], "r1.example.com", False),
    ],
)
def test_what_name_constraints_permit(permitted, excluded, name, may) -> None:
    text = certificate("authority", CA_KEY, only=x509.NameConstraints(permitted, excluded))
    assert is_permitted(x509.load_pem_x509_certificate(text.encode()), name) is may
    assert is_permitted(x509.load_pem_x509_certificate(AUTHORITY.encode()), name)


def test_the_filter_says_it_in_one_line() -> None:
    assert certificate_fault("no", "no", "r1") == (
        "the chain holds no PEM certificates. Remedy: give the server's certificate, then those that issued it."
    )
