"""Workload attestation by what the local kernel knows of a process: user, groups, executable.

Selectors, named as SPIRE names them: ``unix:uid``, ``unix:user``, ``unix:gid``, ``unix:group``,
``unix:supplementary_gid``, ``unix:supplementary_group``, ``unix:path``, ``unix:sha256``. A name that the system
does not know, and an executable that this process may not look at, are left out.
"""

from __future__ import annotations

import asyncio
import grp
import hashlib
import os
import pwd
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from eastwest.attest.workload import AttestationFailed, Process, ProcessGone, WorkloadContext
from eastwest.spiffe.selector import Selector

DEFAULT_HASH_LIMIT = 512 * 1024 * 1024
"""Bytes; larger executables get no ``unix:sha256``."""
MAX_DIGESTS = 1024
MAX_WAITING = 16
"""Different executables of one user that wait to be hashed; a call that brings another one must come again."""

_DELETED = " (deleted)"


class UnixAttestor:
    """Attests processes of this machine through ``/proc``.

    The effective uid and gid must be those that the process had when it connected. Else a process could connect,
    leave the socket to a child, become a set-uid program, and lend the child that program's user.

    ``unix:path`` is vouched for only if that path, as seen from here, is the file that runs (or was, and has been
    deleted): in a mount namespace of its own any user can put any file at any path.
    """

    name = "unix"

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``[workload_attestors.unix]``: whether to look at executables, and how large ones (bytes) are hashed."""

        executables: bool = True
        hash_limit: int = DEFAULT_HASH_LIMIT

    def __init__(self, *, executables: bool = True, hash_limit: int = DEFAULT_HASH_LIMIT) -> None:
        self._executables = executables
        self._hash_limit = hash_limit
        self._digests: OrderedDict[_File, str] = OrderedDict()
        self._hashing: dict[int, dict[_File, asyncio.Task[str | None]]] = {}  # by user
        # A thread of its own: hashing must not keep those waiting who need none.
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="executable-hash")
        self._turn = asyncio.Lock()

    @classmethod
    def from_options(cls, options: Options, _context: WorkloadContext) -> Self:
        """As the entry point makes it."""
        return cls(executables=options.executables, hash_limit=options.hash_limit)

    async def attest(self, process: Process) -> frozenset[Selector]:
        # Names may come from a directory service, which can be slow; hence a thread for all of it.
        facts = await asyncio.to_thread(_read, process, self._executables)
        selectors = set(facts.selectors)
        if facts.file is not None and facts.file.size <= self._hash_limit:
            digest = await self._digest(process, facts.file)
            if digest is not None:
                selectors.add(Selector(self.name, f"sha256:{digest}"))
        return frozenset(selectors)

    async def _digest(self, process: Process, file: _File) -> str | None:
        while file not in self._digests:
            waiting = self._hashing.setdefault(process.uid, {})
            task = waiting.get(file)
            if task is not None:
                # Callers that start together mostly run the same file; if the one it is read from ends, another's turn.
                with suppress(ProcessGone):
                    return await asyncio.shield(task)
                continue
            if len(waiting) >= MAX_WAITING:
                raise AttestationFailed(f"too many executables of user {process.uid} wait to be hashed")
            earlier = next(reversed(waiting.values()), None)
            task = waiting[file] = asyncio.ensure_future(self._hashed(process, file, earlier))
            task.add_done_callback(_retrieve)
            # Shielded: a caller that hangs up must not make room for the next one while its file is still read.
            return await asyncio.shield(task)
        self._digests.move_to_end(file)
        return self._digests[file]

    async def _hashed(self, process: Process, file: _File, earlier: asyncio.Task[str | None] | None) -> str | None:
        """Hash one file after the ``earlier`` one of its user: users take turns, none waits for all of another's."""
        waiting = self._hashing[process.uid]
        try:
            if earlier is not None:
                await asyncio.wait([earlier])
            async with self._turn:
                digest = self._digests.get(file)
                if digest is None:
                    loop = asyncio.get_running_loop()
                    digest = await loop.run_in_executor(self._hasher, _hash, process.pid, file)
            if digest is not None:
                self._digests[file] = digest
                while len(self._digests) > MAX_DIGESTS:
                    self._digests.popitem(last=False)
            return digest
        finally:
            del waiting[file]
            if not waiting:
                del self._hashing[process.uid]


@dataclass(frozen=True, slots=True)
class _File:
    """A file as long as nobody changes it."""

    device: int
    inode: int
    changed_ns: int
    modified_ns: int
    size: int

    @classmethod
    def of(cls, status: os.stat_result) -> _File:
        return cls(status.st_dev, status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size)

    def is_same_inode(self, status: os.stat_result) -> bool:
        return (self.device, self.inode) == (status.st_dev, status.st_ino)


@dataclass(frozen=True, slots=True)
class _Facts:
    selectors: frozenset[Selector]
    file: _File | None


def _read(process: Process, executables: bool) -> _Facts:
    """Everything but the hash. The executable is looked at twice, so that no two programs are mixed."""
    proc = Path(f"/proc/{process.pid}")
    try:
        file = _executable(proc) if executables else None
        selectors = set(_credentials(process, (proc / "status").read_text(errors="replace")))
        if file is not None:
            path = _path(proc, file)
            if path is not None:
                selectors.add(Selector("unix", f"path:{path}"))
            if _executable(proc) != file:
                raise ProcessGone(f"process {process.pid} became another program while it was attested")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(f"process {process.pid} ended while it was attested") from None
    except OSError as error:
        raise AttestationFailed(f"process {process.pid} cannot be looked at: {error.strerror}") from error
    return _Facts(frozenset(selectors), file)


def _credentials(process: Process, status: str) -> Iterator[Selector]:
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    # Real, effective, saved, file system.
    uid, gid = int(fields["Uid"].split()[1]), int(fields["Gid"].split()[1])
    if (uid, gid) != (process.uid, process.gid):
        raise ProcessGone(f"process {process.pid} became another user after it had connected")
    yield Selector("unix", f"uid:{uid}")
    yield Selector("unix", f"gid:{gid}")
    with suppress(KeyError):
        yield Selector("unix", f"user:{pwd.getpwuid(uid).pw_name}")
    with suppress(KeyError):
        yield Selector("unix", f"group:{grp.getgrgid(gid).gr_name}")
    for supplementary in map(int, fields["Groups"].split()):
        yield Selector("unix", f"supplementary_gid:{supplementary}")
        with suppress(KeyError):
            yield Selector("unix", f"supplementary_group:{grp.getgrgid(supplementary).gr_name}")


def _executable(proc: Path) -> _File | None:
    try:
        return _File.of((proc / "exe").stat())
    except PermissionError:
        return None


def _path(proc: Path, file: _File) -> str | None:
    try:
        link = str((proc / "exe").readlink())
        link.encode()
        if _is_at(file, link):
            return link
        # The kernel's mark counts only where no file really bears that name.
        if link.endswith(_DELETED) and not os.path.lexists(link) and _shares_mounts(proc):
            return link.removesuffix(_DELETED)
    except (PermissionError, UnicodeEncodeError):
        pass
    return None


def _is_at(file: _File, path: str) -> bool:
    try:
        return file.is_same_inode(Path(path).stat())
    except OSError:
        return False


def _shares_mounts(proc: Path) -> bool:
    return (proc / "ns/mnt").readlink() == Path("/proc/self/ns/mnt").readlink()


def _retrieve(task: asyncio.Task[str | None]) -> None:
    """Take note of an error that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


def _hash(pid: int, file: _File) -> str | None:
    try:
        with Path(f"/proc/{pid}/exe").open("rb") as executable:
            if _File.of(os.fstat(executable.fileno())) != file:
                raise ProcessGone(f"process {pid} became another program while it was attested")
            return hashlib.file_digest(executable, "sha256").hexdigest()
    except PermissionError:  # a file that may be run and not read
        return None
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(f"process {pid} ended while it was attested") from None
    except OSError as error:
        raise AttestationFailed(f"the program of process {pid} cannot be read: {error.strerror}") from error
