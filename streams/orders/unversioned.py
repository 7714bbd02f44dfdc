"""The part of `Logic` that says: no versioned configuration changes these decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Unversioned:
    """A logic whose answers depend on its code and its input alone."""

    version_kinds: Sequence[str] = ()

    def load_version(self, kind: str, version: int, body: Any) -> Any:
        """Raises ValueError: there is nothing to load."""
        raise ValueError(f"{type(self).__name__} has no versions, but was given {kind} {version}")
