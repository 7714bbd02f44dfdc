"""`Prefer` (RFC 7240): what a client would rather have; here, whether and how long it waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WAIT_MOST_S = 30


@dataclass(frozen=True, slots=True)
class Preference:
    """`respond_async`: an acknowledgement is enough. `wait_s`: how long to wait, None as usual."""

    respond_async: bool = False
    wait_s: int | None = None

    @classmethod
    def parse(cls, values: Sequence[str]) -> Preference:
        """Of all `Prefer` headers of a request. What is unknown or unusable is left out, as the RFC says."""
        found: dict[str, str] = {}
        for part in ",".join(values).split(","):
            name, _, value = part.partition(";")[0].partition("=")
            # Of a preference that is named twice the first counts.
            found.setdefault(name.strip().lower(), value.strip().strip('"'))
        wait = found.get("wait", "")
        is_number = wait.isascii() and wait.isdigit() and len(wait) <= 9
        return cls("respond-async" in found, min(int(wait), WAIT_MOST_S) if is_number else None)

    @property
    def applied(self) -> dict[str, str]:
        """The header that tells what was heeded."""
        if self.respond_async:
            return {"Preference-Applied": "respond-async"}
        return {} if self.wait_s is None else {"Preference-Applied": f"wait={self.wait_s}"}
