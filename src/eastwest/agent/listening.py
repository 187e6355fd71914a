"""Which TCP ports processes listen on, out of ``/proc``: what is open beside the port that a sidecar guards."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PROC = Path("/proc")
_LISTEN = "0A"  # include/net/tcp_states.h
_SOCKET = "socket:["
_ACCEPTS = 0x10000  # __SO_ACCEPTCON in /proc/net/unix
MAX_PORTS = 64


@dataclass(frozen=True, slots=True, order=True)
class Listening:
    """One listening TCP socket."""

    address: str
    port: int
    inode: str = field(default="", compare=False)

    @property
    def is_everywhere(self) -> bool:
        """Whether it takes connections to any address of the machine."""
        return ipaddress.ip_address(self.address).is_unspecified

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect to it."""
        return ipaddress.ip_address(self.address).is_loopback

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def listening(pid: int, proc: Path = PROC) -> list[Listening]:
    """The TCP ports that a process listens on. Raises ``OSError`` where its descriptors may not be read."""
    inodes = _inodes(pid, proc)
    return sorted({found for inode, found in _tcp(pid, proc) if inode in inodes})[:MAX_PORTS]


def at(near: int, places: Collection[tuple[str, int]], proc: Path = PROC) -> list[Listening]:
    """What anybody listens on at ``places``, in the network namespace of the process ``near``."""
    return sorted(found for _, found in _tcp(near, proc) if (found.address, found.port) in places)[:MAX_PORTS]


def socket_name(found: Listening, proc: Path = PROC) -> str:
    """A name of the socket that every process of this boot of the machine gives it, and none of another; "": none."""
    with suppress(OSError):
        boot = (proc / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{found.inode}" if boot and found.inode else ""
    return ""


def beside(
    near: int, ports: Collection[int], known: Collection[tuple[str, int]], proc: Path = PROC
) -> list[tuple[Listening, int]]:
    """What other processes listen on at ``ports``, and which: at other addresses, or at the very same one.

    ``near`` is a process of the same network namespace, and its own sockets are left out, as those at ``known`` places
    of others are. The pid is 0 where the process may not be looked at.
    """
    own = _inodes(near, proc)
    found = {
        inode: socket
        for inode, socket in _tcp(near, proc)
        if socket.port in ports and inode not in own and (socket.address, socket.port) not in known
    }
    if not found:
        return []
    told: dict[str, int] = dict.fromkeys(found, 0)
    for pid in _pids(proc):
        for inode in found.keys() & _readable(pid, proc):
            told[inode] = told[inode] or pid
    return sorted((found[inode], pid) for inode, pid in told.items())[:MAX_PORTS]


def holders(upstream: str, near: int, proc: Path = PROC) -> list[int]:
    """The processes that listen on a service's ``upstream`` (``unix:/path`` or ``tcp:host:port``), by pid.

    ``near`` is a process of the same network namespace. Those whose descriptors may not be read are left out.
    """
    kind, _, where = upstream.partition(":")
    if kind == "unix":
        wanted = {inode for inode, path in _unix(near, proc) if path == where}
    else:
        host, _, port = where.rpartition(":")
        wanted = {inode for inode, found in _tcp(near, proc) if found.port == int(port) and _answers(found, host)}
    return [pid for pid in _pids(proc) if wanted and not wanted.isdisjoint(_readable(pid, proc))]


def family(pids: Collection[int], proc: Path = PROC) -> list[int]:
    """The processes, and all that they or their children started and that still have them for parents."""
    children: dict[int, list[int]] = {}
    for pid in _pids(proc):
        with suppress(OSError, ValueError, IndexError):
            # The name may have spaces and brackets of its own; what follows it has none (proc(5)).
            fields = (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(pid)
    found = list(dict.fromkeys(pids))
    for pid in found:  # it grows meanwhile
        found += [child for child in children.get(pid, ()) if child not in found]
    return found


def program(pid: int, proc: Path = PROC) -> str:
    """What the process is called."""
    with suppress(OSError):
        return (proc / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    return "?"


def _answers(found: Listening, host: str) -> bool:
    """Whether connections to ``host`` come to it; of a host that is no address, as far as can be said."""
    try:
        return found.is_everywhere or ipaddress.ip_address(host.strip("[]")) == ipaddress.ip_address(found.address)
    except ValueError:
        return found.is_local


def _pids(proc: Path) -> list[int]:
    return [int(each.name) for each in proc.iterdir() if each.name.isdigit()]


def _readable(pid: int, proc: Path) -> set[str]:
    with suppress(OSError):
        return _inodes(pid, proc)
    return set()


def _inodes(pid: int, proc: Path) -> set[str]:
    """The sockets that a process has open."""
    found = set()
    with os.scandir(proc / str(pid) / "fd") as descriptors:
        for descriptor in descriptors:
            with suppress(OSError):
                target = str(Path(descriptor.path).readlink())
                if target.startswith(_SOCKET):
                    found.add(target[len(_SOCKET) : -1])
    return found


def _tcp(pid: int, proc: Path) -> Iterator[tuple[str, Listening]]:
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            lines = (proc / str(pid) / "net" / name).read_text(encoding="ascii").splitlines()
            for fields in map(str.split, lines[1:]):
                if fields[3] == _LISTEN:
                    address, port = fields[1].split(":")
                    yield fields[9], Listening(_address(address), int(port, 16), fields[9])


def _unix(pid: int, proc: Path) -> Iterator[tuple[str, str]]:
    with suppress(OSError):
        lines = (proc / str(pid) / "net" / "unix").read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines[1:]:
            fields = line.split(maxsplit=7)
            if len(fields) == 8 and int(fields[3], 16) & _ACCEPTS:
                yield fields[6], fields[7]


def _address(text: str) -> str:
    """An address as the kernel writes it: 32-bit words in the machine's order."""
    words = bytes.fromhex(text)
    raw = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
