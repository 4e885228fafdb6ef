"""A certificate for a door, by an authority of one's own that nobody else trusts."""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from helpers import files

PEM = serialization.Encoding.PEM


def make(folder: Path, host: str, days: float = 90) -> None:
    """Make a certificate, and the authority that signs it where there is none yet.

    Args:
        folder: gets ``ca.pem`` (what clients trust), ``ca-key.pem``, ``fullchain.pem`` and
            ``privkey.pem`` (what nginx shows). Keys are for their owner alone.
        host: name or IP address for which it holds.
        days: for how long.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (folder / "ca.pem").exists():
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("rehearsal's own authority")
        usage = x509.KeyUsage(*(n in (5, 6) for n in range(9)))  # signs certificates and lists
        made = _builder(name, name, key, 3650).add_extension(x509.BasicConstraints(True, 0), True)
        _save(folder / "ca-key.pem", key)
        authority = made.add_extension(usage, True).sign(key, hashes.SHA256())
        files.replace(folder / "ca.pem", authority.public_bytes(PEM))
    signer = serialization.load_pem_private_key((folder / "ca-key.pem").read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)  # noqa: S101  as made above
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        alternative = x509.DNSName(host)
    certificate = (
        _builder(_name(host), authority.subject, key, days)
        .add_extension(x509.SubjectAlternativeName([alternative]), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False
        )
        .sign(signer, hashes.SHA256())
    )
    _save(folder / "privkey.pem", key)
    files.replace(folder / "fullchain.pem", certificate.public_bytes(PEM))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )


def _save(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    plain = serialization.NoEncryption()
    files.replace(path, key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, plain))
