"""A registry as it really runs: its own process, its own state folder, a free port."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import HTTPError


class RegistryProcess:
    """Starts on construction; `stop` ends it with SIGTERM, `kill` with SIGKILL, `start` starts it again."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.start()

    def start(self) -> None:
        """Start, and wait until it listens."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "schemas.registry", "--port", "0", "--state-dir", str(self.state)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if "http://" not in line:
            raise RuntimeError(f"the registry did not start: {self.process.communicate()[1]}")
        self.url = line.split()[2].rstrip(",")

    def end(self, how: signal.Signals) -> tuple[int, str]:
        """End it with a signal; its exit code and what it wrote to stderr."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        errors = self.process.communicate(timeout=10)[1]
        return self.process.returncode, errors

    def stop(self) -> tuple[int, str]:
        """End it as a supervisor does."""
        return self.end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does."""
        self.end(signal.SIGKILL)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One HTTP request: status and JSON answer."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                assert response.headers["Content-Type"] == "application/vnd.schemaregistry.v1+json"
                return response.status, json.loads(response.read())
        except HTTPError as error:
            with error:
                assert error.headers["Content-Type"] == "application/vnd.schemaregistry.v1+json"
                return error.code, json.loads(error.read())

    def register(self, subject: str, schema: Any, **more: Any) -> tuple[int, Any]:
        """POST a schema (JSON value, or its text) as the subject's next version."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        return self.call("POST", f"/subjects/{subject}/versions", {"schema": text, **more})


def record(*fields: tuple[str, Any] | tuple[str, Any, Any], name: str = "Sale") -> dict[str, Any]:
    """A record schema of (name, type) or (name, type, default)."""
    declared = [{"name": f[0], "type": f[1]} | ({"default": f[2]} if len(f) == 3 else {}) for f in fields]
    return {"type": "record", "name": name, "namespace": "shop", "fields": declared}
