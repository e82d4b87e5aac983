"""Judges whether a TLS certificate can serve a name, from texts and time alone. It runs on the controller, which has `cryptography`."""

from __future__ import annotations

import ipaddress
import itertools
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

if TYPE_CHECKING:
    from collections.abc import Iterator


def fault(chain: str, key: str, name: str, now: datetime) -> tuple[str, str] | None:
    """What is wrong, and what to do next; None where nothing is wrong.

    Args:
        chain: PEM, the server's certificate first, then those that issued it.
        key: PEM, without a passphrase.
        name: the host name or address that people will open.
        now: with its time zone.
    """
    return next(_faults(chain, key, name, now), None)


def _faults(chain: str, key: str, name: str, now: datetime) -> Iterator[tuple[str, str]]:
    try:
        certificates = x509.load_pem_x509_certificates(chain.encode())
    except ValueError:
        yield "the chain holds no PEM certificates", "give the server's certificate, then those that issued it"
        return
    try:
        secret = load_pem_private_key(key.encode(), None)
    except (TypeError, ValueError):
        yield (
            "the key is no PEM private key, or has a passphrase",
            "`openssl pkey -in KEY -out NEW` removes the passphrase",
        )
        return
    leaf = certificates[0]
    spki = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if leaf.public_key().public_bytes(*spki) != secret.public_key().public_bytes(*spki):
        yield (
            "the key does not belong to the chain's first certificate",
            "give the key that it was requested with, and the server's certificate first",
        )
    for certificate in certificates:
        who = certificate.subject.rfc4514_string() or "the certificate"
        starts, ends = validity(certificate)
        if now >= ends:
            yield f"{who} in the chain expired on {ends:%Y-%m-%d %H:%M} UTC", "get a new one"
        if now < starts:
            yield (
                f"{who} in the chain is valid from {starts:%Y-%m-%d %H:%M} UTC only",
                "set this machine's clock, or wait",
            )
        public = certificate.public_key()
        if isinstance(public, RSAPublicKey) and public.key_size < 2048:
            yield f"{who} in the chain has an RSA key of fewer than 2048 bits", "get one with a longer key"
    for child, parent in itertools.pairwise(certificates):
        try:
            child.verify_directly_issued_by(parent)
        except Exception:  # a wrong name, a wrong type and a wrong signature mean the same
            yield (
                f"in the chain, {parent.subject.rfc4514_string()} did not issue {child.subject.rfc4514_string()} before it",
                "order it: the server's certificate first, each followed by its issuer",
            )
    names = covered(leaf)
    if not any(covers(pattern, name) for pattern in names):
        yield (
            f"the certificate is for {', '.join(names) or 'no name at all'}, not for {name or 'the empty server name'}",
            "set the gateway's server name to what it is for, or get one for that name",
        )
    for issuer in certificates[1:]:
        refused = [each for each in names if not is_permitted(issuer, each)]
        if refused:
            yield (
                f"the name constraints of {issuer.subject.rfc4514_string()} in the chain do not permit {', '.join(refused)}",
                "get a certificate from another issuer, for browsers refuse this one",
            )


def validity(certificate: x509.Certificate) -> tuple[datetime, datetime]:
    """The first and the last moment at which a certificate is valid, in UTC. `cryptography` before 42 tells them without a time zone."""
    if hasattr(certificate, "not_valid_after_utc"):
        return certificate.not_valid_before_utc, certificate.not_valid_after_utc
    starts, ends = certificate.not_valid_before, certificate.not_valid_after
    return starts.replace(tzinfo=timezone.utc), ends.replace(tzinfo=timezone.utc)


def covered(certificate: x509.Certificate) -> list[str]:
    """The names and addresses that a certificate is for. Browsers look at these alone, not at the common name."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName) + [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]


def covers(pattern: str, name: str) -> bool:
    """Whether a name in a certificate stands for `name`. A star stands for the whole first label."""
    try:
        return str(ipaddress.ip_address(name)) == pattern
    except ValueError:
        pass
    pattern, name = pattern.lower().rstrip("."), name.lower().rstrip(".")
    if pattern.startswith("*."):
        return bool(name.partition(".")[0]) and name.partition(".")[2] == pattern[2:]
    return pattern == name


def is_permitted(authority: x509.Certificate, name: str) -> bool:
    """Whether the name constraints of an authority let it certify a name or an address.

    Those of a kind that the constraints do not mention are permitted.
    """
    try:
        constraints = authority.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return True
    permitted = [_lies_in(tree, name) for tree in constraints.permitted_subtrees or ()]
    excluded = [_lies_in(tree, name) for tree in constraints.excluded_subtrees or ()]
    # None stands for a tree of another kind of names.
    return True not in excluded and (True in permitted or False not in permitted)


def _lies_in(tree: x509.GeneralName, name: str) -> bool | None:
    """Whether a tree of names or addresses holds `name`; None where it is about names of another kind."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        if not isinstance(tree, x509.DNSName):
            return None
        base = tree.value.lower().strip(".")
        return not base or f".{name.lower()}".rstrip(".").endswith(f".{base}")
    if not isinstance(tree, x509.IPAddress):
        return None
    return address in ipaddress.ip_network(str(tree.value))
