"""Sockets of this machine's other network namespaces: callers in containers, whose addresses are their own.

The kernel is asked about a namespace through one of its processes (``/proc/PID/net``), and only about those that have
the address in question, so a caller on another machine costs no table. Behind address translation nothing is found.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path

from eastwest.agent.peers.processes import MAX_PROCESSES, PROC
from eastwest.agent.peers.sockets import Ends, Owner

MAX_NAMESPACES = 256
MAX_WALKS = 5
"""Walks through all processes in a second, for addresses that no namespace was seen to have."""
MAX_TABLE = 4 * 1024 * 1024
"""Bytes of one table that are read."""
_LISTENING = "0A"
_MAPPED = bytes(10) + b"\xff\xff"


class Namespaces:
    """Which namespace has which address, as far as somebody asked. For one thread."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._having: dict[str, list[int]] = {}  # address → a process of each namespace that has it
        self._walks: deque[float] = deque(maxlen=MAX_WALKS)

    def owner_of(self, ends: Ends, now: float) -> Owner | None:
        """Whose the connected socket with these ends is, in another namespace; None where none of these has it.

        ``now``: seconds, monotonic. Addresses that are none belong to nobody.
        """
        try:
            local, remote = (ipaddress.ip_address(address) for address, _ in (ends.local, ends.remote))
        except ValueError:
            return None
        if local.is_loopback or local.version != remote.version:  # a loopback does not reach another namespace
            return None
        if (owner := self._look(str(local), ends)) is not None:
            return owner
        if len(self._walks) == MAX_WALKS and now - self._walks[0] < 1.0:
            return None
        self._walks.append(now)
        self._having = self._walk()
        return self._look(str(local), ends)

    def _look(self, address: str, ends: Ends) -> Owner | None:
        for pid in self._having.get(address, ()):
            for table, wanted in _wanted(ends):
                for line in _lines(self._proc / str(pid) / "net" / table):
                    fields = line.split()
                    if fields[1:3] == wanted and fields[3] != _LISTENING and fields[9] != "0":
                        return Owner(inode=int(fields[9]), uid=int(fields[7]))
        return None

    def _walk(self) -> dict[str, list[int]]:
        found: dict[str, int] = {}
        own = ""
        with suppress(OSError):
            own = str((self._proc / "self" / "ns" / "net").readlink())
        for number, entry in enumerate(os.scandir(self._proc)):
            if number > MAX_PROCESSES or len(found) >= MAX_NAMESPACES:
                break
            if entry.name.isdecimal():
                with suppress(OSError):
                    namespace = os.readlink(f"{entry.path}/ns/net")  # noqa: PTH115 - thousands: a Path for each costs more
                    found.setdefault(namespace, int(entry.name))
        having: dict[str, list[int]] = {}
        for namespace, pid in found.items():
            if namespace != own:
                for address in _addresses(self._proc / str(pid) / "net"):
                    having.setdefault(address, []).append(pid)
        return having


def _addresses(net: Path) -> set[str]:
    """The addresses of a namespace, as ``ipaddress`` writes them."""
    found: set[str] = set()
    before = ""
    for line in _lines(net / "fib_trie"):
        text = line.strip()
        if text == "/32 host LOCAL":
            found.add(before.removeprefix("|-- "))
        before = text
    for line in _lines(net / "if_inet6"):
        with suppress(ValueError):
            found.add(str(ipaddress.IPv6Address(bytes.fromhex(line.split(" ")[0]))))
    return found


def _wanted(ends: Ends) -> list[tuple[str, list[str]]]:
    """In which tables such a socket may stand, and how its two ends are written there."""
    both = [(ipaddress.ip_address(address).packed, port) for address, port in (ends.local, ends.remote)]
    if len(both[0][0]) != len(_MAPPED) + 4:
        mapped = [_written(_MAPPED + packed, port) for packed, port in both]
        return [("tcp", [_written(*each) for each in both]), ("tcp6", mapped)]
    return [("tcp6", [_written(*each) for each in both])]


def _written(packed: bytes, port: int) -> str:
    words = (int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, len(packed), 4))
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


def _lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            return file.read(MAX_TABLE).decode("ascii", "replace").splitlines()
    except OSError:
        return []
