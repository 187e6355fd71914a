"""One small page over plain HTTP from an address that a stranger chose: bounded in every way.

The name is resolved here, each address judged, and the connection made to that very address, so that a second answer
of the name service changes nothing. No redirect is followed, no proxy asked, nothing sent but the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import h11

from eastwest.errors import InvalidInput, PermissionDenied, Unavailable

MAX_HEADERS = 16 * 1024
MAX_ADDRESSES = 4
"""Addresses of a name that are tried."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Which addresses may be asked. With ``networks`` those alone; without, all but the machine's and cloud's own."""

    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, networks: Sequence[str]) -> AddressPolicy:
        """Raises ``InvalidInput`` for what is no network in CIDR form."""
        try:
            return cls(tuple(ipaddress.ip_network(text) for text in networks))
        except ValueError as error:
            raise InvalidInput(f"allowed_networks: {error}", fix='write networks like "10.0.0.0/8"') from None

    def admits(self, address: Address) -> bool:
        """Whether the address may be asked. An IPv4 address inside an IPv6 one is judged as what it is."""
        address = _unwrapped(address)
        if self.networks:
            return any(address in network for network in self.networks)
        return not (
            address.is_loopback
            or address.is_link_local  # the metadata service of most clouds
            or address.is_multicast
            or address.is_unspecified
            or address.is_reserved
            or any(address in network for network in _METADATA)
        )


async def fetch(host: str, port: int, path: str, policy: AddressPolicy, limit: int, seconds: float) -> bytes:
    """The body that ``http://host:port/path`` gives with status 200, at most ``limit`` bytes.

    Raises ``PermissionDenied`` for a place that may not be asked and an answer that will not do, ``Unavailable``
    when none comes within ``seconds``.
    """
    try:
        async with asyncio.timeout(seconds):
            addresses = await _resolve(host, port)
            allowed = [address for address in addresses if policy.admits(ipaddress.ip_address(address[0]))]
            if not allowed:
                raise PermissionDenied(
                    f"{host} is at no address that this server asks",
                    fix="its own, link-local and metadata addresses are not asked; see allowed_networks",
                )
            reader, writer = await _connect(allowed[:MAX_ADDRESSES], host, port)
            try:
                return await _get(reader, writer, f"{host}:{port}", path, limit)
            finally:
                writer.transport.abort()
    except TimeoutError:
        raise Unavailable(f"{host}:{port} did not answer within {seconds:.0f} s") from None


async def _resolve(host: str, port: int) -> list[tuple[str, int]]:
    try:
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(_RESOLVING, look_up)
    except OSError as error:
        raise Unavailable(f"{host} is not found: {error.strerror or error}") from None
    return list(dict.fromkeys((str(address[0]), port) for _, _, _, _, address in found))


async def _connect(
    addresses: Sequence[tuple[str, int]], host: str, port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    for address in addresses:
        with contextlib.suppress(OSError):
            return await asyncio.open_connection(*address, limit=MAX_HEADERS)
    raise Unavailable(f"nothing answers on {host}:{port}")


async def _get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, path: str, limit: int) -> bytes:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADERS)
    headers = [("Host", host), ("User-Agent", "eastwest"), ("Accept", "*/*"), ("Connection", "close")]
    request = connection.send(h11.Request(method="GET", target=path, headers=headers))
    writer.write((request or b"") + (connection.send(h11.EndOfMessage()) or b""))
    try:
        await writer.drain()
        body = b""
        while True:
            event: Any = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(4096))
            elif isinstance(event, h11.Response):
                if event.status_code != 200:
                    raise PermissionDenied(
                        f"{host} answers with status {event.status_code}; redirects are not followed"
                    )
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > limit:
                    raise PermissionDenied(f"{host} answers with more than {limit} bytes")
            elif isinstance(event, h11.EndOfMessage):
                return body
    except h11.RemoteProtocolError:
        raise PermissionDenied(f"{host} does not answer in HTTP") from None
    except OSError as error:
        raise Unavailable(f"{host} does not answer: {error.strerror or error}") from None


def _unwrapped(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


# Threads of its own: a name service that hangs must not keep others from theirs.
_RESOLVING = ThreadPoolExecutor(8, thread_name_prefix="http-challenge-resolve")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_METADATA: tuple[Network, ...] = tuple(
    # AWS over IPv6, Alibaba, Azure, Oracle: metadata services outside the link-local ranges.
    ipaddress.ip_network(text)
    for text in ("fd00:ec2::/32", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32")
)
