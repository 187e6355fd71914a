"""Reads and writes of one resource that are guarded unlike, and operations that are classified unlike their kin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from eastwest.policy.estate import Operation, Sensitivity, Service
from eastwest.policy.lint.finding import CHANGING, Finding, Ground, counted, some
from eastwest.policy.operations import method_of, tenant_source
from eastwest.policy.reach import Held, Way

_READS = frozenset({Sensitivity.OPEN, Sensitivity.READ, Sensitivity.RESTRICTED_READ})
_READING_METHODS = frozenset({"GET", "HEAD", ""})
_CHANGING_METHODS = frozenset({"PUT", "PATCH", "DELETE"})
_CHANGING_VERBS = frozenset(
    {
        *("create", "update", "delete", "write", "set", "put", "patch", "remove", "add", "send", "grant", "revoke"),
        *("disable", "enable", "mute", "void", "cancel", "refund", "approve", "reject", "import", "reset", "rotate"),
        *("edit", "modify", "insert", "upsert", "replace", "purge", "drop", "assign", "transfer", "publish"),
        *("append", "submit", "issue", "close", "lock", "unlock", "ban", "block", "unblock", "suspend", "resume"),
        *("activate", "deactivate", "archive", "restore", "rename", "move", "merge", "pay", "charge", "reserve"),
        *("register", "invite", "promote", "demote", "deploy", "install", "start", "stop", "wipe", "erase", "destroy"),
    }
)
MOST = 0.8
"""A read that this share of the environment's callers may do is open to most."""
ENOUGH = 4
"""Callers of an environment below which there is no most."""
FEW = 2
"""More callers are many more than a few others where they are more than this many times as many."""


def parity(ground: Ground) -> Iterator[Finding]:
    """By resource of a service: ``service:resource:verb``."""
    for service in ground.estate.services:
        resources: dict[str, list[Operation]] = {}
        for operation in service.operations:
            resources.setdefault(_resource(operation.name), []).append(operation)
        for operations in resources.values():
            reads = [o for o in operations if o.sensitivity in _READS and not _changes(o)]
            writes = [o for o in operations if o.sensitivity in CHANGING]
            yield from _low_reads(ground, service, reads, writes)
            if reads and writes:
                yield from _unlike(ground, service, reads, writes)
    yield from _low_writes(ground)
    yield from _data(ground)


def _low_reads(
    ground: Ground, service: Service, reads: Sequence[Operation], writes: Sequence[Operation]
) -> Iterator[Finding]:
    for read in reads:
        if read.sensitivity is Sensitivity.OPEN and writes:
            yield ground.finding(
                "read-classified-low",
                ground.estate.position("operation", read.name),
                f"{read.name} is open, and {some(o.name for o in writes)} of the same resource "
                f"{'is' if len(writes) == 1 else 'are'} {_classes(writes)}",
                service=service.service,
            )


def _unlike(
    ground: Ground, service: Service, reads: Sequence[Operation], writes: Sequence[Operation]
) -> Iterator[Finding]:
    writers: dict[str, Way] = {}
    for write in writes:
        for caller, way in ground.allowed(write.name).items():
            if caller != service.workload:
                known = writers.get(caller, way)
                writers[caller] = min(known, way, key=lambda one: one.held.rank)
    readers: dict[str, set[str]] = {}
    everybody = ground.population[ground.environment_of[service.service]] - 1
    for read in reads:
        allowed = {name: way for name, way in ground.allowed(read.name).items() if name != service.workload}
        for name in allowed:
            readers.setdefault(name, set()).add(read.name)
        problem = _wider(ground, service, read, writes, allowed, writers, everybody)
        if problem:
            yield ground.finding(
                "read-wider-than-write",
                ground.estate.position("operation", read.name),
                f"{read.name} is open to {counted(allowed, 'caller')}, {problem}",
                service=service.service,
                pairs=[(name, read.name) for name in sorted(allowed)[:3]],
            )
    yield from _wider_writes(ground, service, reads, writes)
    free = {name for name, way in writers.items() if way.held is Held.NOTHING}  # the others bring a token each time
    beyond = free - readers.keys()
    if readers and beyond and len(free) > FEW * len(readers):
        yield ground.finding(
            "write-wider-than-read",
            ground.estate.position("operation", writes[0].name),
            f"{some(o.name for o in writes)} is open to {counted(free, 'caller')}, and its reads to {len(readers)}: "
            f"{some(beyond)} may write what they may not read",
            service=service.service,
            pairs=[(name, o.name) for name in sorted(beyond)[:3] for o in writes if name in ground.allowed(o.name)][:3],
        )


def _wider_writes(
    ground: Ground, service: Service, reads: Sequence[Operation], writes: Sequence[Operation]
) -> Iterator[Finding]:
    """Reads that are held to tenants, and changes that are not."""
    closed = [read for read in reads if read.sensitivity is not Sensitivity.OPEN]
    readers = [ground.allowed(read.name) for read in closed]
    per_tenant = bool(closed) and all(tenant_source(service, read) is not None for read in closed)
    held = any(readers) and not any(_any_tenant(ground, allowed) for allowed in readers)
    for write in writes:
        allowed = {name: way for name, way in ground.allowed(write.name).items() if name != service.workload}
        problem = ""
        if per_tenant and tenant_source(service, write) is None and _without_token(allowed):
            problem = f"whatever the tenant, and {some(read.name for read in closed)} is per tenant"
        elif per_tenant and held and _any_tenant(ground, allowed):
            problem = f"for any tenant, and reads are held to the callers' own ({some(read.name for read in closed)})"
        if problem:
            yield ground.finding(
                "write-wider-than-read",
                ground.estate.position("operation", write.name),
                f"{write.name} is open to {counted(allowed, 'caller')}, {problem}",
                service=service.service,
                pairs=[(name, write.name) for name in sorted(allowed)[:3]],
            )


def _without_token(allowed: Mapping[str, Way]) -> bool:
    return any(way.held is Held.NOTHING for way in allowed.values())


def _wider(
    ground: Ground,
    service: Service,
    read: Operation,
    writes: Sequence[Operation],
    readers: Mapping[str, Way],
    writers: Mapping[str, Way],
    everybody: int,
) -> str:
    """In which way a read is open and the writes are not; "" when it is not."""
    if not readers or read.sensitivity is Sensitivity.OPEN:
        return ""  # an open read is told as classified too low
    bound = [w for w in writes if tenant_source(service, w) is not None]
    if len(bound) == len(writes) and tenant_source(service, read) is None:
        return f"whatever the tenant, and {some(w.name for w in writes)} is per tenant"
    if _any_tenant(ground, readers) and writers and not _any_tenant(ground, writers):
        return f"for any tenant, and writes are held to the callers' own ({some(w.name for w in writes)})"
    if everybody >= ENOUGH and len(readers) >= MOST * everybody and len(readers) > FEW * max(1, len(writers)):
        return f"most of all there are, and {some(w.name for w in writes)} to {len(writers)}"
    return ""


def _any_tenant(ground: Ground, allowed: Mapping[str, Way]) -> bool:
    """Whether callers that serve tenants are allowed others' too."""
    return any(
        way.held is Held.NOTHING
        and way.tenants is not None
        and way.tenants.any_other
        and "tenants" in ground.callers[name].attributes
        for name, way in allowed.items()
    )


def _low_writes(ground: Ground) -> Iterator[Finding]:
    for service in ground.estate.services:
        for operation in service.operations:
            if operation.sensitivity in _READS and _changes(operation):
                yield ground.finding(
                    "write-classified-low",
                    ground.estate.position("operation", operation.name),
                    f"{operation.name} ({method_of(operation) or 'tcp'}) is {operation.sensitivity}, "
                    "and by its method or verb it changes something",
                    service=service.service,
                )


def _data(ground: Ground) -> Iterator[Finding]:
    """Reads of one class of data that are restricted in one place and not in another.

    A read that says no class is of what the writes of the same resource say.
    """
    restricted: dict[str, str] = {}
    reads: list[tuple[Service, Operation, str, str]] = []
    for service in ground.estate.services:
        written = {_resource(o.name): o for o in service.operations if o.data and o.sensitivity in CHANGING}
        for operation in service.operations:
            write = written.get(_resource(operation.name))
            data = operation.data or (write.data if write is not None else "") or ""
            if data and not _changes(operation):
                if operation.sensitivity is Sensitivity.RESTRICTED_READ and operation.data:
                    restricted.setdefault(data, operation.name)
                elif operation.sensitivity is Sensitivity.READ or (operation.data and operation.sensitivity in _READS):
                    source = "" if operation.data or write is None else f", as {write.name} writes it,"
                    reads.append((service, operation, data, source))
    for service, operation, data, source in reads:
        other = restricted.get(data)
        if other is not None:
            yield ground.finding(
                "read-classified-low",
                ground.estate.position("operation", operation.name),
                f"{operation.name} reads {data} data{source} and is {operation.sensitivity}; {other} reads such data "
                "and is restricted-read",
                service=service.service,
            )


def _resource(name: str) -> str:
    return name.split(":")[1].removesuffix("s")


def _changes(operation: Operation) -> bool:
    method, verb = method_of(operation), operation.name.split(":")[2]
    if method in _READING_METHODS and operation.match.grpc is None:
        return method == "" and verb in _CHANGING_VERBS
    return method in _CHANGING_METHODS or verb.partition("-")[0] in _CHANGING_VERBS


def _classes(operations: Sequence[Operation]) -> str:
    return " and ".join(sorted({str(o.sensitivity) for o in operations}))
