"""Makes the two certificate authorities of a site, and the certificate of the gateway.

One authority is for people: for a gateway whose name no public authority can certify. They tell their machines to trust it, and it can
certify nothing but that gateway. Its successor is made a year before it ends, so that people can trust both in time. What people trust
is never replaced by something else without a word.

The other is for the machines of the site among themselves. It belongs in nobody's trust store.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
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

from r1prov.common.errors import Problem, SiteError
from r1prov.common.files import write_whole
from r1prov.site.judges import certificate_fault, is_permitted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AUTHORITY, SERVER, SERVER_KEY = "authority.crt", "server.crt", "server.key"
AUTHORITY_LASTS = timedelta(days=1826)
ANNOUNCED_BEFORE = timedelta(days=365)
"""So long before the authority ends or is replaced, its successor is there, and people are told."""
SERVER_LASTS = timedelta(days=365)
"""Mozilla recommends no longer life, and browsers refuse certificates that last more than 398 days."""
RENEWED_BEFORE = timedelta(days=30)
SKEW = timedelta(hours=1)
"""Certificates begin this much before now, for the clocks of other machines may be behind."""
MACHINES = "r1prov.internal"
"""The domain of machines among themselves. No public name can be in it."""

_ALL_ADDRESSES = [x509.IPAddress(ipaddress.ip_network(network)) for network in ("0.0.0.0/0", "::/0")]
_ALL_NAMES = [x509.DNSName("")]


@dataclass(frozen=True)
class _Authority:
    """The certificate of an authority and its key, in two files. The key may be kept elsewhere until it is needed."""

    folder: Path
    name: str

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.crt"

    @property
    def key_file(self) -> Path:
        return self.folder / f"{self.name}.key"

    @property
    def certificate(self) -> x509.Certificate:
        try:
            return x509.load_pem_x509_certificate(self.file.read_bytes())
        except ValueError:
            raise SiteError(Problem(str(self.file), "is no certificate", "bring it back from a backup")) from None

    @property
    def key(self) -> ec.EllipticCurvePrivateKey | None:
        """The key; None where it is not here, or belongs to another certificate."""
        if not self.key_file.is_file():
            return None
        try:
            key = load_pem_private_key(self.key_file.read_bytes(), None)
        except (TypeError, ValueError):
            return None
        fits = isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == self.certificate.public_key()
        return key if fits else None  # type: ignore[return-value] # mypy does not see the test

    def lasts(self, until: datetime) -> bool:
        """Whether it is there, and still valid then."""
        return self.file.is_file() and self.certificate.not_valid_after_utc > until

    @property
    def is_constrained(self) -> bool:
        """Whether it can certify some names only. Authorities of earlier versions of r1prov could certify any."""
        return any(isinstance(each.value, x509.NameConstraints) for each in self.certificate.extensions)

    def make(
        self, subject: str, constraints: x509.NameConstraints, usages: list[x509.ObjectIdentifier], now: datetime
    ) -> list[Path]:
        """Make key and certificate. Returns their files."""
        key = ec.generate_private_key(ec.SECP256R1())
        named = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
        certificate = (
            _builder(named, named, key, now - SKEW, AUTHORITY_LASTS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(constraints, critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .sign(key, hashes.SHA256())
        )
        return [_keep(self.key_file, key), _keep(self.file, certificate)]


def see_to(folder: Path, name: str, now: datetime) -> list[Path]:
    """See that `folder` has an authority for the gateway `name`, its successor in time, and a server's certificate that lasts.

    Args:
        folder: made if it is missing. It holds `authority.crt`, `server.crt`, sometimes `next.crt`, and a `.key` beside each.
        name: the host name or address that people will open.
        now: with its time zone.

    Returns:
        the files that were made.

    Raises:
        SiteError: the authority cannot certify that name, or its key is needed and not there.
    """
    judge(folder, name, now)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    current, successor = _Authority(folder, "authority"), _Authority(folder, "next")
    made = []
    if _signer(folder, now) == successor:
        _take_place(successor, current)
        made.append(current.file)
    elif not current.lasts(now + RENEWED_BEFORE):
        made += _make_for_people(current, name, now)
    if _is_to_be_replaced(current, now) and not successor.lasts(now):
        made += _make_for_people(successor, name, now)
    if not _server_lasts(current, name, now):
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.SERVER_AUTH]
        # Browsers look for the name in the alternative names only. A common name has room for 64 characters, which may be too few.
        signer, nameless = _needed_key(current, name), x509.Name([])
        certificate = _leaf(name, key, current.certificate, signer, now, subject=nameless, usages=usages)
        made += [_keep(folder / SERVER_KEY, key), _keep(folder / SERVER, certificate)]
    return made


def judge(folder: Path, name: str, now: datetime) -> None:
    """See that the authority in `folder`, where there is one, can do what is needed for the gateway `name`.

    Raises:
        SiteError: it cannot certify that name, or its key is needed and not there.
    """
    signer, successor = _signer(folder, now), _Authority(folder, "next")
    lasting = [each for each in dict.fromkeys((signer, successor)) if each.lasts(now + RENEWED_BEFORE)]
    problems = [
        Problem(
            str(each.file),
            f"people trust this authority, and it cannot certify {name}",
            f"give the gateway its old name again; or move {each.file.name} and {each.key_file.name} away: then another authority is made, "
            "which people must trust",
        )
        for each in lasting
        if not is_permitted(each.certificate, name)
    ]
    if problems:
        raise SiteError(*problems)
    if signer in lasting and not _server_lasts(signer, name, now):
        _needed_key(signer, name)


def _needed_key(authority: _Authority, name: str) -> ec.EllipticCurvePrivateKey:
    """The key of an authority.

    Raises:
        SiteError: it is not here.
    """
    if key := authority.key:
        return key
    what = f"the key of {authority.file.name} is needed to certify {name}, and is not here"
    remedy = f"put it back for this run; or move {authority.file.name} away: then another authority is made, which people must trust"
    raise SiteError(Problem(str(authority.key_file), what, remedy))


def news(folder: Path, now: datetime) -> Iterator[str]:
    """Yield what people must be told about the authority that they trust: when it ends, and which one comes next."""
    current, successor = _Authority(folder, "authority"), _Authority(folder, "next")
    if not current.file.is_file() or not _is_to_be_replaced(current, now):
        return
    ends = current.certificate.not_valid_after_utc
    reason = f"ends on {ends:%Y-%m-%d}" if current.is_constrained else f"can certify any name until {ends:%Y-%m-%d}"
    if not successor.lasts(now):
        yield f"{current.file} {reason}. `r1prov up` makes its successor."
        return
    yield (
        f"{current.file} {reason}. {successor.file} takes its place on {_replaced_on(current, successor):%Y-%m-%d}: "
        "let all machines that trust the gateway trust it before that day."
    )


def see_to_machines(folder: Path, now: datetime) -> list[Path]:
    """See that `folder` has the authority for machines among themselves, as `machines.crt` and `machines.key`.

    Whoever trusts it is given it by r1prov, so that it can be replaced at any time.

    Returns:
        the files that were made.
    """
    machines = _Authority(folder, "machines")
    if machines.lasts(now + ANNOUNCED_BEFORE) and machines.key:
        return []
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    constraints = x509.NameConstraints([x509.DNSName(MACHINES)], _ALL_ADDRESSES)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return machines.make(f"r1prov machines, made {now:%Y-%m-%d}", constraints, usages, now)


def see_to_machine(folder: Path, name: str, now: datetime) -> list[Path]:
    """See that a machine has a certificate of the authority for machines that lasts, as server and as client.

    Args:
        folder: of the authority for machines, which is there. The files are `machines/NAME.crt` and `.key` below it.
        name: the machine's.
        now: with its time zone.

    Returns:
        the files that were made.
    """
    machines, own = _Authority(folder, "machines"), _Authority(folder / "machines", name)
    called = f"{name}.{MACHINES}"
    if own.file.is_file() and own.key_file.is_file():
        chain = own.file.read_text() + machines.file.read_text()
        if certificate_fault(chain, own.key_file.read_text(), called, now + RENEWED_BEFORE) is None:
            return []
    own.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, called)])
    signer = _needed_key(machines, called)
    certificate = _leaf(called, key, machines.certificate, signer, now, subject=subject, usages=usages)
    return [_keep(own.key_file, key), _keep(own.file, certificate)]


def _make_for_people(authority: _Authority, name: str, now: datetime) -> list[Path]:
    """Make an authority that can certify the gateway `name` and nothing else."""
    only = _alternative(name)
    # A kind of name that is not constrained could be certified at will, and GnuTLS takes IPv4 and IPv6 for two kinds.
    if isinstance(only, x509.IPAddress):
        network = ipaddress.ip_network(only.value)
        others = [each for each in _ALL_ADDRESSES if each.value.version != network.version]
        constraints = x509.NameConstraints([x509.IPAddress(network)], [*_ALL_NAMES, *others])
    else:
        constraints = x509.NameConstraints([only], _ALL_ADDRESSES)
    return authority.make(
        f"r1prov {name}, made {now:%Y-%m-%d}"[:64], constraints, [ExtendedKeyUsageOID.SERVER_AUTH], now
    )


def _signer(folder: Path, now: datetime) -> _Authority:
    """The authority that shall certify the gateway now: the successor, once its day has come or the current one is gone."""
    current, successor = _Authority(folder, "authority"), _Authority(folder, "next")
    if not successor.lasts(now + RENEWED_BEFORE):
        return current
    return successor if not current.file.is_file() or now >= _replaced_on(current, successor) else current


def _is_to_be_replaced(authority: _Authority, now: datetime) -> bool:
    """Whether people must be told that another authority will take the place of this one."""
    return not authority.is_constrained or not authority.lasts(now + ANNOUNCED_BEFORE)


def _replaced_on(current: _Authority, successor: _Authority) -> datetime:
    """The day on which the successor certifies the gateway: a year after it was made, or just before the current one ends."""
    ends = current.certificate.not_valid_after_utc - RENEWED_BEFORE
    return min(ends, successor.certificate.not_valid_before_utc + ANNOUNCED_BEFORE)


def _take_place(successor: _Authority, current: _Authority) -> None:
    """Let the successor be the current authority. The successor's own files go last, so that a run that dies is made good."""
    if successor.key_file.is_file():
        write_whole(current.key_file, successor.key_file.read_bytes())
    write_whole(current.file, successor.file.read_bytes(), 0o644)
    successor.file.unlink()
    successor.key_file.unlink(missing_ok=True)


def _server_lasts(authority: _Authority, name: str, now: datetime) -> bool:
    """Whether the authority issued the server's certificate for that name, and it need not be renewed yet."""
    parts = [authority.folder / SERVER, authority.file, authority.folder / SERVER_KEY]
    if not all(part.is_file() for part in parts):
        return False
    server, issuer, key = (part.read_text() for part in parts)
    return certificate_fault(server + issuer, key, name, now + RENEWED_BEFORE) is None


def _leaf(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate,
    signer: ec.EllipticCurvePrivateKey,
    now: datetime,
    *,
    subject: x509.Name,
    usages: list[x509.ObjectIdentifier],
) -> x509.Certificate:
    lasts = min(SERVER_LASTS, issuer.not_valid_after_utc - (now - SKEW))
    return (
        _builder(subject, issuer.subject, key, now - SKEW, lasts)
        .add_extension(x509.SubjectAlternativeName([_alternative(name)]), critical=not subject.rdns)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
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
