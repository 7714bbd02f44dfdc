"""What an HTTP service tells the audit log by itself: refusals, and what was read or done by whom."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.audit.entry import Outcome
from infra.audit.log import AuditLog
from infra.identity.principal import Principal
from infra.limits.rates import is_login
from infra.limits.web import address_of

READING = frozenset({"GET", "HEAD"})


class Audited:
    """Records each answer to a principal, and each 401 and 403, with its route, never with what was in it.

    Whoever is asking stands in `request.state.asking`; a handler that reads protected rows may say how many
    in `request.state.rows`, and of what in `request.state.object`; a login says whom it was for, right or
    wrong, in `request.state.claimed`; what has a name of its own says it in `request.state.action`. Events
    that a producer sends are not recorded one by one: the topics keep them, with their sender.
    """

    def __init__(self, app: ASGIApp, log: AuditLog) -> None:
        self._app, self._log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        told = False

        def tell(status: int) -> None:
            nonlocal told
            if not told:
                told = True
                self._tell(scope, state, status)

        async def watched(message: Message) -> None:
            match message["type"]:
                case "http.response.start":
                    tell(message["status"])
                case "websocket.accept":
                    tell(101)
                case "websocket.http.response.start":
                    tell(message["status"])
                case "websocket.close":
                    tell(403)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            tell(0)

    def _tell(self, scope: Scope, state: dict[str, object], status: int) -> None:
        principal = state.get("asking")
        known = principal if isinstance(principal, Principal) else None
        method = scope.get("method", "WEBSOCKET")
        login = is_login(scope)
        refused = status in (401, 403)
        if not login and not refused and (known is None or not self._is_told(method, scope)):
            return
        outcome: Outcome = "denied" if refused else "done" if 0 < status < 400 else "failed"
        reading = method in READING or scope["type"] == "websocket"
        plain = "login" if login else "denied" if refused else "read" if reading else "do"
        action = str(state.get("action", plain))
        told: dict[str, str | int | float | bool | None] = {"status": status, "address": address_of(scope)}
        for name in ("claimed", "rows", "object"):
            value = state.get(name)
            if isinstance(value, str | int):
                told[name] = value
        route = getattr(scope.get("route"), "path", None) or scope["path"]
        self._log.record(known, action, f"{method} {route}", outcome, told)

    def _is_told(self, method: str, scope: Scope) -> bool:
        extra = getattr(scope.get("route"), "openapi_extra", None) or {}
        needed = str(extra.get("x-millrace-scope", ""))
        domain, _, right = needed.partition(":")
        return not (right == "write" and domain not in ("ops", "identity", "scoring"))
