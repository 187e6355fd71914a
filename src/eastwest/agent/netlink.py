"""The kernel's TCP sockets (netlink sock_diag, sock_diag(7)): which there are at a port, and the end of some of them.

To end a socket of another process takes CAP_NET_ADMIN in the network namespace, and a kernel with
CONFIG_INET_DIAG_DESTROY. Both ends of such a connection see it broken at once, whatever they are doing with it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 20, 21
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x01, 0x04, 0x300
TCP_OPEN = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8
"""States in which bytes can still pass: established, both FIN waits of our side, and close wait."""
_REQ_BYTECODE = 1
_BC_S_GE, _BC_S_LE = 2, 3
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI")
_ID = struct.Struct(">HH16s16s")
_SOCKET = struct.Struct("=BBBB")
_SOCKET_SIZE = 72  # struct inet_diag_msg
_ID_SIZE = 48
_INODE_AT = 68
_SEQUENCE = 1
_BUFFER = 1 << 16
_SECONDS = 5

Address = tuple[str, int]
"""An IP address, those of IPv4 always in their own form, and a port."""


class CannotClose(OSError):
    """Other processes' connections cannot be ended from here."""


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """One open TCP socket. ``ident`` names it to the kernel, with a cookie that no later socket has."""

    family: int
    local: Address
    remote: Address
    inode: int
    ident: bytes


def open_sockets(ports: Collection[int] = ()) -> list[TcpSocket]:
    """The open TCP sockets of this network namespace, of these local ports where any are given, both IP versions."""
    found: list[TcpSocket] = []
    with closing(_connect()) as link:
        for family in (socket.AF_INET, socket.AF_INET6):
            for port in sorted(set(ports)) or [0]:
                found += _dump(link, family, port)
    return found


def destroy(sockets: Collection[TcpSocket]) -> int:
    """End these; how many there were still. Raises ``CannotClose`` where that is not permitted here."""
    ended = 0
    with closing(_connect()) as link:
        for one in sockets:
            body = _REQUEST.pack(one.family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + one.ident
            _send(link, SOCK_DESTROY, NLM_F_ACK, body)
            problem = _result(link)
            if problem in {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL}:
                raise CannotClose(problem, os.strerror(problem))
            ended += problem == 0
    return ended


def can_destroy() -> str:
    """Why connections cannot be ended here; "" where they can. Found out by ending one of this process's own."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
            other, _ = server.accept()
            with other:
                port, peer = server.getsockname()[1], one.getsockname()
                mine = [found for found in open_sockets([port]) if found.remote == peer]
                if destroy(mine) == 1:
                    return ""
                return "the kernel did not find a socket of this process"
    except OSError as error:
        return error.strerror or str(error)


def _connect() -> socket.socket:
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
    link.settimeout(_SECONDS)
    return link


def _dump(link: socket.socket, family: int, port: int) -> Iterator[TcpSocket]:
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, TCP_OPEN) + bytes(_ID_SIZE)
    _send(link, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, body + (_of_port(port) if port else b""))
    for kind, payload in _messages(link):
        if kind == NLMSG_ERROR:
            problem = -struct.unpack_from("=i", payload)[0]
            raise OSError(problem, os.strerror(problem))
        if len(payload) >= _SOCKET_SIZE:
            yield _read(payload)


def _read(payload: bytes) -> TcpSocket:
    family = _SOCKET.unpack_from(payload)[0]
    ident = payload[4 : 4 + _ID_SIZE]
    local_port, remote_port, local, remote = _ID.unpack_from(ident)
    size = 4 if family == socket.AF_INET else 16
    return TcpSocket(
        family,
        (_text(local[:size]), local_port),
        (_text(remote[:size]), remote_port),
        struct.unpack_from("=I", payload, _INODE_AT)[0],
        ident,
    )


def _text(packed: bytes) -> str:
    return plain_address(str(ip_address(packed)))


def plain_address(text: str) -> str:
    """An IP address as all else here writes it; "" for a text that is none."""
    try:
        address: IPv4Address | IPv6Address = ip_address(text)
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _of_port(port: int) -> bytes:
    """The filter (struct inet_diag_bc_op): a local port not below, and not above, this one.

    Each step is followed by its number; a step goes on to its ``yes`` or ``no`` offset, and past the end refuses.
    """
    steps = ((_BC_S_GE, 8, 20), (_BC_S_LE, 8, 12))
    code = b"".join(struct.pack("=BBHBBH", step, yes, no, 0, 0, port) for step, yes, no in steps)
    return struct.pack("=HH", 4 + len(code), _REQ_BYTECODE) + code


def _send(link: socket.socket, kind: int, flags: int, body: bytes) -> None:
    header = _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | flags, _SEQUENCE, 0)
    link.sendto(header + body, (0, 0))


def _result(link: socket.socket) -> int:
    """The errno of an acknowledgement, 0 for success."""
    for kind, payload in _messages(link, once=True):
        if kind == NLMSG_ERROR:
            return -int(struct.unpack_from("=i", payload)[0])
    return errno.EIO


def _messages(link: socket.socket, *, once: bool = False) -> Iterator[tuple[int, bytes]]:
    while True:
        data = link.recv(_BUFFER)
        place = 0
        while place + _HEADER.size <= len(data):
            length, kind, _flags, _sequence, _port = _HEADER.unpack_from(data, place)
            if kind == NLMSG_DONE or length < _HEADER.size:
                return
            yield kind, data[place + _HEADER.size : place + length]
            if kind == NLMSG_ERROR:
                return
            place += (length + 3) & ~3
        if once:
            return
