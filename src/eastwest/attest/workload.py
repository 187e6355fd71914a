"""What is true of a process that asks for an identity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from eastwest.clock import Clock
from eastwest.errors import Unavailable
from eastwest.spiffe.selector import Selector


class AttestationFailed(Unavailable):
    """Nothing certain can be said of the caller now."""


class ProcessGone(AttestationFailed):
    """The caller ended, or became another program or user, while it was looked at."""


class Process(Protocol):
    """A caller, held in such a way that its pid cannot come to mean another process unnoticed.

    ``uid`` and ``gid`` are the effective ones at the time it connected.
    """

    @property
    def pid(self) -> int: ...

    @property
    def uid(self) -> int: ...

    @property
    def gid(self) -> int: ...

    def is_alive(self) -> bool:
        """Whether the pid still is this process. What was read of the pid before counts only if this holds after."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadContext:
    """What a workload attestor plug-in is given."""

    clock: Clock


class WorkloadAttestor(Protocol):
    """Says what is true of a process, in selectors of one type."""

    @property
    def name(self) -> str:
        """The type of its selectors, such as ``unix``."""
        ...

    async def attest(self, process: Process) -> frozenset[Selector]:
        """All that can be vouched for; a fact that cannot be had is left out.

        Raises ``ProcessGone`` when the process changed meanwhile, ``AttestationFailed`` when facts should be
        there and cannot be read. It need not ask ``is_alive``: ``attest_process`` does, after it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a process, and what is not: ``failed`` has attestors by name with the reason of each."""

    selectors: frozenset[Selector]
    failed: Mapping[str, AttestationFailed]

    def could_earn(self, wanted: frozenset[Selector]) -> bool:
        """Whether a process with what is missing added might have all of ``wanted``, and has not with what is known."""
        missing = wanted - self.selectors
        return bool(missing) and all(selector.type in self.failed for selector in missing)


async def gather_evidence(process: Process, attestors: Iterable[WorkloadAttestor]) -> Evidence:
    """What the attestors that can be asked say of ``process``, and which could not.

    Raises ``ProcessGone`` only. Whoever uses a part must ask ``could_earn`` first: to answer "no identity" or a part
    of the identities because an attestor is down is a mistake that clients do not repair by asking again.
    """
    selectors: set[Selector] = set()
    failed: dict[str, AttestationFailed] = {}
    for attestor in attestors:
        try:
            selectors |= await attestor.attest(process)
        except ProcessGone:
            raise
        except AttestationFailed as error:
            failed[attestor.name] = error
    if not process.is_alive():
        raise ProcessGone(f"process {process.pid} ended while it was attested")
    return Evidence(frozenset(selectors), failed)


async def attest_process(process: Process, attestors: Iterable[WorkloadAttestor]) -> frozenset[Selector]:
    """What all attestors together say of ``process``; everything or an error, never a part.

    A part would take identities away from a caller that has a right to them, and clients do not retry that.
    """
    selectors: set[Selector] = set()
    for attestor in attestors:
        selectors |= await attestor.attest(process)
    if not process.is_alive():
        raise ProcessGone(f"process {process.pid} ended while it was attested")
    return frozenset(selectors)
