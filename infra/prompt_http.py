"""HTTP/1.1 as uvicorn speaks it, with a bound on the head of a request: its size, and its time."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 10.0
"""Largest head (request line and headers) of a request, and how long it may take to come."""


class PromptHttp(HttpToolsProtocol):
    """uvicorn's protocol, which by itself waits for a head for ever and takes one of any size."""

    _late: asyncio.TimerHandle
    _in_head: bool
    _head_bytes: int
    _parsed_bytes: int

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._late.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"The head of a request has at most {HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._late.cancel()
        self._expect_head()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._counted(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._counted(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._late.cancel()
        self._in_head = False
        super().on_headers_complete()

    def _counted(self, size: int) -> None:
        self._parsed_bytes += size
        if self._parsed_bytes > HEAD_BYTES:
            raise ValueError("the head of the request is too large")  # the parser answers 400

    def _expect_head(self) -> None:
        self._in_head, self._head_bytes, self._parsed_bytes = True, 0, 0
        self._late = self.loop.call_later(HEAD_SECONDS, self._too_late)

    def _too_late(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
