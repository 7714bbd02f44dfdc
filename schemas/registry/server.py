"""The registry's HTTP server: one thread per connection, JSON in and out, errors in Confluent's shape."""

from __future__ import annotations

import json
import socketserver
import sys
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from schemas.registry import errors
from schemas.registry.catalog import Catalog
from schemas.registry.routes import Raw, answer

CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"
MOST_BODY_BYTES = 4 * 1024 * 1024


class RegistryServer(ThreadingHTTPServer):
    """Serves a catalog on a host and port; port 0 takes a free one."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, catalog: Catalog) -> None:
        self.catalog = catalog
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind without the base class's reverse look-up of the host, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no event; anything else is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: RegistryServer
    protocol_version = "HTTP/1.1"
    server_version = "millrace-registry"
    # Head and body leave in one segment: apart, Nagle's algorithm would delay each answer by 40 ms.
    wbufsize = -1
    disable_nagle_algorithm = True
    timeout: ClassVar[float] = 300.0

    def answer(self) -> None:
        try:
            method = "GET" if self.command == "HEAD" else self.command
            reply = answer(self.server.catalog, method, self.path, self.body())
            status = 200
        except errors.RegistryError as error:
            reply, status = {"error_code": error.code, "message": str(error)}, error.status
        except Exception:
            traceback.print_exc()
            reply, status = {"error_code": 500, "message": "Internal error; see the registry's output"}, 500
        self.reply(status, reply)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = answer  # noqa: N815 (the names http.server calls)

    def body(self) -> Any:
        content = self.chunks() if "chunked" in self.headers.get("Transfer-Encoding", "") else self.block()
        if not content:
            return None
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise errors.RegistryError(
                400, 400, f"the body is not JSON: {error}; send an object, as the API reference shows"
            ) from None

    def block(self) -> bytes:
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal():
            self.close_connection = True
            raise errors.RegistryError(400, 400, f"Content-Length is {length!r}; send a number of bytes")
        self.require_fitting(int(length))
        return self.rfile.read(int(length))

    def chunks(self) -> bytes:
        content = b""
        while True:
            try:
                size = int(self.rfile.readline(64).split(b";")[0], 16)
            except ValueError:
                self.close_connection = True
                raise errors.RegistryError(
                    400, 400, "a chunk has no size; send the body with Content-Length"
                ) from None
            self.require_fitting(len(content) + size)
            content += self.rfile.read(size)
            self.rfile.readline(64)
            if not size:
                return content

    def require_fitting(self, size: int) -> None:
        if size > MOST_BODY_BYTES:
            # The unread rest would be taken for the next request.
            self.close_connection = True
            raise errors.RegistryError(
                413, 42209, f"the body has {size} bytes; {MOST_BODY_BYTES} are the most a schema may take"
            )

    def reply(self, status: int, reply: Any) -> None:
        content = (reply if isinstance(reply, Raw) else json.dumps(reply)).encode("utf-8", "backslashreplace")
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses (a malformed request line, an unknown method) in the same shape."""
        self.close_connection = True
        self.reply(code, {"error_code": code, "message": message or f"HTTP {code}"})

    def log_message(self, format: str, *arguments: Any) -> None:
        """Normal operation logs nothing."""
