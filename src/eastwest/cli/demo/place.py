"""Where one demo lives: its workloads, directories, ports and uids, chosen so that two demos never meet."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eastwest.errors import Exhausted, FailedPrecondition, InvalidInput
from eastwest.spiffe.id import TrustDomain

TRUST_DOMAIN = TrustDomain("saas.example")
LOOPBACK = "127.0.0.1"
_MAX_SOCKET_PATH = 107  # sun_path holds 108 bytes, the last of them zero
_UID_RANGE = range(40_000, 59_000, 10)  # ordinary accounts start at 1,000; system ranges start at 60,000
_NEEDED_CAPABILITIES = (0, 1, 3, 5, 6, 7)  # CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload of the demo's estate; ``serves`` says whether others call it."""

    name: str
    domain: str
    tenants: tuple[str, ...] = ()
    serves: bool = True

    @property
    def spiffe_id(self) -> str:
        return TRUST_DOMAIN.id(f"/prod/{self.domain}/{self.name}").__str__()


WORKLOADS = (
    Workload("storefront", "commerce", ("acme", "globex")),
    Workload("billing", "commerce"),
    Workload("reporting", "commerce", ("acme", "globex")),
    Workload("notification", "messaging", ("acme",)),
    Workload("admin", "platform"),
    Workload("console", "platform", serves=False),
)
SERVICES = tuple(workload for workload in WORKLOADS if workload.serves)


@dataclass(frozen=True, slots=True)
class Uids:
    """A uid for each workload, or ``base`` None: all run as we do, and ``why`` that is so."""

    base: int | None
    why: str = ""
    _hold: socket.socket | None = field(default=None, repr=False)

    def of(self, workload: Workload) -> int | None:
        """The uid to run ``workload`` as; None means ours."""
        return None if self.base is None else self.base + WORKLOADS.index(workload)

    def release(self) -> None:
        """Hold them no longer; those that processes still run under are seen in /proc."""
        if self._hold is not None:
            self._hold.close()


class Ports:
    """Loopback ports held for this demo: bound but not listening, so that nobody else is given them.

    A server that sets SO_REUSEADDR, as Envoy and asyncio do, can still listen there.
    """

    def __init__(self, base: int | None = None) -> None:
        """``base``: take the ports from there upwards; None: any free ones."""
        self._next = base
        self._held: list[socket.socket] = []

    def take(self) -> int:
        """One more port; raises ``FailedPrecondition`` when it is in use."""
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wanted = self._next or 0
        try:
            held.bind((LOOPBACK, wanted))
        except (OSError, OverflowError) as error:
            held.close()
            raise FailedPrecondition(
                f"port {wanted} cannot be used: {error}", fix="choose another --port-base, or none"
            ) from None
        self._held.append(held)
        if self._next is not None:
            self._next += 1
        return int(held.getsockname()[1])

    def close(self) -> None:
        """Hold them no longer."""
        for held in self._held:
            held.close()


@dataclass(frozen=True, slots=True)
class Place:
    """The directories and sockets of one demo below ``data``."""

    data: Path
    uids: Uids

    @property
    def home(self) -> Path:
        """What belongs to the demo itself."""
        return self.data / "demo"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def record(self) -> Path:
        return self.home / "processes.json"

    @property
    def estate(self) -> Path:
        return self.home / "estate"

    @property
    def internal_key(self) -> Path:
        """The one key that all services of the weak outcome share."""
        return self.home / "internal.key"

    def directory(self, workload: Workload, outcome: str = "run") -> Path:
        """The directory that only ``workload`` may enter."""
        return self.data / outcome / workload.name

    def app_socket(self, workload: Workload, outcome: str = "run") -> Path:
        return self.directory(workload, outcome) / "app.sock"

    def egress_socket(self, workload: Workload, outcome: str = "run") -> Path:
        return self.directory(workload, outcome) / "out.sock"

    def admin_socket(self, workload: Workload, outcome: str = "run") -> Path:
        """Envoy's own administration."""
        return self.directory(workload, outcome) / "envoy.sock"

    def envoy(self, workload: Workload) -> Path:
        """The Envoy binary as ``workload`` runs it: a name of its own for the same file."""
        return self.data / "bin" / workload.name / "envoy"

    def make(self, envoy: Path) -> None:
        """Make the directories, and a name for the Envoy binary for each workload.

        Raises ``InvalidInput`` when socket paths would be too long and ``FailedPrecondition`` when programs
        cannot be run from there.
        """
        longest = max(len(os.fsencode(self.admin_socket(workload))) for workload in WORKLOADS)
        longest = max(longest, len(os.fsencode(self.data / "agent" / "agent.sock")))
        if longest > _MAX_SOCKET_PATH:
            raise InvalidInput(
                f"socket paths under {self.data} would be {longest} bytes long, of {_MAX_SOCKET_PATH} possible",
                fix="choose a shorter --data DIR",
            )
        if os.statvfs(self.data).f_flag & os.ST_NOEXEC:
            raise FailedPrecondition(
                f"programs cannot be run from {self.data}: it is mounted noexec", fix="choose another --data DIR"
            )
        shared = 0o711 if self.uids.base is not None else 0o700
        self.data.chmod(shared)
        for directory in (self.home, self.logs, self.estate):
            directory.mkdir(mode=0o700)
        for outcome in ("weak", "run", "bin"):
            (self.data / outcome).mkdir()
            (self.data / outcome).chmod(shared)
        source = envoy
        for workload in WORKLOADS:
            for outcome in ("weak", "run"):
                self._own(self.directory(workload, outcome), workload)
            binary = self.envoy(workload)
            binary.parent.mkdir()
            binary.parent.chmod(shared)
            source = _link(source, binary)

    def _own(self, directory: Path, workload: Workload) -> None:
        directory.mkdir(mode=0o700)
        uid = self.uids.of(workload)
        if uid is not None:
            os.chown(directory, uid, uid)


def choose_uids(data: Path) -> Uids:
    """A uid for each workload where root may do that and other users can reach ``data``; else none, and why."""
    if os.geteuid() != 0:
        return Uids(None, "not started as root, so all workloads run as one user")
    missing = [number for number in _NEEDED_CAPABILITIES if not _capabilities() >> number & 1]
    if missing:
        return Uids(None, "this root may not change its uid (capabilities are missing)")
    if (closed := _closed_directory(data)) is not None:
        return Uids(None, f"other users cannot enter {closed}")
    ranges = [wanted for base in _UID_RANGE if _mapped(wanted := range(base, base + len(WORKLOADS)))]
    if not ranges:
        return Uids(None, "this user namespace has no other uids")
    used = _uids_in_use()
    for wanted in ranges:
        if used.isdisjoint(wanted) and (hold := _reserve(wanted[0])) is not None:
            return Uids(wanted[0], _hold=hold)
    raise Exhausted("no free uids for the workloads", fix="end other demos: eastwest demo --stop DIR")


def _reserve(base: int) -> socket.socket | None:
    """Hold uids against other demos that choose now: an abstract socket lives as long as we do."""
    hold = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        hold.bind(f"\0eastwest-demo-uids-{base}")
    except OSError:
        hold.close()
        return None
    return hold


def _capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _closed_directory(data: Path) -> Path | None:
    """The first directory above ``data`` that others may not enter."""
    for directory in reversed(data.absolute().parents):
        if not directory.stat().st_mode & stat.S_IXOTH:
            return directory
    return None


def _uids_in_use() -> set[int]:
    used = {entry.pw_uid for entry in pwd.getpwall()}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                used.add(process.stat().st_uid)
    return used


def _mapped(wanted: Sequence[int]) -> bool:
    """Whether this user namespace has those uids."""
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = (int(text) for text in line.split())
        if first <= wanted[0] and wanted[-1] < first + count:
            return True
    return False


def _link(source: Path, target: Path) -> Path:
    """Make ``target`` a hard link of ``source``, or a copy where that is refused; returns what to link next from."""
    import shutil

    try:
        os.link(source, target)
    except OSError:  # another file system, or a file that is not ours (fs.protected_hardlinks)
        shutil.copyfile(source, target)
        target.chmod(0o755)
        return target
    return source
