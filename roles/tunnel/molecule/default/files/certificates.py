"""Makes an authority for machines, certificates of gpu1 and gpu2, and those of a stranger: `certificates.py FOLDER`."""

import datetime
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

NOW = datetime.datetime.now(datetime.UTC)


def made(name, issuer=None, signer=None):
    """A key and its certificate: an authority's, where nobody issues it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer.subject if issuer else subject)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(NOW - datetime.timedelta(hours=1)).not_valid_after(
        NOW + datetime.timedelta(days=2)
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=not issuer, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return key, builder.sign(signer or key, hashes.SHA256())


def kept(folder, name, key, certificate):
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / f"{name}.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
for authority, machines in (("authority", ("gpu1", "gpu2")), ("other", ("stranger",))):
    signer, issuer = made(authority)
    kept(folder, authority, signer, issuer)
    for machine in machines:
        name = "gpu1" if machine == "stranger" else machine
        kept(folder, machine, *made(f"{name}.r1prov.internal", issuer, signer))
