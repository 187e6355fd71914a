"""Canaries: who asks, and what, to prove that an enforcement point does what its table says.

A canary stands for a registered caller: while a verify run lasts, enforcement points put it into the very cells that
this caller is in (``with_canaries``), so that it gets that caller's answer and nobody else's. Which callers are stood
for is a function of the table alone, so whoever asks and whoever enforces agree without a word. What a canary is
allowed never reaches an application (``eastwest.mesh.inbound``), and outside a run it is a caller that nobody knows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import msgspec

from eastwest.policy.enforcement import (
    Cell,
    HttpMatch,
    Inbound,
    OperationRules,
    Rule,
    Sidecar,
    TenantRules,
    Verdict,
)
from eastwest.policy.operations import can_be_tenant, wire_form
from eastwest.policy.oracle import lookup
from eastwest.spiffe.id import MAX_ID_LENGTH, SCHEME

PREFIX = "/eastwest/canary/"
MAX_CANARIES = 64
"""Callers of one service that are stood for; outcomes beyond them are not proved."""
MAX_CHECKS = 8
"""Requests that one operation is asked: its distinct answers, those that refuse first."""
FILLER = "eastwest-canary"
"""The value of path parameters that decide nothing, and a tenant that no policy names."""
SNI_SUFFIX = ".canary.eastwest.invalid"
OWN_FILE = "(of its own file)"
"""Ends the name of what an Envoy has from the file that it was started with, where nothing such is meant to be."""
REFUSED_HANDSHAKE = "HANDSHAKE_REFUSED"
"""What is expected where no TLS connection may come about."""
MAX_LEASE = 600
"""Seconds for which one run's canaries may count."""

Kind = Literal[
    "operation",
    "unknown-caller",
    "no-certificate",
    "foreign-root",
    "wrong-trust-domain",
    "expired",
    "plaintext",
]


class Check(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing to try at a point, and the code (``DecisionCode`` or ``REFUSED_HANDSHAKE``) that must come of it."""

    kind: Kind
    expected: str
    caller: str = ""  # SPIFFE ID of the canary
    stands_for: str = ""  # SPIFFE ID of the registered caller; "" for nobody
    method: str = ""
    path: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    operation: str = ""
    reads: bool = False  # an operation that only reads


class Point(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One enforcement point: a service at one address, as the agent that runs it was told."""

    service: str
    spiffe_id: str  # that it must prove
    host: str
    port: int
    protocol: str
    strict: bool
    version: str  # of the service's rules, as decisions carry it
    policy_version: str = ""
    agent: str = ""  # SPIFFE ID; "" where no agent is known to run it
    note: str = ""  # why less is proved here than elsewhere
    settling: bool = False  # a sidecar there has not acknowledged yet what it was given
    cut_off: bool = False  # none of its agents is there, so that nobody tells it of a run
    checks: tuple[Check, ...] = ()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What one run does. ``roots`` are the trust domain's, as DER; ``canaries`` need an SVID each."""

    run: str
    trust_domain: str
    roots: tuple[bytes, ...]
    canaries: tuple[str, ...]
    points: tuple[Point, ...]


class Observation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one check. ``check`` is its place in the point's; -1: the point could not be reached at all.

    ``version``, ``enforced`` and ``decided`` are what the point itself says of its decision, where it says something.
    """

    point: int
    check: int
    happened: str  # a code, REFUSED_HANDSHAKE, or words
    version: str = ""
    enforced: bool = False
    decided: bool = False
    status: int = 0
    problem: str = ""  # why there was no answer: refused, timeout, server-certificate, tls


class Examination(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent found when it looked at one sidecar of its node, beside what it gave it.

    ``listening`` are TCP ports beyond the intended, as ``address:port of process``; ``differs`` resources that the
    Envoy holds in another form, ``missing`` those that it lacks, ``foreign`` those that nobody gave it. ``unread`` says
    what could not be looked at, and why. ``meant`` are the sockets that the sidecar and its application are meant to
    listen on, and ``strangers`` the entries of ``listening`` that would be no drift if another agent's sidecar means
    theirs; both by a name that a socket has at no other machine.
    """

    listening: tuple[str, ...] = ()
    meant: tuple[str, ...] = ()
    strangers: dict[str, str] = {}
    differs: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def canary_of(trust_domain: str, caller: str) -> str:
    """The SPIFFE ID that stands for ``caller`` in ``trust_domain``."""
    return f"{SCHEME}{trust_domain}{PREFIX}as/{caller.removeprefix(SCHEME)}"


def stranger(trust_domain: str) -> str:
    """A canary that stands for nobody: what an unknown caller gets, it gets."""
    return f"{SCHEME}{trust_domain}{PREFIX}unknown"


def is_canary(trust_domain: str, caller: str) -> bool:
    """Whether a SPIFFE ID is one that only canaries of ``trust_domain`` have."""
    return caller.startswith(f"{SCHEME}{trust_domain}{PREFIX}")


def represented(inbound: Inbound, known_callers: Sequence[str], trust_domain: str) -> tuple[str, ...]:
    """Registered callers of which each answer of the service's table is some one's, at each operation."""
    if inbound.protocol == "tcp" or inbound.post_quantum:
        return ()
    chosen: dict[str, None] = {}
    seen: set[int] = set()
    for operation in inbound.operations:
        if id(operation.cells) in seen:
            continue
        seen.add(id(operation.cells))
        members = [frozenset(cell.callers) for cell in operation.cells]
        groups: list[tuple[Sequence[str], Collection[str]]] = [
            (cell.callers, callers) for cell, callers in zip(operation.cells, members, strict=True)
        ]
        for callers, among in groups:
            if not any(name in among for name in chosen):
                _choose(chosen, callers, trust_domain)
        if all(any(name in among for among in members) for name in chosen):
            refused = (name for name in known_callers if not any(name in among for among in members))
            _choose(chosen, refused, trust_domain)
        if len(chosen) >= MAX_CANARIES:
            break
    return tuple(chosen)[:MAX_CANARIES]


def with_canaries(inbound: Inbound, known_callers: Sequence[str], trust_domain: str) -> tuple[Inbound, tuple[str, ...]]:
    """The table with canaries in it, and all callers that it knows then."""
    names = {name: canary_of(trust_domain, name) for name in represented(inbound, known_callers, trust_domain)}
    if not names:
        return inbound, tuple(known_callers)
    made: dict[int, tuple[Cell, ...]] = {}
    operations = []
    for operation in inbound.operations:
        cells = made.get(id(operation.cells))
        if cells is None:
            cells = made[id(operation.cells)] = tuple(_joined(cell, names) for cell in operation.cells)
        operations.append(msgspec.structs.replace(operation, cells=cells))
    known = (*known_callers, *sorted(names.values()))
    return msgspec.structs.replace(inbound, operations=tuple(operations)), known


def checks(sidecar: Sidecar, inbound: Inbound, trust_domain: str, reading: Collection[str]) -> tuple[Check, ...]:
    """What to try at a point that enforces ``inbound``; ``reading`` are names of operations that only read."""
    found: list[Check] = []
    names = represented(inbound, sidecar.known_callers, trust_domain)
    if names:
        table, known = with_canaries(inbound, sidecar.known_callers, trust_domain)
        whole = msgspec.structs.replace(sidecar, known_callers=known, inbound=(table,))
        for operation in table.operations:
            found += _of_operation(whole, table, operation, names, trust_domain, operation.name in reading)
        found.append(_unlisted(whole, table, names[0], trust_domain))
    if inbound.protocol == "http":
        path = f"/{FILLER}-unlisted"
        if not inbound.post_quantum:
            nobody = stranger(trust_domain)
            found.append(
                Check(kind="unknown-caller", expected="UNKNOWN_CALLER", caller=nobody, method="GET", path=path)
            )
        if inbound.mode.value != "permissive":
            found.append(Check(kind="plaintext", expected="MTLS_REQUIRED", method="GET", path=path))
    handshakes: tuple[Kind, ...] = ("no-certificate", "foreign-root", "wrong-trust-domain", "expired")
    for kind in handshakes:
        found.append(Check(kind=kind, expected=REFUSED_HANDSHAKE, method="GET", path=f"/{FILLER}-unlisted"))
    return tuple(found)


def _choose(chosen: dict[str, None], among: Sequence[str] | Iterator[str], trust_domain: str) -> None:
    """Add the first whose canary has a name that is not too long."""
    name = next((one for one in among if len(canary_of(trust_domain, one)) <= MAX_ID_LENGTH), None)
    if name is not None:
        chosen[name] = None


def _joined(cell: Cell, names: dict[str, str]) -> Cell:
    callers = frozenset(cell.callers)
    added = [canary for name, canary in names.items() if name in callers]
    if not added:
        return cell
    return msgspec.structs.replace(cell, callers=tuple(sorted((*cell.callers, *added))))


def _of_operation(
    sidecar: Sidecar, inbound: Inbound, operation: OperationRules, names: Sequence[str], trust_domain: str, reads: bool
) -> list[Check]:
    """Requests that get each distinct answer of the operation once, refusals first."""
    form = wire_form(operation.match)
    if form is None:
        return []
    by_answer: dict[tuple[str, str], Check] = {}
    for name in names:
        canary = canary_of(trust_domain, name)
        for tenant in _tenants(operation, canary):
            values = dict.fromkeys(form[1].parameters, FILLER)
            headers: tuple[tuple[str, str], ...] = ()
            if operation.tenant is not None and tenant:
                if operation.tenant.header:
                    headers = ((operation.tenant.header, tenant),)
                elif operation.tenant.path:
                    values[operation.tenant.path] = tenant
            path = "/" + "/".join(
                values[parameter] if parameter else literal for literal, parameter in form[1].segments
            )
            answer = lookup(sidecar, canary, inbound.service, form[0], path, headers)
            if answer[3] != operation.name:  # another operation is nearer to this path
                continue
            check = Check(
                kind="operation",
                expected=answer[1],
                caller=canary,
                stands_for=name,
                method=form[0],
                path=path,
                headers=headers,
                operation=operation.name,
                reads=reads or (isinstance(operation.match, HttpMatch) and form[0] in {"GET", "HEAD"}),
            )
            by_answer.setdefault((answer[1], answer[2]), check)
    found = sorted(by_answer.values(), key=lambda check: check.expected == "ALLOWED")
    allowed = [check for check in found if check.expected == "ALLOWED"]
    refused = [check for check in found if check.expected != "ALLOWED"]
    room = MAX_CHECKS - min(len(allowed), 2)
    return [*refused[:room], *allowed[: MAX_CHECKS - min(len(refused), room)]]


def _tenants(operation: OperationRules, canary: str) -> list[str]:
    """Tenants that make a difference to the canary; "": the request names none."""
    cell = next((cell for cell in operation.cells if canary in cell.callers), None)
    if operation.tenant is None or operation.tenant.claim or cell is None or cell.tenants is None:
        return [FILLER]
    missing = [""] if operation.tenant.header else []
    return [*_distinct(cell.tenants, operation), FILLER, *missing]


def _distinct(tenants: TenantRules, operation: OperationRules) -> list[str]:
    found: dict[tuple[Verdict, str, str], str] = {}
    for tenant, rule in tenants.by_tenant.items():
        if operation.tenant is not None and can_be_tenant(operation.tenant, tenant):
            found.setdefault(_told(rule), tenant)
    return list(found.values())


def _told(rule: Rule) -> tuple[Verdict, str, str]:
    return rule.verdict, rule.code, rule.policy


def _unlisted(sidecar: Sidecar, inbound: Inbound, name: str, trust_domain: str) -> Check:
    canary, path = canary_of(trust_domain, name), f"/{FILLER}-unlisted"
    answer = lookup(sidecar, canary, inbound.service, "GET", path)
    return Check(
        kind="operation",
        expected=answer[1],
        caller=canary,
        stands_for=name,
        method="GET",
        path=path,
        operation=answer[3],
    )
