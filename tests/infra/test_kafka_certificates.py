"""The authority and the broker's certificate, as files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509

from infra.services import ServiceError
from infra.services.kafka_certificates import (
    AUTHORITY_DAYS,
    AUTHORITY_KEY,
    BROKER_DAYS,
    RENEW_DAYS,
    authority_path,
    certificate_path,
    ensure_certificates,
    renew,
)
from infra.settings import Settings

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def instance(tmp_path: Path) -> Settings:
    return Settings({"MILLRACE_HOME": str(tmp_path), "MILLRACE_SECURE": "1"})


def test_the_broker_is_vouched_for_and_its_key_is_nobody_elses(instance: Settings) -> None:
    """The authority signs a certificate for loopback; both keys are readable by their owner alone."""
    ensure_certificates(instance, NOW)
    authority = x509.load_pem_x509_certificate(authority_path(instance).read_bytes())
    broker = x509.load_pem_x509_certificate(certificate_path(instance).read_bytes())
    broker.verify_directly_issued_by(authority)
    names = broker.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("127.0.0.1")]
    assert broker.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    for path in (certificate_path(instance), instance.secret_path(AUTHORITY_KEY)):
        assert path.stat().st_mode & 0o777 == 0o600
    assert certificate_path(instance).parent.stat().st_mode & 0o777 == 0o700


def test_a_certificate_is_renewed_in_time_and_not_before(instance: Settings) -> None:
    """Asked again nothing changes, until the certificate's last weeks; the authority stays."""
    ensure_certificates(instance, NOW)
    first, authority = certificate_path(instance).read_bytes(), authority_path(instance).read_bytes()
    ensure_certificates(instance, NOW + timedelta(days=BROKER_DAYS - RENEW_DAYS - 1))
    assert certificate_path(instance).read_bytes() == first
    later = NOW + timedelta(days=BROKER_DAYS - RENEW_DAYS + 1)
    ensure_certificates(instance, later)
    assert certificate_path(instance).read_bytes() != first
    assert renew(instance, later) == later + timedelta(days=BROKER_DAYS)
    assert authority_path(instance).read_bytes() == authority


def test_another_authority_makes_another_certificate(instance: Settings) -> None:
    """Where the authority was deleted, or has ended, the broker's certificate does not outlive it."""
    ensure_certificates(instance, NOW)
    with pytest.raises(ServiceError, match="delete"):
        ensure_certificates(instance, NOW + timedelta(days=AUTHORITY_DAYS))
    first = certificate_path(instance).read_bytes()
    authority_path(instance).unlink()
    ensure_certificates(instance, NOW)
    assert certificate_path(instance).read_bytes() != first
