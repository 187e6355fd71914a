"""Which process holds a socket, and what can be said of it.

Vouched for by the kernel: the ``uid`` that made the socket, and the ``unit`` (the process's control group, which only
root moves). A claim of the process: ``exe``, ``program`` and ``from``, for it runs what it likes from where it likes.
Of several processes that hold a socket those of the user that made it count, and of these the one that started first: a
set-uid program or a child that inherited it is not taken for who called. Processes of one user may lend each other
sockets.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from eastwest.rpc.peer import started_at

PROC = Path("/proc")
MAX_PROCESSES = 20_000
MAX_DESCRIPTORS = 4096
"""Of one process that are looked at."""
MAX_PART = 96
"""Characters of one part of a name."""
MAX_NAME = 240
MAX_ABOVE = 4
"""Processes above one that are looked at for the script that started it."""
_MAX_FILE = 4096
_FROM = "from"
_SOCKET = "socket:["
_SAFE = "/._-@+,=:"
_INTERPRETER = re.compile(r"(python|php|ruby|perl|node|bash|dash|sh|java|lua)[0-9.]*(-fpm|-cgi)?")
_UNIT_ENDS = (".service", ".scope")


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a socket; ``started`` (ticks since boot) tells it from a later one of its pid."""

    pid: int
    started: int


def candidates(uids: Collection[int], proc: Path = PROC) -> list[int]:
    """Pids of processes with one of these effective users; of all others at the end."""
    mine: list[int] = []
    others: list[int] = []
    for number, entry in enumerate(os.scandir(proc)):
        if number > MAX_PROCESSES:
            break
        if entry.name.isdecimal():
            with suppress(OSError):
                (mine if entry.stat().st_uid in uids else others).append(int(entry.name))
    # Root may have made a socket and become somebody else since.
    return [*mine, *others]


def holders_of(sockets: Mapping[int, int], pids: Iterable[int], proc: Path = PROC) -> dict[int, Holder]:
    """Which process among ``pids`` holds each of ``sockets`` (inode → the user that made it), in one walk.

    Those that none holds, and those of processes that may not be looked at, are left out.
    """
    found: dict[int, tuple[bool, int, int]] = {}
    users = set(sockets.values())
    for pid in pids:
        uid = _uid_of(pid, proc)
        if uid not in users and len(found) == len(sockets):
            break  # those of the sockets' own users come first
        for inode in _held(pid, proc) & sockets.keys():
            started = started_at(pid) if proc == PROC else pid
            this = (uid != sockets[inode], started, pid)
            if started and this < found.get(inode, (True, started + 1, pid)):
                found[inode] = this
    return {inode: Holder(pid, started) for inode, (_, started, pid) in found.items()}


def name_of(uid: int, holder: Holder | None, spiffe_id: str = "", proc: Path = PROC) -> str:
    """``uid:33 user:www-data unit:reports.service exe:/usr/bin/php program:report.php id:spiffe://...``

    A program that is no script of its own has the script that started it, where that is still there:
    ``exe:/usr/bin/curl from:nightly.sh``.

    What is not known is left out. Printable ASCII without spaces inside a part, at most ``MAX_NAME`` characters.
    """
    parts = [f"uid:{uid}"]
    with suppress(KeyError):
        parts.append(f"user:{_text(pwd.getpwuid(uid).pw_name)}")
    if holder is not None:
        parts += (f"{name}:{value}" for name, value in _facts(holder.pid, proc) if value)
    if spiffe_id:
        parts.append(f"id:{spiffe_id}")
    name = ""
    for part in parts:
        longer = f"{name} {part}" if name else part
        if len(longer) <= MAX_NAME:
            name = longer
    return name


def unit_of(cgroup: str) -> str:
    """The systemd unit in a ``/proc/PID/cgroup``, or "".

    The first one below the slices counts: what comes deeper may be the making of an unprivileged user.
    """
    for line in cgroup.splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers in {"", "name=systemd"}:
            parts = (part for part in path.split("/") if part and not part.endswith(".slice"))
            first = next(parts, "")
            if first.endswith(_UNIT_ENDS):
                return first
    return ""


def _facts(pid: int, proc: Path) -> Iterator[tuple[str, str]]:
    place = proc / str(pid)
    yield "unit", _text(unit_of(_read(place / "cgroup").decode(errors="replace")))
    executable = ""
    with suppress(OSError):
        executable = str((place / "exe").readlink())
    yield "exe", _text(executable)
    program = program_of(_read(place / "cmdline"), executable)
    yield "program", _text(program)
    if not program:
        yield _FROM, _text(_started_by(pid, proc))


def _started_by(pid: int, proc: Path) -> str:
    """The script of the nearest process above that runs one: jobs that call by ``curl`` are told apart by theirs."""
    for _ in range(MAX_ABOVE):
        pid = _parent(pid, proc)
        if pid <= 1:
            break
        with suppress(OSError):
            place = proc / str(pid)
            if program := program_of(_read(place / "cmdline"), str((place / "exe").readlink())):
                return program
    return ""


def _parent(pid: int, proc: Path) -> int:
    # The second field, the program's name in brackets, may hold anything, brackets and spaces included.
    fields = _read(proc / str(pid) / "stat").rpartition(b")")[2].split()
    return int(fields[1]) if len(fields) > 1 and fields[1].isdigit() else 0


def image_of(pid: int, proc: Path = PROC) -> bytes:
    """What a process runs, to be compared: it may become another program and keep its pid and its start."""
    place, executable = proc / str(pid), b""
    with suppress(OSError):
        executable = bytes((place / "exe").readlink())
    return executable + b"\0" + _read(place / "cmdline")


def same_process(before: str, after: str) -> bool:
    """Whether a name only lost who started the process, which may have ended since."""
    return " ".join(part for part in before.split(" ") if not part.startswith(f"{_FROM}:")) == after


def program_of(cmdline: bytes, executable: str) -> str:
    """The script or module that an interpreter was told to run, by its last name; of anything else "".

    Other arguments are not told: there may be secrets among them.
    """
    words = [word.decode(errors="replace") for word in cmdline.split(b"\0")]
    if not _INTERPRETER.fullmatch(Path(executable).name) or len(words) < 2:
        return ""
    rest = words[1:]
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option in {"-m", "-jar", "-f"} and rest:
            return rest[0].rpartition("/")[2]
        if option in {"-c", "-e", "-r"}:
            return ""
    return rest[0].rpartition("/")[2] if rest else ""


def _held(pid: int, proc: Path) -> set[int]:
    """Inodes of the sockets that a process has open."""
    found: set[int] = set()
    try:
        with os.scandir(proc / str(pid) / "fd") as entries:
            for number, entry in enumerate(entries):
                if number > MAX_DESCRIPTORS:
                    break
                with suppress(OSError):
                    target = os.readlink(entry.path)  # noqa: PTH115 - thousands of them: a Path for each costs more
                    if target.startswith(_SOCKET):
                        found.add(int(target[len(_SOCKET) : -1]))
    except OSError:
        pass
    return found


def _uid_of(pid: int, proc: Path) -> int:
    try:
        return (proc / str(pid)).stat().st_uid
    except OSError:
        return -1


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE)
    except OSError:
        return b""


def _text(text: str) -> str:
    """A part of a name: what is not plain is percent-encoded, so that no part can pass for two."""
    return quote(text, safe=_SAFE)[:MAX_PART]
