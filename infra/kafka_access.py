"""Where the broker is and who we are to it: what every Kafka client of ours is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class KafkaAccess:
    """Broker addresses, and librdkafka's security properties; without these, plain text and no name.

    The properties hold secrets, so they are left out of what is printed.
    """

    servers: str
    security: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def as_user(cls, servers: str, user: str, password: str, authority: Path | None) -> Self:
        """By name and password (SCRAM-SHA-512) over TLS; `authority`: the PEM file of who may vouch for the
        broker, or None for those that this machine trusts."""
        return cls(
            servers,
            {
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": "SCRAM-SHA-512",
                "sasl.username": user,
                "sasl.password": password,
                **({"ssl.ca.location": str(authority)} if authority else {}),
            },
        )

    @classmethod
    def by_certificate(cls, servers: str, certificate: Path, authority: Path) -> Self:
        """By a PEM file with a private key and its certificate, for listeners that ask for one."""
        return cls(
            servers,
            {
                "security.protocol": "SSL",
                "ssl.certificate.location": str(certificate),
                "ssl.key.location": str(certificate),
                "ssl.ca.location": str(authority),
            },
        )

    def config(self) -> dict[str, Any]:
        """librdkafka's properties, to be continued with those of the client's kind."""
        return {"bootstrap.servers": self.servers, **self.security}
