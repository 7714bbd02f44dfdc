"""How much one asker may take of each class of routes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.settings import SETTINGS, SettingError, Settings

_SECONDS = {"s": 1, "m": 60, "h": 3600}
_FORM = re.compile(r"([1-9][0-9]{0,6})/([smh])(?::([1-9][0-9]{0,6}))?")


@dataclass(frozen=True, slots=True)
class Rate:
    """A bucket: `burst` tokens at most, refilled by `per_s` a second; each request takes one."""

    per_s: float
    burst: int

    @classmethod
    def parse(cls, text: str) -> Rate:
        """`10/m` or `10/m:20`: ten a minute, of which ten or twenty at once. Raises ValueError."""
        form = _FORM.fullmatch(text)
        if form is None:
            raise ValueError(f"{text!r} is no rate; write for example 500/s, or 5/m:20 for up to 20 at once")
        count = int(form[1])
        return cls(count / _SECONDS[form[2]], int(form[3] or count))

    def shared(self, processes: int) -> Rate:
        """The part of one of so many processes."""
        return Rate(self.per_s / processes, max(1, self.burst // processes))


RATES: Mapping[str, Rate] = {
    "login": Rate.parse("20/m"),
    "anonymous": Rate.parse("60/m"),
    "read": Rate.parse("500/s:1000"),
    "write": Rate.parse("5000/s:10000"),
    "operate": Rate.parse("10/s:50"),
    "stream": Rate.parse("5/s:100"),
}
"""By class of routes: logins and refused proofs (each by address), reading and sending data, operators' and
administrators' actions, streams opened (each by subject)."""

LOGIN_PATHS = frozenset({"/v1/oauth/token", "/v1/oauth/revoke", "/console/sign-in"})
"""Where somebody proves who they are; guessed passwords come here."""


def is_login(scope: Mapping[str, Any]) -> bool:
    """Whether this request (of ASGI) brings a password, or what stands for one."""
    return scope["path"] in LOGIN_PATHS and scope.get("method") not in ("GET", "HEAD")


def rates(settings: Settings) -> Mapping[str, Rate]:
    """The rates with those that the settings change. Raises `SettingError`."""
    found = dict(RATES)
    for part in settings.text("limits").split():
        name, _, text = part.partition("=")
        try:
            if name not in RATES:
                raise ValueError(f"there is no class {name!r}; there are {', '.join(RATES)}")
            found[name] = Rate.parse(text)
        except ValueError as error:
            raise SettingError(f"{SETTINGS['limits'].variable}: {error}") from None
    return found


def class_of(scope: str, is_stream: bool = False) -> str:
    """The class of a route that needs this scope."""
    if is_stream:
        return "stream"
    domain, _, right = scope.partition(":")
    if right != "write":
        return "read"
    return "operate" if domain in ("ops", "identity", "scoring") else "write"
