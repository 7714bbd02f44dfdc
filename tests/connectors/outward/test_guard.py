"""The guard: which addresses, and that the connection goes to what was looked at."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from typing import Any

import pytest

from connectors.outward.guard import AllowError, Forbidden, Guard, GuardedTransport, is_public
from connectors.outward.http import attempt
from tests.connectors.outward.receiver import Receiver


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.1",
        "203.0.113.9",
        "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fc00::1",
        "fd12:3456::1", "ff02::1", "fec0::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::1",
        "2002:7f00:1::", "2002:c0a8:101::1", "100::1",
    ],
)  # fmt: skip
def test_addresses_in_the_house_are_refused(address: str) -> None:
    """Private, loopback, link-local, multicast, reserved, and IPv6 that carries such an IPv4."""
    assert not is_public(ip_address(address))
    with pytest.raises(Forbidden):
        Guard().check("name", [address], tls=True)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_are_fine_with_tls_only(address: str) -> None:
    """The world may be told, but not in the clear."""
    assert Guard().check("name", [address], tls=True)
    with pytest.raises(Forbidden, match="https"):
        Guard().check("name", [address], tls=False)


def test_one_bad_address_among_several_refuses_the_name() -> None:
    """A name that is public and private at once is not tried at all."""
    with pytest.raises(Forbidden):
        Guard().check("name", ["1.1.1.1", "10.0.0.1"], tls=True)


def test_networks_are_allowed_by_name() -> None:
    """Only what is listed, and not what an IPv6 address makes of it."""
    guard = Guard.of("10.1.0.0/16, 127.0.0.1/32")
    assert guard.check("name", ["10.1.2.3"], tls=False) == ["10.1.2.3"]
    for address in ("10.2.0.1", "127.0.0.2", "::ffff:10.1.2.3"):
        with pytest.raises(Forbidden):
            guard.check("name", [address], tls=True)
    with pytest.raises(AllowError, match="MILLRACE_WEBHOOK_ALLOW"):
        Guard.of("10.1.0.0/99")


def test_a_name_that_changes_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is resolved once for a connection, and the socket goes to the address that was looked at."""
    receiver, elsewhere = Receiver(), Receiver()
    asked: list[str] = []

    async def rebinding(self: Any, host: Any, port: Any, **_: Any) -> list[Any]:
        """Fine at the first question; ever after the other receiver, at an address that is not allowed."""
        asked.append(str(host))
        address = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    async def run() -> None:
        loop = asyncio.get_running_loop()
        original = type(loop).getaddrinfo

        async def only_names(self: Any, host: Any, port: Any, **options: Any) -> Any:
            # Addresses are no names: what connects by one asks nothing of a resolver.
            if host == "receiver.example":
                return await rebinding(self, host, port)
            return await original(self, host, port, **options)

        monkeypatch.setattr(type(loop), "getaddrinfo", only_names)
        transport = GuardedTransport(Guard.of("127.0.0.1/32"), 4)
        url = f"http://receiver.example:{receiver.port}/hook"
        first = await attempt(transport, url, {"webhook-id": "x"}, b"{}", 3)
        assert first.delivered and asked == ["receiver.example"]
        assert receiver.seen[0].headers["host"] == f"receiver.example:{receiver.port}"
        await transport.aclose()
        transport = GuardedTransport(Guard.of("127.0.0.1/32"), 4)
        second = await attempt(transport, url, {"webhook-id": "x"}, b"{}", 3)
        assert not second.delivered and second.error is not None and "127.0.0.2" in second.error
        await transport.aclose()

    asyncio.run(run())
    assert len(receiver.seen) == 1 and elsewhere.seen == []
    receiver.down()
    elsewhere.down()
