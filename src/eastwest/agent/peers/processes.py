"""Which process holds a socket, and what can be said of it.

Vouched for by the kernel: the ``uid`` that made the socket, and the ``unit`` (the process's control group, which only
root moves). A claim of the process: ``exe`` and ``program``, for it runs what it likes from where it likes. Of several
processes that hold a socket those of the user that made it count, and of these the one that started first: a set-uid
program or a child that inherited it is not taken for who called. Processes of one user may lend each other sockets.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable, Iterator
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
_MAX_FILE = 4096
_SAFE = "/._-@+,=:"
_INTERPRETER = re.compile(r"(python|php|ruby|perl|node|bash|dash|sh|java|lua)[0-9.]*(-fpm|-cgi)?")
_UNIT_ENDS = (".service", ".scope")


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a socket; ``started`` (ticks since boot) tells it from a later one of its pid."""

    pid: int
    started: int


def candidates(uid: int, proc: Path = PROC) -> list[int]:
    """Pids of processes with this effective user; of all others where there is none such, at the end."""
    mine: list[int] = []
    others: list[int] = []
    for number, entry in enumerate(os.scandir(proc)):
        if number > MAX_PROCESSES:
            break
        if entry.name.isdecimal():
            with suppress(OSError):
                (mine if entry.stat().st_uid == uid else others).append(int(entry.name))
    # Root may have made a socket and become somebody else since.
    return [*mine, *others]


def holder_of(inode: int, pids: Iterable[int], uid: int, proc: Path = PROC) -> Holder | None:
    """The process among ``pids`` that holds the socket; None where none does, or none may be looked at."""
    found: list[tuple[bool, int, int]] = []
    for pid in pids:
        other = _uid_of(pid, proc) != uid
        if found and other and not found[0][0]:
            break  # those of the socket's own user come first
        if _holds(pid, inode, proc):
            found.append((other, started_at(pid) if proc == PROC else pid, pid))
            found.sort()
    if not found:
        return None
    _, started, pid = found[0]
    return Holder(pid, started) if started else None


def name_of(uid: int, holder: Holder | None, spiffe_id: str = "", proc: Path = PROC) -> str:
    """``uid:33 user:www-data unit:reports.service exe:/usr/bin/php program:report.php id:spiffe://...``

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
    yield "program", _text(program_of(_read(place / "cmdline"), executable))


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


def _holds(pid: int, inode: int, proc: Path) -> bool:
    wanted = f"socket:[{inode}]"
    directory = proc / str(pid) / "fd"
    try:
        with os.scandir(directory) as entries:
            for number, entry in enumerate(entries):
                if number > MAX_DESCRIPTORS:
                    return False
                with suppress(OSError):
                    if os.readlink(entry.path) == wanted:  # noqa: PTH115 - thousands of them: a Path for each costs more
                        return True
    except OSError:
        pass
    return False


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
