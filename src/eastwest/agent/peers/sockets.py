"""Whose a TCP socket of this machine is: one question to the kernel (netlink ``sock_diag``), no table read.

See sock_diag(7) and ``linux/inet_diag.h``. Sockets of other network namespaces: ``namespaces.py``.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from dataclasses import dataclass

from eastwest.errors import InvalidInput, Unavailable

_SOCK_DIAG = 4  # netlink family; Python has no name for it
_BY_FAMILY = 20
_ERROR = 2
_REQUEST = 1
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ASKED = struct.Struct("=BBBBI")  # family, protocol, extensions, padding, states
_ID_PORTS = struct.Struct("!HH")
_ID_REST = struct.Struct("=III")  # interface, cookie
_ID_SIZE = 48
_SAID = struct.Struct("=BBBB")  # family, state, timer, retransmissions
_REST = struct.Struct("=IIIII")  # expires, receive queue, send queue, uid, inode
_ANY_COOKIE = 0xFFFFFFFF
_LISTENING = 10
_SECONDS = 0.05
_ANSWER = 8192


@dataclass(frozen=True, slots=True)
class Owner:
    """A socket as the kernel knows it: its inode, and the user that made it. Neither is its process's to choose."""

    inode: int
    uid: int


@dataclass(frozen=True, slots=True)
class Ends:
    """Both ends of a TCP connection, seen from the one that is looked for: (address, port) twice."""

    local: tuple[str, int]
    remote: tuple[str, int]


def owner_of(ends: Ends) -> Owner | None:
    """Whose the connected socket with these ends is; None where this machine has none, or nobody holds it any more.

    Takes some ten microseconds. Raises ``InvalidInput`` for what is no address, ``Unavailable`` when the kernel does
    not answer.
    """
    family, local, remote = _addresses(ends)
    try:
        identity = _ID_PORTS.pack(ends.local[1], ends.remote[1]) + local.ljust(16, b"\0") + remote.ljust(16, b"\0")
    except struct.error:
        raise InvalidInput("a port is not between 0 and 65535") from None
    identity += _ID_REST.pack(0, _ANY_COOKIE, _ANY_COOKIE)
    body = _ASKED.pack(family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + identity
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as kernel:
            kernel.settimeout(_SECONDS)
            kernel.sendto(_HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, _REQUEST, 1, 0) + body, (0, 0))
            return _read(kernel.recv(_ANSWER), ends)
    except OSError as error:
        raise Unavailable(f"the kernel does not say whose a socket is: {error.strerror or error}") from None


def _addresses(ends: Ends) -> tuple[int, bytes, bytes]:
    try:
        local, remote = (ipaddress.ip_address(address) for address, _ in (ends.local, ends.remote))
    except ValueError:
        raise InvalidInput("a socket's end is no IP address") from None
    if local.version != remote.version:
        raise InvalidInput("a socket's ends are of two families")
    return socket.AF_INET if local.version == 4 else socket.AF_INET6, local.packed, remote.packed


def _read(answer: bytes, ends: Ends) -> Owner | None:
    if len(answer) < _HEADER.size:
        return None
    kind = _HEADER.unpack_from(answer)[1]
    if kind == _ERROR:
        (number,) = struct.unpack_from("=i", answer, _HEADER.size)
        if -number == errno.ENOENT:
            return None
        raise OSError(-number, errno.errorcode.get(-number, "unknown error"))
    if kind != _BY_FAMILY or len(answer) < _HEADER.size + _SAID.size + _ID_SIZE + _REST.size:
        return None
    place = _HEADER.size
    state = _SAID.unpack_from(answer, place)[1]
    ports = _ID_PORTS.unpack_from(answer, place + _SAID.size)
    *_, uid, inode = _REST.unpack_from(answer, place + _SAID.size + _ID_SIZE)
    # Where nothing is connected so, the kernel may answer with what listens there.
    if state == _LISTENING or ports != (ends.local[1], ends.remote[1]) or not inode:
        return None
    return Owner(inode, uid)
