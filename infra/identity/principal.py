"""The one answer to who is asking, whatever the request brought as proof."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["person", "program"]

Objects = Mapping[str, frozenset[str]]
"""By kind of object those that a subject sees; of a kind that is not named it sees all."""


@dataclass(frozen=True, slots=True)
class Principal:
    """A subject as of one request. `proof` says what it was known by, for the audit log: `token:<id>`,
    `key:<prefix>`, `endpoint:<id>`."""

    subject: str
    kind: Kind
    tenant: str
    scopes: frozenset[str]
    objects: Objects
    proof: str

    def may(self, scope: str) -> bool:
        return scope in self.scopes

    def sees(self, kind: str) -> frozenset[str] | None:
        """The objects of this kind that it sees; None for all of them."""
        return self.objects.get(kind)
