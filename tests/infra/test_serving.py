"""How an HTTP service is served: heads of requests in time and size, TLS, and whose address is believed."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fastapi import FastAPI, Request

from infra import prompt_http, tls, web
from infra.settings import SettingError, Settings
from tests.conftest import PORT_BASE

PORT = int(PORT_BASE) + 180


@asynccontextmanager
async def served() -> AsyncIterator[int]:
    """A small application behind our protocol; gives its port."""
    app = FastAPI()

    @app.post("/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, http=prompt_http.PromptHttp, log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110 - it has no event to wait for
            await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        await task


async def said(port: int, *parts: bytes, pause_s: float = 0.0) -> tuple[bytes, float]:
    """What the server answers to these bytes until it closes, and how long that takes."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        answer = await asyncio.wait_for(reader.read(), 20)
    except ConnectionError:
        answer = b"reset"
    finally:
        writer.close()
    return answer, time.monotonic() - began


HEAD = b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n"


def test_a_head_comes_in_time_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that says nothing, or trickles, is closed, also after a request that was answered; one
    whose body takes longer than a head may is not."""
    monkeypatch.setattr(prompt_http, "HEAD_SECONDS", 0.5)

    async def run() -> None:
        async with served() as port:
            silent, took = await said(port)
            assert silent == b"" and 0.4 < took < 5
            trickle, took = await said(port, *[bytes([c]) for c in HEAD[:12]], pause_s=0.1)
            assert trickle in (b"", b"reset") and took < 5
            second, took = await said(port, HEAD + b"\r\nabc", HEAD[:20])
            assert second.startswith(b"HTTP/1.1 200") and second.count(b"HTTP/1.1") == 1 and took < 5
            body, _ = await said(port, HEAD + b"Connection: close\r\n\r\n", b"a", b"bc", pause_s=0.4)
            assert body.startswith(b"HTTP/1.1 200") and body.endswith(b"3")

    asyncio.run(run())


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 100) for n in range(700)) + b"\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 500_000,
    ],
    ids=["url", "header", "headers", "endless"],
)
def test_a_head_has_its_size(head: bytes) -> None:
    """A request line or headers beyond 64 KiB are refused and the connection is closed."""

    async def run() -> None:
        async with served() as port:
            answer, took = await said(port, head)
            assert answer.startswith(b"HTTP/1.1 400") or answer == b"reset"
            assert took < 5
            assert (await said(port, HEAD + b"Connection: close\r\n\r\nabc"))[0].startswith(b"HTTP/1.1 200")

    asyncio.run(run())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for `millrace.test`, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "millrace.test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("millrace.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "key.pem").chmod(0o600)
    return folder / "certificate.pem", folder / "key.pem"


SERVER = """
import os
from fastapi import FastAPI, Request
from infra import hardening, web
from infra.settings import Settings

app = FastAPI()

@app.get("/who")
async def who(request: Request):
    return [request.client.host, request.url.scheme]

@app.get("/pid")
async def pid():
    return os.getpid()

hardening.install(app, Settings.load(), "tests")
web.run(app, Settings.load().api_url, 1)
"""


@contextmanager
def running(home: Path, files: int | None = None, **environ: str) -> Iterator[Settings]:
    """A process that serves by these settings, and begins with so many files that it may open."""
    given = {
        "MILLRACE_HOME": str(home),
        "MILLRACE_PORT_BASE": str(PORT),
        "REDIS_URL": "redis://127.0.0.1:1/0",
        **environ,
    }
    limited = () if files is None else ("sh", "-c", f'ulimit -Sn {files}; exec "$@"', "sh")
    command = (*limited, sys.executable, "-c", SERVER)
    process = subprocess.Popen(command, env={**os.environ, **given})
    at = int(environ.get("MILLRACE_METRICS_PORT", PORT))
    try:
        end = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", at)) == 0:
                    break
            assert process.poll() is None and time.monotonic() < end, "it does not serve"
            time.sleep(0.1)
        yield Settings(given)
    finally:
        process.terminate()
        assert process.wait(20) in (0, -15)


def test_a_low_limit_of_files_is_no_limit_of_connections(tmp_path: Path) -> None:
    """Where a process begins with few files, more connections than those are served all the same."""
    with running(tmp_path, files=100), ExitStack() as opened:
        everyone = [
            opened.enter_context(socket.create_connection(("127.0.0.1", PORT), 10)) for _ in range(150)
        ]
        for one in everyone:
            one.sendall(b"GET /who HTTP/1.1\r\nHost: x\r\n\r\n")
        assert {one.recv(12) for one in everyone} == {b"HTTP/1.1 200"}


def pid_at(port: int) -> int:
    return int(httpx.get(f"http://127.0.0.1:{port}/pid", trust_env=False).text)


def test_processes_share_a_port(tmp_path: Path) -> None:
    """Two processes answer at one port, each also at one of its own; when one ends the other answers all."""
    settings = Settings({"MILLRACE_PORT_BASE": str(PORT), "MILLRACE_API_PROCESSES": "2"})
    one, other = settings.http_ports("api")
    with running(tmp_path, MILLRACE_METRICS_PORT=str(one)):
        with running(tmp_path, MILLRACE_METRICS_PORT=str(other)):
            pids = {pid_at(one), pid_at(other)}
            assert len(pids) == 2
            assert {pid_at(PORT) for _ in range(64)} == pids
        assert {pid_at(PORT) for _ in range(16)} == {pid_at(one)}


def test_a_port_that_is_taken_is_not_shared(tmp_path: Path) -> None:
    """One process that has a port to itself keeps it: another that would share it does not start."""
    with running(tmp_path) as settings:
        environ = {**os.environ, **settings.environ, "MILLRACE_METRICS_PORT": str(PORT + 10)}
        ended = subprocess.run([sys.executable, "-c", SERVER], env=environ, capture_output=True, timeout=60)
    assert ended.returncode == web.DID_NOT_START
    assert f"127.0.0.1:{PORT} cannot be served" in ended.stderr.decode()


def test_tls_is_served_by_the_settings(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """With a certificate the service speaks TLS 1.2 and 1.3 with forward secrecy, and nothing older or plain;
    we ask our own one by its certificate alone."""
    paths = {"MILLRACE_TLS_CERTIFICATE": str(certificate[0]), "MILLRACE_TLS_KEY": str(certificate[1])}
    with running(tmp_path, **paths) as settings:
        assert settings.api_url.startswith("https://")
        url, context = tls.of_our_own(settings, PORT)
        assert context is not None
        answer = httpx.get(f"{url}/who", verify=context, trust_env=False)
        assert answer.json()[1] == "https" and "strict-transport-security" in answer.headers
        for version, spoken in (
            (ssl.TLSVersion.TLSv1_1, False),
            (ssl.TLSVersion.TLSv1_2, True),
            (ssl.TLSVersion.TLSv1_3, True),
        ):
            found = _cipher(certificate[0], version)
            assert (found is not None) == spoken, version
            assert found is None or "GCM" in found or "CHACHA20" in found, found
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{PORT}/who", trust_env=False)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"https://127.0.0.1:{PORT}/who", trust_env=False)


def _cipher(certificate: Path, version: ssl.TLSVersion) -> str | None:
    context = ssl.create_default_context(cafile=certificate)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = (
        ssl.TLSVersion.TLSv1_2 if version > ssl.TLSVersion.TLSv1_1 else ssl.TLSVersion.MINIMUM_SUPPORTED
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that it is old is what is tried
        context.maximum_version = version
    try:
        with (
            socket.create_connection(("127.0.0.1", PORT), 5) as raw,
            context.wrap_socket(raw, server_hostname="millrace.test") as wrapped,
        ):
            found = wrapped.cipher()
            return found[0] if found else None
    except (ssl.SSLError, ConnectionError):
        return None


def test_only_a_trusted_proxy_says_who_asks(tmp_path: Path) -> None:
    """X-Forwarded-For is nobody's word, unless the setting names the proxy that it comes from."""
    said_by = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "https"}
    for trusted, seen in (("", ["127.0.0.1", "http"]), ("127.0.0.1", ["192.0.2.1", "https"])):
        with running(tmp_path, MILLRACE_TRUSTED_PROXIES=trusted):
            assert httpx.get(f"http://127.0.0.1:{PORT}/who", headers=said_by, trust_env=False).json() == seen


def test_half_of_tls_is_refused(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """A certificate without a key, a missing file, a key that others can read: each says what to do."""
    shown, key = map(str, certificate)
    open_key = tmp_path / "open.pem"
    open_key.write_bytes(certificate[1].read_bytes())
    open_key.chmod(0o644)
    assert tls.files(Settings({})) is None
    assert tls.files(Settings({"MILLRACE_TLS_CERTIFICATE": shown, "MILLRACE_TLS_KEY": key})) == (shown, key)
    for environ, remedy in (
        ({"MILLRACE_TLS_CERTIFICATE": shown}, "MILLRACE_TLS_KEY is not set"),
        ({"MILLRACE_TLS_KEY": key}, "MILLRACE_TLS_CERTIFICATE is not set"),
        ({"MILLRACE_TLS_CERTIFICATE": shown, "MILLRACE_TLS_KEY": "/none"}, "is no file"),
        ({"MILLRACE_TLS_CERTIFICATE": shown, "MILLRACE_TLS_KEY": str(open_key)}, "chmod 600"),
    ):
        with pytest.raises(SettingError, match=remedy):
            tls.files(Settings(environ))
