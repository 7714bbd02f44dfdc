"""The largest request body that the gateway takes, so that one client cannot fill its memory."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.problems import Problem

UPLOADS = ("multipart/", "application/dicom")


class BodyLimit:
    """Answers 413 to a body beyond its limit: at once where its length is announced, else while reading."""

    def __init__(self, app: ASGIApp, json_bytes: int, upload_bytes: int) -> None:
        """`upload_bytes` holds for multipart and DICOM bodies, `json_bytes` for all others."""
        self._app = app
        self._json_bytes = json_bytes
        self._upload_bytes = upload_bytes

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
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > limit:
                    raise _too_large(limit)
            return message

        await self._app(scope, counted, send)


def _too_large(limit: int) -> Problem:
    return Problem(
        413,
        "Too large",
        f"The body is larger than the {limit} bytes that are accepted here; send it in parts.",
        headers={"Connection": "close"},
    )
