"""Keys and certificates: made where they are used, readable by their owner only, never overwritten.

A coordinator has an authority of its own (``ca.key``, ``ca.crt``) and a certificate that it signed, which lies in one
file with its key (``server.pem``), so that no crash can part them. A node trusts that authority alone and has a key
(``node.key``) whose public half (``node.pub``) the coordinator's operator lets in. People compare fingerprints over
another channel, such as the telephone.

Everything is ECDSA on NIST P-256, which is what Flower's node authentication takes; keys are in OpenSSH's format there.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
import stat
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from manyeyes.config import NODE_ID_PATTERN
from manyeyes.errors import ConfigError, ResourceError
from manyeyes.weights import write_atomically

__all__ = [
    "AUTHORITY",
    "NODE_KEY",
    "NODE_PUBLIC",
    "SERVER",
    "expiry_warning",
    "fingerprint",
    "make_authority",
    "make_node_key",
    "parse_public_key",
    "read_certificate",
    "read_node_key",
    "read_public_key",
    "read_server_key",
    "renew_server",
    "same_key",
]

AUTHORITY, AUTHORITY_KEY = "ca.crt", "ca.key"
SERVER = "server.pem"
NODE_PUBLIC, NODE_KEY = "node.pub", "node.key"

_AUTHORITY_DAYS = 3650
_SERVER_DAYS = 397
_WARN_DAYS = 30
# A certificate is valid from a little before it is made: clocks differ.
_CLOCKS = timedelta(hours=1)
_FINGERPRINT_BYTES = 20


def make_authority(folder: Path, names: Sequence[str], *, now: datetime | None = None) -> str:
    """Make a coordinator's authority and its first certificate.

    Args:
        folder: where they are kept.
        names: host names and IP addresses that nodes reach the coordinator by.
        now: for tests.

    Returns:
        The authority's fingerprint, which every node's operator compares.

    Raises:
        ConfigError: no names, or one that is neither a host name nor an address.
        ResourceError: there is an authority in the folder already, or it cannot be written.
    """
    now = now or datetime.now(UTC)
    alternative = _alternative_names(names)
    _refuse_to_overwrite(folder, (AUTHORITY_KEY, AUTHORITY, SERVER))
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"manyeyes authority of {names[0]}")])
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    certificate = (
        _certificate(subject, subject, key.public_key(), now, _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_private(folder / AUTHORITY_KEY, _pem(key))
    write_atomically(folder / AUTHORITY, certificate.public_bytes(serialization.Encoding.PEM))
    _issue_server(folder, key, certificate, alternative, names[0], now)
    return fingerprint(key.public_key())


def renew_server(folder: Path, names: Sequence[str], *, now: datetime | None = None) -> None:
    """Make a new certificate, and a new key, for a coordinator that has an authority; nodes need do nothing.

    Raises:
        ConfigError: no names, or one that is neither a host name nor an address.
        ResourceError: the authority's key cannot be read, is open to others, or the folder cannot be written.
    """
    alternative = _alternative_names(names)
    key = _read_private(folder / AUTHORITY_KEY)
    _issue_server(folder, key, read_certificate(folder / AUTHORITY), alternative, names[0], now or datetime.now(UTC))


def make_node_key(folder: Path, node_id: str) -> str:
    """Make a node's key.

    Args:
        folder: the node's state folder.
        node_id: written into the public key as its comment, for people.

    Returns:
        The key's fingerprint, to be read to the coordinator's operator.

    Raises:
        ConfigError: the name cannot be a node's.
        ResourceError: there is a key in the folder already, or it cannot be written.
    """
    if not re.fullmatch(NODE_ID_PATTERN, node_id):
        raise ConfigError(f"{node_id!r} cannot be a node's name", cure="Use letters, digits, '.', '-' and '_'.")
    _refuse_to_overwrite(folder, (NODE_KEY, NODE_PUBLIC))
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write_private(folder / NODE_KEY, private)
    write_atomically(folder / NODE_PUBLIC, public + f" {node_id}\n".encode())
    return fingerprint(key.public_key())


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """A public key as people compare it: 160 bits of its SHA-256, eight groups of four letters and digits.

    The alphabet is that of RFC 4648's base32, which has no 0, 1, 8 or 9 to be mistaken for letters.
    """
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = base64.b32encode(hashlib.sha256(der).digest()[:_FINGERPRINT_BYTES]).decode()
    return "-".join(text[i : i + 4] for i in range(0, len(text), 4))


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """A node's public key from its file.

    Raises:
        ConfigError: it is missing, no key, a private key, or not on P-256.
    """
    text = _read(path)
    if b"PRIVATE KEY" in text:
        raise ConfigError(
            "is a private key, which must not leave its node", file=path, cure=f"Send the file {NODE_PUBLIC} instead."
        )
    try:
        return parse_public_key(text.decode("ascii"))
    except ValueError as error:
        what = "not a key on NIST P-256" if "P-256" in str(error) else "not a public key"
        raise ConfigError(
            f"is {what}", file=path, cure=f"Name the file {NODE_PUBLIC} that `manyeyes node init` made."
        ) from error


def parse_public_key(text: str) -> ec.EllipticCurvePublicKey:
    """A node's public key in OpenSSH's format.

    Raises:
        ValueError: it is no key, or not on NIST P-256.
    """
    try:
        key = serialization.load_ssh_public_key(text.encode())
    except UnsupportedAlgorithm as error:
        raise ValueError("a key of an unknown kind") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("not a key on NIST P-256")
    return key


def read_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A node's private key from its file.

    Raises:
        ConfigError: it is missing, or not a node's key.
        ResourceError: it can be read by others than its owner.
    """
    content = _read_kept(path)
    try:
        key = serialization.load_ssh_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("is not a node's key", file=path, cure="Make one with `manyeyes node init`.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("is not an elliptic-curve key", file=path, cure="Make one with `manyeyes node init`.")
    return key


def read_server_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key of a coordinator's certificate, from its file.

    Raises:
        ConfigError: it is missing, or no key on an elliptic curve.
        ResourceError: it can be read by others than its owner.
    """
    return _read_private(path)


def same_key(one: ec.EllipticCurvePublicKey, other: ec.EllipticCurvePublicKey) -> bool:
    """Whether two public keys are one."""
    return one.public_numbers() == other.public_numbers()


def read_certificate(path: Path) -> x509.Certificate:
    """A certificate from its file.

    Raises:
        ConfigError: it is missing or no certificate.
    """
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise ConfigError("is not a certificate", file=path) from error


def expiry_warning(path: Path, *, now: datetime | None = None) -> str | None:
    """A sentence if a certificate has expired, is not valid yet, or expires within 30 days; else None.

    Raises:
        ConfigError: it is missing or no certificate.
    """
    now, certificate = now or datetime.now(UTC), read_certificate(path)
    if now < certificate.not_valid_before_utc:
        return f"{path} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC: is this clock right?"
    left = certificate.not_valid_after_utc - now
    if left < timedelta(0):
        return f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}. Renew it: manyeyes coordinator renew"
    if left < timedelta(days=_WARN_DAYS):
        return f"{path} expires in {left.days} days. Renew it: manyeyes coordinator renew"
    return None


def _issue_server(
    folder: Path,
    authority_key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    alternative: x509.SubjectAlternativeName,
    name: str,
    now: datetime,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _certificate(subject, authority.subject, key.public_key(), now, _SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(alternative, critical=False)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(issuer_id, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    _write_private(folder / SERVER, _pem(key) + certificate.public_bytes(serialization.Encoding.PEM))


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS)
        .not_valid_after(now + timedelta(days=days))
    )


def _key_usage(**allowed: bool) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in names})


def _alternative_names(names: Sequence[str]) -> x509.SubjectAlternativeName:
    if not names:
        raise ConfigError(
            "nodes must reach the coordinator by some name or address",
            cure="Name one, such as --name eyes.example.org.",
        )
    return x509.SubjectAlternativeName([_alternative_name(name) for name in names])


def _alternative_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    labels = name.split(".")
    fits = all(0 < len(label) < 64 and label.replace("-", "a").isalnum() and label.isascii() for label in labels)
    if not fits or len(name) > 253:
        raise ConfigError(
            f"{name!r} is neither a host name nor an IP address",
            cure="Give the name alone, without https:// or a port.",
        )
    return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_private(path: Path, content: bytes) -> None:
    write_atomically(path, content, mode=0o600)


def _read_private(path: Path) -> ec.EllipticCurvePrivateKey:
    content = _read_kept(path)
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("is not a private key", file=path) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("is not an elliptic-curve key", file=path)
    return key


def _read_kept(path: Path) -> bytes:
    """A file that only its owner may read."""
    content = _read(path)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ResourceError("can be read by others than its owner", file=path, cure=f"chmod 600 {path}")
    return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", file=path) from error


def _refuse_to_overwrite(folder: Path, names: Sequence[str]) -> None:
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise ResourceError(
            "is there already, and keys are never overwritten",
            file=folder / there[0],
            cure="Choose another folder, or move the old keys away yourself.",
        )
