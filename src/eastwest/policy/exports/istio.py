"""Istio: one ``AuthorizationPolicy`` (security.istio.io/v1) for each service, which allows and so denies the rest.

Rules of Istio add up, while in the table the first template that matches decides: so each rule excludes the paths of
the operations that come before it (``notPaths``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from eastwest.policy.enforcement import Inbound, MtlsMode, OperationRules, Sidecar
from eastwest.policy.exports.grants import Grant, grants
from eastwest.policy.exports.labels import LABEL, label
from eastwest.policy.exports.model import Exported, Narrower, chosen, metadata, preamble, yaml_text
from eastwest.policy.operations import wire_form
from eastwest.policy.paths import Template
from eastwest.policy.table import CompiledPolicy
from eastwest.policy.transaction import HEADER

MAX_RULES = 500
"""Of one object; the schema of the resource has 512."""
MAX_PARAMETERS = 5
"""Of one path: Envoy's URI templates take no more variables."""
_SENTENCES = (
    "It denies what it does not allow. It needs mutual TLS (PeerAuthentication STRICT), and in the mesh's settings",
    "pathNormalization DECODE_AND_MERGE_SLASHES: {*} takes all characters of a segment, ours A-Za-z0-9._~- alone.",
)


def export_istio(compiled: CompiledPolicy, services: Collection[str] = ()) -> Exported:
    """Authorization policies for the services named, or all."""
    documents: list[tuple[Sequence[str], dict[str, Any]]] = []
    narrower: list[Narrower] = []
    comments = preamble("istio", compiled, *_SENTENCES)
    for sidecar, inbound in chosen(compiled, services):
        rules, left_out = _rules(inbound)
        narrower += left_out
        for number, part in enumerate(_parts(rules), 1):
            lines = [*comments, *(f"narrower: {one}" for one in left_out)] if number == 1 else []
            documents.append((lines, _policy(sidecar, inbound, number, part, left_out)))
            comments = []
    return Exported({"authorization-policies.yaml": yaml_text(documents)}, tuple(narrower))


def istio_path(template: Template, parameter: str = "", value: str = "") -> str:
    """A template as Istio writes it, with one parameter made a literal."""
    parts = [value if name and name == parameter else "{*}" if name else literal for literal, name in template.segments]
    return "/" + "/".join(parts)


def _policy(
    sidecar: Sidecar, inbound: Inbound, number: int, rules: Sequence[dict[str, Any]], left_out: Sequence[Narrower]
) -> dict[str, Any]:
    name = f"eastwest-{inbound.service}" + (f"-{number}" if number > 1 else "")
    dry_run = {"istio.io/dry-run": "true"} if inbound.mode is MtlsMode.PERMISSIVE else {}
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": metadata(name, sidecar.version, left_out, **dry_run),
        "spec": {
            "selector": {"matchLabels": {LABEL: label(sidecar.spiffe_id)}},
            "action": "ALLOW",
            **({"rules": list(rules)} if rules else {}),  # without rules nothing is allowed
        },
    }


def _parts(rules: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, max(len(rules), 1), MAX_RULES):
        yield rules[start : start + MAX_RULES]


def _rules(inbound: Inbound) -> tuple[list[dict[str, Any]], list[Narrower]]:
    rules: list[dict[str, Any]] = []
    narrower: list[Narrower] = []
    before: list[tuple[str, Template]] = []
    for operation in inbound.operations:
        granted, refused = grants(operation)
        narrower += [Narrower(inbound.service, operation.name, r.callers, r.reason) for r in refused]
        form = wire_form(operation.match)
        for grant in granted:
            problem = _problem(operation, form, grant)
            if problem:
                narrower.append(Narrower(inbound.service, operation.name, grant.callers, problem))
            else:
                rules.append(_rule(inbound, operation, form, grant, before))
        if form is not None:
            before.append(form)
    return rules, narrower


def _rule(
    inbound: Inbound,
    operation: OperationRules,
    form: tuple[str, Template] | None,
    grant: Grant,
    before: Sequence[tuple[str, Template]],
) -> dict[str, Any]:
    principals = [caller.removeprefix("spiffe://") for caller in grant.callers]
    to: dict[str, Any] = {"ports": [str(inbound.port)]}
    when: list[dict[str, Any]] = []
    if form is not None:
        method, template = form
        parameter = operation.tenant.path if operation.tenant is not None else ""
        to["methods"] = [method]
        if parameter and grant.only is not None:
            to["paths"] = [istio_path(template, parameter, tenant) for tenant in grant.only]
        else:
            to["paths"] = [istio_path(template)]
        excluded = [istio_path(other) for verb, other in before if verb == method and other.overlaps(template)]
        if parameter and grant.but:
            excluded += [istio_path(template, parameter, tenant) for tenant in grant.but]
        if excluded:
            to["notPaths"] = excluded
        if operation.tenant is not None and operation.tenant.header and grant.only is not None:
            when.append({"key": f"request.headers[{operation.tenant.header}]", "values": list(grant.only)})
        if grant.tokenless:
            when.append({"key": f"request.headers[{HEADER}]", "notValues": ["*"]})
    return {
        "from": [{"source": {"principals": principals}}],
        "to": [{"operation": to}],
        **({"when": when} if when else {}),
    }


def _problem(operation: OperationRules, form: tuple[str, Template] | None, grant: Grant) -> str:
    """Why Istio cannot say this grant; "" when it can."""
    if form is not None and len(form[1].parameters) > MAX_PARAMETERS:
        return f"its path has more than {MAX_PARAMETERS} parameters"
    if operation.tenant is not None and operation.tenant.header:
        if grant.but is not None:
            return "any tenant in a header could be two, which Istio does not tell from one"
        if any("*" in tenant for tenant in grant.only or ()):
            return "a tenant's name has a *, which Istio takes for a pattern"
    return ""
