"""The largest request body that a service takes, and how long one may take to send it or to be answered."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.problems import Problem

UPLOADS = ("multipart/", "application/dicom")
SLOWEST_BYTES_S = 64 * 1024
"""A large body may take longer than a small one, but is not to trickle in for hours."""


class BodyLimit:
    """Answers 413 to a body beyond its limit: at once where its length is announced, else while reading; and
    408 to one that comes more slowly than anybody's connection is."""

    def __init__(self, app: ASGIApp, json_bytes: int, upload_bytes: int, seconds: float = 60.0) -> None:
        """`upload_bytes` holds for multipart and DICOM bodies, `json_bytes` for all others."""
        self._app = app
        self._json_bytes = json_bytes
        self._upload_bytes = upload_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        upload = headers.get("content-type", "").lower().startswith(UPLOADS)
        limit = self._upload_bytes if upload else self._json_bytes
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            await _too_large(limit).response(scope["path"])(scope, receive, send)
            return
        read, complete = 0, False
        began = asyncio.get_running_loop().time()

        async def counted() -> Message:
            nonlocal read, complete
            if complete:
                return await receive()  # waits for the client to leave, which may take its time
            try:
                async with asyncio.timeout_at(began + self._seconds + read / SLOWEST_BYTES_S):
                    message = await receive()
            except TimeoutError:
                raise _too_slow() from None
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if read > limit:
                    raise _too_large(limit)
            return message

        await self._app(scope, counted, send)


class AnswerTime:
    """Ends what has not begun to answer within `seconds` after the last part of its request: 503."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._seconds) as limit:

                async def heard() -> Message:
                    message = await receive()
                    if message["type"] == "http.request" and limit.when() is not None:
                        limit.reschedule(loop.time() + self._seconds)
                    return message

                async def begun(message: Message) -> None:
                    if limit.when() is not None:
                        limit.reschedule(None)
                    await send(message)

                await self._app(scope, heard, begun)
        except TimeoutError:
            if not limit.expired():
                raise
            problem = Problem(
                503,
                "Took too long",
                f"The request was ended after {self._seconds:g} s; ask for less, or again later.",
                headers={"Retry-After": "5"},
            )
            await problem.response(scope["path"])(scope, receive, send)


def _too_large(limit: int) -> Problem:
    return Problem(
        413,
        "Too large",
        f"The body is larger than the {limit} bytes that are accepted here; send it in parts.",
        headers={"Connection": "close"},
    )


def _too_slow() -> Problem:
    return Problem(
        408, "Too slow", "The body did not come in time; send it again.", headers={"Connection": "close"}
    )
