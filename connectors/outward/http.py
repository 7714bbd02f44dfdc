"""One attempt to deliver by HTTP, bounded in time and size; what becomes of it is a value."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpcore
import httpx

from connectors.outward.guard import Forbidden, GuardedTransport

ANSWER_MOST_BYTES = 65_536
ANSWER_KEPT = 500
RETRY_AFTER_MOST_S = 3600.0
USER_AGENT = "Millrace-Webhooks/1"

GONE = 410
_ALL = frozenset({408, 425, 429})
"""Answers that, like 5xx, speak of the receiver and not of the message."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of an attempt. `status` is None where there was no answer."""

    status: int | None
    error: str | None
    answer: str
    took_ms: int
    retry_after_s: float | None = None

    @property
    def delivered(self) -> bool:
        return self.status is not None and self.error is None

    @property
    def of_endpoint(self) -> bool:
        """Whether the failure is the endpoint's as a whole, not this message's."""
        return self.status is None or self.status >= 500 or self.status in _ALL

    @property
    def outcome(self) -> str:
        """As the metric names it."""
        if self.delivered:
            return "delivered"
        return "unreachable" if self.status is None else "gone" if self.status == GONE else "refused"


async def attempt(
    transport: GuardedTransport, url: str, headers: dict[str, str], body: bytes, timeout_s: float
) -> Attempt:
    """POST it. Never raises what a receiver may cause."""
    began = time.perf_counter()
    status: int | None = None
    kept, error, retry_after = b"", None, None
    fixed = {"content-type": "application/json", "user-agent": USER_AGENT, "accept-encoding": "identity"}
    try:
        request = httpx.Request(
            "POST",
            url,
            headers={**fixed, **headers},
            content=body,
            extensions={"timeout": httpx.Timeout(timeout_s, connect=min(5.0, timeout_s)).as_dict()},
        )
        async with asyncio.timeout(timeout_s):
            response = await transport.handle_async_request(request)
            try:
                size = 0
                assert isinstance(response.stream, httpx.AsyncByteStream)
                async for chunk in response.stream:
                    kept += chunk[: max(0, ANSWER_KEPT - len(kept))]
                    size += len(chunk)
                    if size > ANSWER_MOST_BYTES:
                        break  # it has said enough
                # Only now: an answer that never ends is no answer.
                status = response.status_code
                retry_after = _retry_after(response.headers.get("retry-after"))
            finally:
                await response.aclose()
    except TimeoutError:
        error = f"no whole answer within {timeout_s:g} s"
    except Forbidden as refused:
        error = str(refused)
    except (httpx.HTTPError, httpx.InvalidURL, httpcore.ConnectError, OSError, ValueError) as failed:
        error = f"{type(failed).__name__}: {failed}"[:ANSWER_KEPT]
    if status is not None and not 200 <= status < 300:
        error = f"answered {status}"
    took_ms = int((time.perf_counter() - began) * 1000)
    answer = kept.decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
    return Attempt(status, error, answer, took_ms, retry_after)


def _retry_after(text: str | None) -> float | None:
    """Seconds, of a number or a date; None where there is neither."""
    if not text:
        return None
    try:
        seconds = float(text) if text.strip().isdigit() else _until(text)
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), RETRY_AFTER_MOST_S)


def _until(text: str) -> float:
    at = parsedate_to_datetime(text)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()
