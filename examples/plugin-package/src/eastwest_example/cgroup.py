"""Says in which control group a process runs: ``cgroup:path:/system.slice/orders.service``, and all groups above."""

from __future__ import annotations

import asyncio
from pathlib import Path, PurePosixPath
from typing import Self

import msgspec

from eastwest.attest.workload import AttestationFailed, Process, ProcessGone, WorkloadContext
from eastwest.spiffe.selector import Selector

MAX_BYTES = 64 * 1024


class CgroupAttestor:
    """Reads ``/proc/PID/cgroup`` (cgroups(7), version 2: the line that begins with ``0::``)."""

    name = "cgroup"

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``parents``: whether the groups above a process's own are vouched for too."""

        parents: bool = True

    def __init__(self, *, parents: bool = True) -> None:
        self._parents = parents

    @classmethod
    def from_options(cls, options: Options, _context: WorkloadContext) -> Self:
        """As the entry point makes it."""
        return cls(parents=options.parents)

    async def attest(self, process: Process) -> frozenset[Selector]:
        """The process's groups. The agent itself checks afterwards that the pid still is the same process."""
        return await asyncio.to_thread(self._read, process.pid)

    def _read(self, pid: int) -> frozenset[Selector]:
        try:
            with Path(f"/proc/{pid}/cgroup").open("rb") as file:
                text = file.read(MAX_BYTES).decode("utf-8", "replace")
        except FileNotFoundError:
            raise ProcessGone(f"process {pid} ended while it was attested") from None
        except OSError as error:
            raise AttestationFailed(f"the control group of process {pid} cannot be read: {error.strerror}") from None
        own = next((line.removeprefix("0::") for line in text.splitlines() if line.startswith("0::/")), None)
        if own is None:
            return frozenset()
        group = PurePosixPath(own)
        groups = [group, *group.parents] if self._parents else [group]
        return frozenset(Selector(self.name, f"path:{each}") for each in groups)
