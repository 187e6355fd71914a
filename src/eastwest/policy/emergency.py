"""What is allowed by an emergency alone: marked in the table, so that each such decision says so.

The mark changes no answer. ``newly`` is by operation and caller; ``*`` for the operation stands for all, and no tenants
for any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import msgspec

from eastwest.policy.enforcement import Inbound, OperationRules, Sidecar
from eastwest.policy.gains import ANY_OTHER
from eastwest.policy.risk import Widening

EVERY = "*"
Newly = Mapping[str, Mapping[str, tuple[str, ...]]]


def newly(found: Iterable[Widening]) -> Newly:
    """The callers that the widenings let do something, or let others be."""
    told: dict[str, dict[str, tuple[str, ...]]] = {}
    for widening in found:
        operation = {"access": widening.subject, "identity": EVERY}.get(widening.kind)
        for gain in widening.gains if operation is not None else ():
            known = told.setdefault(operation or "", {})
            before = known.get(gain.caller)
            everybody = before == () or gain.tenant in {"", ANY_OTHER}
            known[gain.caller] = () if everybody else tuple(sorted({*(before or ()), gain.tenant}))
    return told


def marked(sidecars: Mapping[str, Sidecar], told: Newly) -> Mapping[str, Sidecar]:
    """The same tables, with what holds by the emergency alone."""
    return {name: _sidecar(sidecar, told) for name, sidecar in sidecars.items()} if told else sidecars


def is_emergency(inbound: Inbound, operation: str, caller: str, tenant: str) -> bool:
    """Whether the call would not have been allowed without the emergency."""
    for one in inbound.operations:
        if one.name == operation:
            tenants = one.emergency.get(caller)
            return tenants is not None and (not tenants or tenant in tenants)
    return False


def _sidecar(sidecar: Sidecar, told: Newly) -> Sidecar:
    inbound = tuple(
        msgspec.structs.replace(one, operations=tuple(_operation(operation, told) for operation in one.operations))
        for one in sidecar.inbound
    )
    if inbound == sidecar.inbound:
        return sidecar
    mark = hashlib.sha256(msgspec.json.encode(inbound, order="deterministic")).hexdigest()[:12]
    return msgspec.structs.replace(sidecar, inbound=inbound, version=f"{sidecar.version}-emergency-{mark}")


def _operation(operation: OperationRules, told: Newly) -> OperationRules:
    here = {**told.get(EVERY, {}), **told.get(operation.name, {})}
    return msgspec.structs.replace(operation, emergency=here) if here and operation.cells else operation
