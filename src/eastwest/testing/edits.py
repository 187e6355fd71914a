"""Random edits of the estates of ``eastwest.testing.estates``, and every call that could tell two versions apart.

An edit may break the estate (``load_estate`` says so) or change nothing; whoever asks goes on to the next.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

from eastwest.policy.estate import Estate, Operation, Service
from eastwest.policy.gains import ANY_OTHER, Gain
from eastwest.policy.operations import matcher, wire_form
from eastwest.policy.oracle import Headers
from eastwest.policy.transaction import NoToken, Presented, Token
from eastwest.testing.estates import APPROVERS, HEADER, RandomEstate, random_estate

CERTIFICATE = "0" * 64
OTHER_HEADER = "x-org"
"""Another header that an edit may have tenants named in."""
OTHER = "unheard-of"
"""A tenant, and a text of a path, that nothing names."""
Files = dict[str, bytes]
Asked = tuple[str, str, str, str, Headers, Presented, str]
"""What ``Oracle.decide`` and ``lookup`` ask about, in their order."""


def random_edit(random: Random, estate: RandomEstate) -> tuple[str, Files]:
    """One edit by name, and the files with it."""
    name = random.choice(sorted(_EDITS))
    parts = {path: json.loads(data) for path, data in estate.files.items() if not path.endswith(".cedar")}
    policies = list(estate.policies)
    _EDITS[name](random, parts, policies, estate)
    files = {path: json.dumps(value).encode() for path, value in parts.items()}
    return name, files | {"policies/all.cedar": "\n".join(policies).encode()}


def every_call(before: Estate, after: Estate, random: Random, most: int = 4000) -> Iterator[Asked]:
    """Calls of services that are in both, all that there are or ``most`` of them: every route of either version, every
    text that stands in an estate as tenant, every kind of token.
    """
    texts = sorted({*_texts(before), *_texts(after), OTHER})
    callers = sorted({caller.spiffe_id for estate in (before, after) for caller in estate.callers})
    calls = []
    old = {service.service: service for service in before.services}
    for service in after.services:
        was = old.get(service.service)
        operations = {o.name: o for one in (was, service) if one is not None for o in one.operations}
        routes = sorted(
            {r for one in (was, service) if one is not None for o in one.operations for r in _paths(o, texts)}
        )
        for method, path in routes:
            calls += [
                (service.service, method, path, header, name) for header in _headers(texts) for name in operations
            ]
    random.shuffle(calls)
    for service_name, method, path, header, operation in calls[: max(1, most // (len(callers) * 2))]:
        for caller in callers:
            yield caller, service_name, method, path, header, NoToken.MISSING, CERTIFICATE
            token = _token(
                random, caller, service_name, operation, random.choice([*_named(header), *path.split("/")]), callers
            )
            yield caller, service_name, method, path, header, token, CERTIFICATE


def calls_of(before: Estate, after: Estate, gain: Gain, service: Service, operation: Operation) -> Iterator[Asked]:
    """Every call by which a gain at an operation could show itself: all routes that it takes, wherever and whichever
    tenant is named, and every token that brings what the gain says.
    """
    words = {text for one in (before, after) for s in one.services for o in s.operations for text in _literals(o)}
    texts = sorted({*words, *_texts(before), *_texts(after), OTHER})
    named = texts if gain.tenant in {"", ANY_OTHER} else [gain.tenant]
    callers = sorted({caller.spiffe_id for estate in (before, after) for caller in estate.callers})
    form = wire_form(matcher(operation))
    segments = () if form is None else form[1].segments
    paths = ["/" + "/".join(one) for one in itertools.product(*(texts if name else [text] for text, name in segments))]
    headers: list[Headers] = [(), *(((name, text),) for name in (HEADER, OTHER_HEADER) for text in named)]
    tokens: list[Presented] = [NoToken.MISSING]
    if gain.brings:
        approvers = [*APPROVERS, "unix:uid:77"] if gain.brings == "approval" else [""]
        said = itertools.product(["", *named], approvers, [*callers, "spiffe://t.example/elsewhere"])
        tokens = [_made(gain.caller, service.service, operation.name, *one) for one in said]
    for path, header, token in itertools.product(paths if form else [""], headers, tokens):
        yield gain.caller, service.service, form[0] if form else "", path, header, token, CERTIFICATE


def _literals(operation: Operation) -> list[str]:
    form = wire_form(matcher(operation))
    return [] if form is None else [text for text, _ in form[1].segments if text]


def _headers(texts: list[str]) -> list[Headers]:
    return [(), *(((HEADER, text),) for text in texts)]


def _named(headers: Headers) -> list[str]:
    return [value for _, value in headers] or [""]


def _texts(estate: Estate) -> set[str]:
    found: set[str] = set()
    for caller in estate.callers:
        for value in caller.attributes.values():
            found.update([value] if isinstance(value, str) else value)
    return {text for text in found if text.isascii() and text}


def _paths(operation: Any, texts: list[str]) -> Iterator[tuple[str, str]]:
    form = wire_form(matcher(operation))
    if form is None:
        yield "", ""
        return
    words = [[literal] if literal or not parameter else [*texts, "all", "i"] for literal, parameter in form[1].segments]
    for chosen in itertools.islice(itertools.product(*words), 200):
        yield form[0], "/" + "/".join(chosen)


def _token(random: Random, caller: str, service: str, operation: str, tenant: str, callers: list[str]) -> Token:
    approver = random.choice(["", *APPROVERS, "unix:uid:77"])
    origin = random.choice([*callers, "spiffe://t.example/elsewhere"])
    return _made(caller, service, operation, tenant, approver, origin)


def _made(caller: str, service: str, operation: str, tenant: str, approver: str, origin: str) -> Token:
    return Token(
        id="j",
        transaction="t",
        caller=caller,
        certificate=CERTIFICATE,
        action=operation,
        resource=service,
        origin=origin,
        expires=1,
        tenant=tenant,
        approver=approver,
    )


Parts = Mapping[str, Any]
_Edit = Callable[[Random, Parts, list[str], RandomEstate], None]


def _service(random: Random, parts: Parts) -> Any:
    return parts[random.choice(sorted(path for path in parts if path.startswith("services/")))]


def _operation(random: Random, parts: Parts) -> Any:
    return random.choice(_service(random, parts)["operations"])


def _workload(random: Random, parts: Parts) -> Any:
    return random.choice(parts["workloads/all.yaml"]["workloads"])


def _add_policy(random: Random, _parts: Parts, policies: list[str], estate: RandomEstate) -> None:
    other = random_estate(random)
    policies.append(random.choice(other.policies).replace('@id("p', '@id("new'))
    caller = random.choice(estate.callers)
    policies.append(
        f'@id("added") @owner("group:x") @reason("r") @tenants("any")\npermit (principal == Workload::"{caller}", '
        f'action == Action::"{random.choice(estate.routes).operation}", resource);'
    )
    del policies[-random.randint(1, 2)]


def _drop_policy(random: Random, _parts: Parts, policies: list[str], _estate: RandomEstate) -> None:
    policies.pop(random.randrange(len(policies)))


def _any_tenant(random: Random, _parts: Parts, policies: list[str], _estate: RandomEstate) -> None:
    number = random.randrange(len(policies))
    policies[number] = policies[number].replace('@reason("r")\npermit', '@reason("r") @tenants("any")\npermit')


def _flip(random: Random, _parts: Parts, policies: list[str], _estate: RandomEstate) -> None:
    number = random.randrange(len(policies))
    policies[number] = policies[number].replace("\nforbid ", "\npermit ")


def _sensitivity(random: Random, parts: Parts, _policies: list[str], _estate: RandomEstate) -> None:
    operation = _operation(random, parts)
    operation["sensitivity"] = random.choice(["open", "read", "restricted-read", "mutate", "control"])


def _template(random: Random, parts: Parts, _policies: list[str], _estate: RandomEstate) -> None:
    match = _operation(random, parts)["match"]
    if "path" in match:
        segments = match["path"].split("/")
        number = random.randrange(1, len(segments))
        segments[number] = random.choice(["{item}", "all", "t", "{tenant}"])
        match["path"] = "/".join(segments)


def _swap(random: Random, parts: Parts, _policies: list[str], _estate: RandomEstate) -> None:
    operations = _service(random, parts)["operations"]
    one, other = random.choice(operations), random.choice(operations)
    one["match"], other["match"] = other["match"], one["match"]


def _rename(random: Random, parts: Parts, _policies: list[str], _estate: RandomEstate) -> None:
    operation = _operation(random, parts)
    operation["name"] = operation["name"].rpartition(":")[0] + ":renamed"


def _drop_operation(random: Random, parts: Parts, _policies: list[str], _estate: RandomEstate) -> None:
    operations = _service(random, parts)["operations"]
    operations.pop(random.randrange(len(operations)))


def _demands(random: Random, parts: Parts, _policies: list[str], _estate: RandomEstate) -> None:
    operation = _operation(random, parts)
    if "tcp" not in operation["match"]:
        operation["demands"] = random.choice([[], ["step-up"], ["approval"], ["step-up", "approval"]])


def _tenant_source(random: Random, parts: Parts, _policies: list[str], _estate: RandomEstate) -> None:
    service = _service(random, parts)
    if service["listen"]["protocol"] == "http":
        service.pop("tenant", None)
        chosen = random.choice(
            [None, {"path": "tenant"}, {"header": HEADER}, {"header": OTHER_HEADER}, {"claim": True}]
        )
        if chosen is not None:
            service["tenant"] = chosen


def _owner(random: Random, parts: Parts, _policies: list[str], _estate: RandomEstate) -> None:
    _service(random, parts)["owner"] = random.choice(["group:red", "group:blue"])


def _tenants(random: Random, parts: Parts, _policies: list[str], _estate: RandomEstate) -> None:
    attributes = _workload(random, parts)["attributes"]
    known = attributes.get("tenants", [])
    attributes["tenants"] = random.choice([[*known, "acme"], known[1:], ["globex"]])
    attributes["tenants"] = sorted(set(attributes["tenants"]))


def _move(random: Random, parts: Parts, _policies: list[str], _estate: RandomEstate) -> None:
    workload = _workload(random, parts)
    workload[random.choice(["environment", "domain"])] = random.choice(["prod", "staging", "d1", "d2"])


def _register(random: Random, parts: Parts, _policies: list[str], _estate: RandomEstate) -> None:
    workloads = parts["workloads/all.yaml"]["workloads"]
    copied = dict(random.choice(workloads))
    copied["spiffe_id"], copied["selectors"] = copied["spiffe_id"] + "-new", ["unix:uid:99"]
    workloads.append(copied)


_EDITS: dict[str, _Edit] = {
    "policy added": _add_policy,
    "policy dropped": _drop_policy,
    "forbid made permit": _flip,
    "tenants any": _any_tenant,
    "sensitivity": _sensitivity,
    "template": _template,
    "matches swapped": _swap,
    "operation renamed": _rename,
    "operation dropped": _drop_operation,
    "demands": _demands,
    "tenant source": _tenant_source,
    "owner": _owner,
    "tenants": _tenants,
    "workload moved": _move,
    "workload registered": _register,
}
