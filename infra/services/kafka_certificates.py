"""Certificates of a secured instance: an authority of its own, and the broker's, which that vouches for.

They stand among the secrets, readable by their owner alone. The broker's serves three ends: clients know
the broker by it, broker and controller each other, and `millrace up` is let in by it before anybody has a
password.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from infra.services import ServiceError
from infra.settings import AUTHORITY, Settings

BROKER = "broker"
"""The principal of who holds the broker's certificate: the only one that may do everything."""
AUTHORITY_KEY = "kafka-ca-key.pem"
CERTIFICATE = "kafka-broker.pem"

AUTHORITY_DAYS = 3650
BROKER_DAYS = 365
RENEW_DAYS = 60
"""A broker that starts with less time left gets a new certificate."""
CLOCKS_APART = timedelta(hours=1)


def certificate_path(settings: Settings) -> Path:
    """The broker's key and certificate in one PEM file."""
    return settings.secret_path(CERTIFICATE)


def authority_path(settings: Settings) -> Path:
    """The authority's certificate, which is no secret."""
    return settings.secret_path(AUTHORITY)


def ensure_certificates(settings: Settings, now: datetime | None = None) -> None:
    """Make what is missing or soon out of date. Raises `ServiceError` where the authority is out of date."""
    now = now or datetime.now(UTC)
    key, authority = _authority(settings, now)
    if authority.not_valid_after_utc < now + timedelta(days=RENEW_DAYS):
        raise ServiceError(
            f"the authority in {authority_path(settings)} ends at {authority.not_valid_after_utc:%Y-%m-%d};"
            f" delete {AUTHORITY} and {AUTHORITY_KEY} there, then run `millrace up`"
        )
    path = certificate_path(settings)
    if path.exists():
        standing = x509.load_pem_x509_certificate(path.read_bytes())
        if standing.not_valid_after_utc > now + timedelta(days=RENEW_DAYS) and _vouches(authority, standing):
            return
    _issue(settings, key, authority, now)


def renew(settings: Settings, now: datetime | None = None) -> datetime:
    """Give the broker another key and certificate, in force when it starts next; returns when it ends.

    The authority stays, so whoever is running need not be told.
    """
    now = now or datetime.now(UTC)
    key, authority = _authority(settings, now)
    return _issue(settings, key, authority, now)


def _authority(settings: Settings, now: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key_path, path = settings.secret_path(AUTHORITY_KEY), authority_path(settings)
    if key_path.exists() and path.exists():
        key = serialization.load_pem_private_key(key_path.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key, x509.load_pem_x509_certificate(path.read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "millrace authority")])
    certificate = (
        _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(key_path, _private(key))
    _write(path, certificate.public_bytes(serialization.Encoding.PEM))
    return key, certificate


def _issue(
    settings: Settings, authority_key: ec.EllipticCurvePrivateKey, authority: x509.Certificate, now: datetime
) -> datetime:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, BROKER)])
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost")])
    certificate = (
        _builder(name, authority.subject, key.public_key(), now, BROKER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(names, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    _write(certificate_path(settings), _private(key) + certificate.public_bytes(serialization.Encoding.PEM))
    return certificate.not_valid_after_utc


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_APART)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _vouches(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # whatever is wrong with it, another one is made
        return False
    return True


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes) -> None:
    """In one step, never readable by others: also not for the moment before its mode is changed."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    part.replace(path)
