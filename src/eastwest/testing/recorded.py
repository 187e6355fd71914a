"""Calls of a random estate as the ledger would record them, and random edits of the estate, to replay them on.

A row has what sidecars and our library write, and nothing that they leave out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Any

import msgspec

from eastwest.ledger.record import Decision, Sensor
from eastwest.mesh.action import inbound_version
from eastwest.mesh.tokens import looks_at_tokens
from eastwest.policy.enforcement import Cell, DecisionCode, Inbound, MtlsMode, OperationRules, Sidecar, Verdict
from eastwest.policy.normalise import Refused, Request, normalise
from eastwest.policy.operations import can_be_tenant, wire_form
from eastwest.policy.oracle import lookup
from eastwest.policy.transaction import Presented, Token
from eastwest.testing.calls import Call

NAMED = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
"""Methods that Envoy's access log has names for."""
_UNTIL = "2099-01-01"


@dataclass(frozen=True)
class Question:
    """A call as enforcement points judge it: what ``eastwest.policy.oracle`` is asked."""

    caller: str | None
    service: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    presented: Presented
    certificate: str

    @classmethod
    def of(cls, call: Call, certificate: str, *, tcp: bool) -> Question | None:
        """None where the request is refused before anybody judges it."""
        request: Request | Refused
        if tcp:
            return cls(call.caller, call.service, "", "", (), call.presented, certificate)
        request = normalise(call.method, call.target, [("host", call.host), *call.headers])
        if isinstance(request, Refused):
            return None
        return cls(
            call.caller, call.service, request.method, request.matched, request.headers, call.presented, certificate
        )

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As ``Oracle.decide`` and ``lookup`` take them."""
        return self.caller, self.service, self.method, self.path, self.headers, self.presented, self.certificate


def recorded(
    sidecar: Sidecar, asked: Question, time: datetime, *, sensor: Sensor, reference: str, used: bool = False
) -> Decision:
    """The row that a sidecar, or our library, writes of a call that it decided.

    ``used``: the token had been used before, where that counts.
    """
    inbound = next(i for i in sidecar.inbound if i.service == asked.service)
    verdict, code, policy, name = lookup(sidecar, *asked.arguments)
    operation = next((o for o in inbound.operations if o.name == name), None)
    enforced = inbound.mode is MtlsMode.STRICT
    token = asked.presented if isinstance(asked.presented, Token) else None
    if operation is None or token is None or not _looks(operation, asked, token, sensor):
        token = None
    if used and token is not None and enforced and verdict is Verdict.ALLOW and operation and operation.single_use:
        verdict, code, policy = Verdict.DENY, DecisionCode.TOKEN_USED, ""
    told = token is not None and not (sensor == "envoy" and code.startswith("TOKEN_"))
    return Decision(
        time=time,
        service=asked.service,
        verdict=verdict,
        code=code,
        mode=inbound.mode,
        enforced=enforced,
        caller=asked.caller or "",
        operation=name,
        tenant=_tenant(operation, asked, token, sensor) if operation is not None else "",
        method=asked.method if sensor == "sdk" or asked.method in NAMED else "",
        path="" if name else asked.path.partition("?")[0].partition("#")[0][:256],
        policy=policy,
        rules_version=inbound_version(inbound),
        sensor=sensor,
        reference=reference,
        token=token is not None,
        transaction=token.transaction if token is not None else "",
        origin=token.origin if token is not None else "",
        approver=token.approver if token is not None and told else "",
    )


def _cell(operation: OperationRules, caller: str | None) -> Cell | None:
    return next((cell for cell in operation.cells if caller in cell.callers), None)


def _looks(operation: OperationRules, asked: Question, token: Token, sensor: Sensor) -> bool:
    cell = _cell(operation, asked.caller)
    if cell is None:
        return False
    if sensor == "envoy":
        return token.caller == asked.caller and looks_at_tokens(cell, operation.tenant)
    if cell.tenants is None:
        return cell.rule is not None and cell.rule.token is not None
    if operation.tenant is not None and operation.tenant.claim:
        return True
    tenant = _tenant(operation, asked, token, sensor)
    return cell.tenants.by_tenant.get(tenant, cell.tenants.otherwise).token is not None


def _tenant(operation: OperationRules, asked: Question, token: Token | None, sensor: Sensor) -> str:
    source = operation.tenant
    if source is None:
        return ""
    if source.claim:
        return token.tenant if token is not None else ""
    if source.path:
        form = wire_form(operation.match)
        return (form[1].match(asked.path) or {}).get(source.path, "") if form is not None else ""
    value = ",".join(value for name, value in asked.headers if name == source.header)
    return value if sensor == "envoy" or can_be_tenant(source, value) else ""


def flooded(row: Decision) -> Decision:
    """A refusal as it is kept beyond the bound of those in full (``eastwest.ledger.rollup``)."""
    left_out: dict[str, Any] = {"tenant": "", "method": "", "path": "", "reference": "", "trace": ""}
    left_out |= {"token": False, "transaction": "", "origin": "", "approver": ""}
    left_out["cause"] = row.cause.partition(":")[0]
    return msgspec.structs.replace(row, **left_out)


def random_edit(random: Random, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files after one to three edits. What comes out may be no valid estate."""
    edited = dict(files)
    for _ in range(random.randint(1, 3)):
        random.choice(_EDITS)(random, edited)
    return edited


def _policies(random: Random, files: dict[str, bytes]) -> None:
    """One policy less, or one whose effect is turned round, or whose condition is gone."""
    name = next(name for name in files if name.endswith(".cedar"))
    texts = [text for text in files[name].decode().split("@id(") if text.strip()]
    at = random.randrange(len(texts))
    match random.randrange(4):
        case 0 if len(texts) > 1:
            del texts[at]
        case 1:
            old, new = ("permit (", "forbid (") if "permit (" in texts[at] else ("forbid (", "permit (")
            texts[at] = texts[at].replace(old, new)
        case 2:
            texts[at] = texts[at].partition(" when ")[0].rstrip("; \n") + ";\n"
        case _:
            texts.append(
                '"more") @owner("group:x") @reason("r") @tenants("any")\npermit (principal, action, resource);'
            )
    files[name] = "".join(f"@id({text}" for text in texts).encode()


def _services(random: Random, files: dict[str, bytes]) -> tuple[str, dict[str, Any]]:
    name = random.choice([name for name in files if name.startswith("services/")])
    return name, json.loads(files[name])


def _operations(random: Random, files: dict[str, bytes]) -> None:
    """An operation that is gone, matches otherwise, demands more or less, or is of another sensitivity."""
    name, service = _services(random, files)
    operations = service["operations"]
    one = random.choice(operations)
    match random.randrange(6):
        case 0 if len(operations) > 1:
            operations.remove(one)
        case 1:
            one["match"] = random.choice(operations)["match"]
        case 2 if "path" in one["match"]:
            segments = one["match"]["path"].split("/")
            at = random.randrange(1, len(segments))
            segments[at] = random.choice(["{other}", "acme", "i", segments[at]])
            one["match"] = one["match"] | {"path": "/".join(segments)}
        case 3:
            one["demands"] = random.choice([[], ["step-up"], ["approval"], ["step-up", "single-use"]])
        case 4:
            one["sensitivity"] = random.choice(["open", "read", "mutate", "control"])
        case _:
            twin = {"name": f"{service['service']}:new:do", "match": {"method": "GET", "path": "/{tenant}/x"}}
            operations.append(twin | {"sensitivity": "read"})
    files[name] = json.dumps(service).encode()


def _settings_of_service(random: Random, files: dict[str, bytes]) -> None:
    """Another mode, or another place where requests name their tenant."""
    name, service = _services(random, files)
    if random.random() < 0.5:
        permissive = service["listen"]["mtls"] == "strict"
        service["listen"] |= {"mtls": "permissive", "until": _UNTIL} if permissive else {"mtls": "strict"}
        if not permissive:
            service["listen"].pop("until", None)
    elif service["listen"]["protocol"] == "http":
        service["tenant"] = random.choice([{"header": "x-tenant"}, {"path": "tenant"}, {"path": "item"}])
    files[name] = json.dumps(service).encode()


def _workloads(random: Random, files: dict[str, bytes]) -> None:
    """A caller that is gone, or has other attributes."""
    name = "workloads/all.yaml"
    workloads = json.loads(files[name])["workloads"]
    one = random.choice(workloads)
    if random.random() < 0.4 and len(workloads) > 1:
        workloads.remove(one)
    else:
        one["attributes"] = {"tenants": random.sample(["acme", "globex", "a.b"], 2)}
    files[name] = json.dumps({"workloads": workloads}).encode()


_EDITS: tuple[Callable[[Random, dict[str, bytes]], None], ...] = (
    _policies,
    _policies,
    _operations,
    _operations,
    _settings_of_service,
    _workloads,
)


def inbounds(sidecars: Mapping[str, Sidecar]) -> dict[str, tuple[Sidecar, Inbound]]:
    """Services by name, with the sidecar that has them."""
    return {i.service: (sidecar, i) for sidecar in sidecars.values() for i in sidecar.inbound}
