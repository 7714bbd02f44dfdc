"""Who may do what: the scopes, the roles that bundle them, and the objects that a domain's rows belong to.

A *grant* is a role, or a role in one domain: `viewer:fraud`, `viewer:*`, `operator`. What a route needs is
one scope; what a subject has are the scopes of its grants. There is no other way to anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from schemas.pipelines import PIPELINES

EVERYWHERE = "*"
ADMIN = "admin"
"""The subject that `up` makes first, and its password's name among the secrets."""
HOME_TENANT = "default"
"""The tenant of those who run the instance: what no tenant could be read of is theirs to look after."""
DOMAINS: tuple[str, ...] = tuple(pipeline.name for pipeline in PIPELINES)

OBJECTS: Mapping[str, str] = {
    "fraud": "merchant",
    "fleet": "fleet",
    "orders": "customer",
    "imaging": "patient",
}
"""Whose a row of each domain is, within its tenant. A subject sees all of a kind, or those it is given."""


def object_field(domain: str) -> str:
    """The field of events, and column of rows, that names whose they are."""
    return f"{OBJECTS[domain]}_id"


@dataclass(frozen=True, slots=True)
class Role:
    """A bundle of scopes. `{domain}` in a scope stands for the domain that the role is granted in."""

    name: str
    about: str
    scopes: tuple[str, ...]

    @property
    def by_domain(self) -> bool:
        """Whether it is granted in a domain, as `viewer:fraud`."""
        return any("{domain}" in scope for scope in self.scopes)


READING = tuple(f"{domain}:read" for domain in DOMAINS)
ROLES: Mapping[str, Role] = {
    role.name: role
    for role in (
        Role("viewer", "reads a domain's results", ("{domain}:read",)),
        Role("producer", "sends a domain's events", ("{domain}:write",)),
        Role(
            "operator",
            "runs pipelines: positions, dead letters, replays",
            ("ops:read", "ops:write", "scoring:read", *READING),
        ),
        Role(
            "analyst",
            "writes fraud rules and takes them into force; sees every tenant's decisions",
            ("scoring:read", "scoring:write"),
        ),
        Role("auditor", "reads the audit log", ("audit:read",)),
        Role("admin", "manages users and keys, and sees no data", ("identity:read", "identity:write")),
    )
}
SCOPES: frozenset[str] = frozenset(
    scope.format(domain=domain) for role in ROLES.values() for scope in role.scopes for domain in DOMAINS
)
"""Every scope that is granted."""
RECEIVER_SCOPE = "webhooks:read"
"""What the token of a webhook's endpoint opens: that endpoint's own events. No grant has it."""


class Refusal(ValueError):
    """Something about who may do what that cannot be as it is asked for; the message gives the remedy."""


class GrantError(Refusal):
    """A grant that means nothing; the message says what there is."""


def scopes_of(grants: Iterable[str]) -> frozenset[str]:
    """The scopes that these grants give. Raises `GrantError`."""
    return frozenset(scope for grant in grants for scope in _scopes(grant))


def _scopes(grant: str) -> Iterable[str]:
    name, _, domain = grant.partition(":")
    role = ROLES.get(name)
    if role is None:
        raise GrantError(f"there is no role {name!r}; grant one of {', '.join(ROLES)}")
    if not role.by_domain:
        if domain:
            raise GrantError(f"{name} is not granted by domain; grant {name!r} alone")
        return role.scopes
    if domain != EVERYWHERE and domain not in DOMAINS:
        raise GrantError(
            f"{name} is granted in a domain; grant {', '.join(f'{name}:{d}' for d in (*DOMAINS, EVERYWHERE))}"
        )
    within = DOMAINS if domain == EVERYWHERE else (domain,)
    return [scope.format(domain=d) for scope in role.scopes for d in within]
