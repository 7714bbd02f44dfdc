"""Where a webhook may go: public addresses, and networks that were allowed by name.

Who chooses the address is not who sends the request (SSRF). A name is resolved once, each of its addresses
is looked at, and the socket is connected to one of those: what the name means a moment later does not matter.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import httpcore
import httpx

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_CARRIES_V4 = (ip_network("64:ff9b::/96"), ip_network("::/96"))
"""Translated (NAT64) and compatible addresses: the last 32 bits are an IPv4 address."""
_NEVER = tuple(map(ip_network, ("64:ff9b:1::/48", "fec0::/10", "192.88.99.0/24", "192.0.0.0/24", "::/128")))
"""Beyond what `ipaddress` knows as not global in every Python that we run on."""


class Forbidden(ConnectionError):
    """An address that no webhook may be sent to; the message names it and the remedy."""


class AllowError(ValueError):
    """A list of networks that cannot be read."""


def _carried(address: Address) -> Iterator[IPv4Address]:
    """The IPv4 addresses that an IPv6 address stands for."""
    if isinstance(address, IPv4Address):
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if any(address in network for network in _CARRIES_V4):
        yield IPv4Address(int(address) & 0xFFFFFFFF)


def is_public(address: Address) -> bool:
    """Whether everybody may reach it anyway."""
    if any(address.version == network.version and address in network for network in _NEVER):
        return False
    inner = list(_carried(address))
    if inner:
        return all(map(is_public, inner))
    return address.is_global and not (
        address.is_multicast
        or address.is_reserved
        or address.is_loopback
        or address.is_link_local
        or address.is_unspecified
    )


@dataclass(frozen=True)
class Guard:
    """Which addresses are fine. `allowed` are networks in the house."""

    allowed: tuple[Network, ...] = ()

    @classmethod
    def of(cls, text: str) -> Guard:
        """From `MILLRACE_WEBHOOK_ALLOW`. Raises `AllowError`."""
        try:
            return cls(tuple(ip_network(part.strip()) for part in text.split(",") if part.strip()))
        except ValueError as error:
            raise AllowError(
                f"MILLRACE_WEBHOOK_ALLOW: {error}; list networks such as 10.1.0.0/16,127.0.0.1/32"
            ) from None

    def in_house(self, address: Address) -> bool:
        """Whether it was allowed by name. (Never by what an IPv6 address carries.)"""
        return any(address.version == network.version and address in network for network in self.allowed)

    def check(self, host: str, addresses: Iterable[str], *, tls: bool) -> list[str]:
        """The addresses of a host, all of them fine. Raises `Forbidden`."""
        found = [ip_address(text.partition("%")[0]) for text in addresses]
        if not found:
            raise Forbidden(f"{host} has no address")
        for address in found:
            if self.in_house(address):
                continue
            if not is_public(address):
                raise Forbidden(
                    f"{host} is {address}, which is not public; a receiver in the house must be listed in"
                    " MILLRACE_WEBHOOK_ALLOW"
                )
            if not tls:
                raise Forbidden(f"{host} is {address}, outside of the house: use https")
        return [str(address) for address in found]

    async def resolve(self, host: str, port: int, *, tls: bool) -> list[str]:
        """Resolve once, and check. Raises `Forbidden`; OSError where the name is unknown."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return self.check(host, dict.fromkeys(str(entry[4][0]) for entry in found), tls=tls)

    def resolve_now(self, host: str, port: int, *, tls: bool) -> list[str]:
        """As `resolve`, waiting for it."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return self.check(host, dict.fromkeys(str(entry[4][0]) for entry in found), tls=tls)


class _Connections(httpcore.AsyncNetworkBackend):
    """Connects to the address that was checked, whatever the name says by then."""

    def __init__(self, guard: Guard, *, tls: bool) -> None:
        self._guard, self._tls = guard, tls
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface's
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._guard.resolve(host, port, tls=self._tls)
        except Forbidden:
            raise
        except OSError as error:
            raise httpcore.ConnectError(f"{host} cannot be resolved ({error})") from error
        failed: Exception | None = None
        for address in addresses[:3]:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        assert failed is not None
        raise failed

    async def connect_unix_socket(self, *arguments: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        raise Forbidden("no webhook goes to a socket of this machine")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class GuardedTransport(httpx.AsyncBaseTransport):
    """HTTP to receivers. No redirect, no proxy, no cookie, and no address that the guard refuses."""

    def __init__(self, guard: Guard, connections: int, context: ssl.SSLContext | None = None) -> None:
        context = context or ssl.create_default_context()
        self._by_scheme = {
            scheme: _transport(_Connections(guard, tls=scheme == "https"), connections, context)
            for scheme in ("http", "https")
        }

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._by_scheme[request.url.scheme].handle_async_request(request)

    async def aclose(self) -> None:
        for transport in self._by_scheme.values():
            await transport.aclose()


def _transport(
    backend: httpcore.AsyncNetworkBackend, connections: int, context: ssl.SSLContext
) -> httpx.AsyncHTTPTransport:
    transport = httpx.AsyncHTTPTransport(verify=context, trust_env=False)
    # httpx has no door for a network backend; its pool is httpcore's, which has.
    transport._pool = httpcore.AsyncConnectionPool(
        ssl_context=context,
        max_connections=connections,
        max_keepalive_connections=connections,
        keepalive_expiry=30.0,
        network_backend=backend,
    )
    return transport
