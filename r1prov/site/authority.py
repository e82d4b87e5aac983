"""Makes a certificate authority of the site's own, and from it the certificate of the gateway.

It is for a gateway whose name no public authority can certify. The authority is made once, and people tell their machines to trust it. The
server's certificate is renewed from it before it ends.
"""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from r1prov.common.files import write_whole
from r1prov.site.judges import certificate_fault

if TYPE_CHECKING:
    from pathlib import Path

AUTHORITY, AUTHORITY_KEY, SERVER, SERVER_KEY = "authority.crt", "authority.key", "server.crt", "server.key"
AUTHORITY_LASTS = timedelta(days=3652)
SERVER_LASTS = timedelta(days=365)
"""Mozilla recommends no longer life, and browsers refuse certificates that last more than 398 days."""
RENEWED_BEFORE = timedelta(days=30)
SKEW = timedelta(hours=1)
"""Certificates begin this much before now, for the clocks of other machines may be behind."""


def see_to(folder: Path, name: str, now: datetime) -> list[Path]:
    """See that `folder` has an authority, and a server's certificate for `name` from it that need not be renewed yet.

    Args:
        folder: made if it is missing. It holds `authority.crt`, `server.crt`, and a `.key` beside each.
        name: the host name or address that people will open.
        now: with its time zone.

    Returns:
        the files that were made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = []
    if not _authority_lasts(folder, now):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"r1prov, made {now:%Y-%m-%d}")])
        certificate = _authority(subject, key, now)
        made += [_keep(folder / AUTHORITY_KEY, key), _keep(folder / AUTHORITY, certificate)]
    if not _lasts(folder, name, now):
        issuer = x509.load_pem_x509_certificate((folder / AUTHORITY).read_bytes())
        signer = load_pem_private_key((folder / AUTHORITY_KEY).read_bytes(), None)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _server(name, key, issuer, signer, now)  # type: ignore[arg-type] # every key here is elliptic
        made += [_keep(folder / SERVER_KEY, key), _keep(folder / SERVER, certificate)]
    return made


def _authority_lasts(folder: Path, now: datetime) -> bool:
    certificate = folder / AUTHORITY
    if not certificate.is_file() or not (folder / AUTHORITY_KEY).is_file():
        return False
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc > now + RENEWED_BEFORE


def _lasts(folder: Path, name: str, now: datetime) -> bool:
    """Whether the authority issued the server's certificate for that name, and it need not be renewed yet."""
    parts = [folder / file for file in (SERVER, AUTHORITY, SERVER_KEY)]
    if not all(part.is_file() for part in parts):
        return False
    server, authority, key = (part.read_text() for part in parts)
    return certificate_fault(server + authority, key, name, now + RENEWED_BEFORE) is None


def _authority(subject: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    return (
        _builder(subject, subject, key, now - SKEW, AUTHORITY_LASTS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _server(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate,
    signer: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> x509.Certificate:
    # Browsers look for the name in the alternative names only. A common name has room for 64 characters, which may be too few.
    lasts = min(SERVER_LASTS, issuer.not_valid_after_utc - (now - SKEW))
    return (
        _builder(x509.Name([]), issuer.subject, key, now - SKEW, lasts)
        .add_extension(x509.SubjectAlternativeName([_alternative(name)]), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, starts: datetime, lasts: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(starts)
        .not_valid_after(starts + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _keep(path: Path, thing: x509.Certificate | ec.EllipticCurvePrivateKey) -> Path:
    """Write a certificate or key as PEM. Only the owner may read a key; everybody may read a certificate."""
    if isinstance(thing, x509.Certificate):
        return write_whole(path, thing.public_bytes(Encoding.PEM).decode(), 0o644)
    return write_whole(path, thing.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())
