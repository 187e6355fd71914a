"""Rego v1 for the Open Policy Agent: a module that decides exactly as the table does, codes and policies included.

Unlike the other exports it knows tokens: the host verifies a transaction token (signature, issuer, audience, times)
and hands on its claims. It asks for no state, so what counts once is only named (``once``), for the host to ask.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from eastwest.policy.enforcement import Cell, Inbound, OperationRules, OriginRules, Rule, TokenRules
from eastwest.policy.exports.model import Exported, chosen, preamble
from eastwest.policy.exports.regions import all_but, escaped
from eastwest.policy.operations import wire_form
from eastwest.policy.paths import Template
from eastwest.policy.table import CompiledPolicy

PACKAGE = "eastwest"
_VALUE = all_but((".", ".."))

_LOGIC = r"""
package eastwest

import rego.v1

# input.caller       the caller's SPIFFE ID, proven by its certificate; null or absent without one
# input.service      the service's name in the estate
# input.method       the HTTP method; for gRPC, POST
# input.path         the path after normalisation (no escapes, no dot segments); a query is ignored
# input.headers      a list of [name, value]
# input.certificate  SHA-256 of the caller's certificate, lower-case hex
# input.token        absent or {"status": "missing"} without one; {"status": "expired"}; {"status": "invalid"}; or
#                    {"status": "valid", "claims": {...}} after signature, issuer, audience and times were found good
# decision           verdict, code, policy, operation; with "once": true, the token's id must not have been used before

default decision := {"verdict": "deny", "code": "MTLS_REQUIRED", "policy": "", "operation": ""}

default allow := false

allow if decision.verdict == "allow"

decision := answer if {
	caller_known
	operation
	answer := told
} else := {"verdict": "deny", "code": "UNLISTED_OPERATION", "policy": "", "operation": ""} if {
	caller_known
} else := {"verdict": "deny", "code": "UNKNOWN_CALLER", "policy": "", "operation": ""} if {
	is_string(input.caller)
}

caller_known if {
	is_string(input.caller)
	known[input.caller]
}

# Operations are in order: the first that matches is the request's.
operation := matching[0] if count(matching) > 0

matching := [one |
	some one in services[input.service]
	matches(one)
]

matches(one) if one.tcp

matches(one) if {
	one.method == input.method
	regex.match(one.path, bare_path)
}

bare_path := split(input.path, "?")[0]

outcome := operation.outcomes[operation.callers[input.caller]]

told := with_operation(operation.otherwise) if {
	not outcome
} else := with_token(outcome.rule, "") if {
	outcome.rule
} else := refused(misused) if {
	operation.tenant.claim
	misused != ""
} else := refused("TENANT_MISSING") if {
	not tenant
} else := with_token(object.get(outcome.by_tenant, tenant, outcome.otherwise), tenant)

tenant := value if {
	operation.tenant.claim
	status == "valid"
	value := token_text("tenant")
	value != ""
}

tenant := split(bare_path, "/")[operation.tenant.segment]

tenant := value if {
	name := operation.tenant.header
	value := concat(",", [pair[1] | some pair in input.headers; lower(pair[0]) == name])
	regex.match(`^[!-+.-~-]+$`, value) # visible ASCII without the comma
}

with_token(rule, _) := with_operation(rule) if {
	not rule.token
} else := with_operation(rule) if {
	status == "missing"
} else := refused(misused) if {
	misused != ""
}

with_token(rule, named) := refused("TOKEN_WRONG_TENANT") if {
	counts(rule)
	token_text("tenant") != named
}

with_token(rule, named) := once(by_origin(rule.token.unapproved)) if {
	counts(rule)
	token_text("tenant") == named
	token_text("approver") == ""
}

with_token(rule, named) := once(by_origin(object.get(rule.token.approved_by, approver, rule.token.approved))) if {
	counts(rule)
	token_text("tenant") == named
	approver := token_text("approver")
	approver != ""
}

counts(rule) if {
	rule.token
	status == "valid"
	misused == ""
}

by_origin(origins) := object.get(origins.by_origin, input.token.claims.tctx.origin, origins.otherwise)

once(rule) := object.union(with_operation(rule), {"once": true}) if {
	operation.single_use
	rule.verdict == "allow"
} else := with_operation(rule)

default status := "missing"

status := input.token.status if input.token.status

misused := "" if {
	status == "missing"
} else := "TOKEN_EXPIRED" if {
	status == "expired"
} else := "TOKEN_INVALID" if {
	not well_formed
} else := "TOKEN_WRONG_ACTION" if {
	input.token.claims.tctx.action != operation.name
} else := "TOKEN_WRONG_RESOURCE" if {
	input.token.claims.tctx.resource != input.service
} else := "TOKEN_WRONG_CALLER" if {
	input.token.claims.sub != input.caller
} else := "TOKEN_WRONG_KEY" if {
	not right_key
} else := ""

right_key if input.token.claims.tctx.certificate == input.certificate

well_formed if {
	status == "valid"
	said := input.token.claims
	every text in [said.sub, said.tctx.action, said.tctx.resource, said.tctx.certificate, said.tctx.origin] {
		is_string(text)
	}
	is_string(token_text("tenant"))
	is_string(token_text("approver"))
}

token_text(name) := object.get(input.token.claims.tctx, name, "")

with_operation(rule) := {
	"verdict": rule.verdict,
	"code": rule.code,
	"policy": rule.policy,
	"operation": operation.name,
}

refused(code) := {"verdict": "deny", "code": code, "policy": "", "operation": operation.name}
"""


def export_rego(compiled: CompiledPolicy, services: Collection[str] = ()) -> Exported:
    """One self-contained module for the services named, or all."""
    known: set[str] = set()
    tables: dict[str, list[dict[str, Any]]] = {}
    for sidecar, inbound in chosen(compiled, services):
        known.update(sidecar.known_callers)
        tables[inbound.service] = _service(inbound)
    comments = "".join(f"# {line}\n" for line in preamble("rego", compiled))
    data = f"\nknown := {_json(dict.fromkeys(sorted(known), True))}\n\nservices := {_json(tables)}\n"
    return Exported({"eastwest.rego": comments + _LOGIC.lstrip("\n") + data})


def rego_path(template: Template) -> str:
    """A regular expression (RE2) for exactly the paths that a template matches."""
    parts = (_VALUE if parameter else escaped(literal) for literal, parameter in template.segments)
    return "^/" + "/".join(parts) + "$"


def _service(inbound: Inbound) -> list[dict[str, Any]]:
    return [_operation(operation) for operation in inbound.operations]


def _operation(operation: OperationRules) -> dict[str, Any]:
    outcomes: list[dict[str, Any]] = []
    callers: dict[str, int] = {}
    for cell in operation.cells:
        callers.update(dict.fromkeys(cell.callers, len(outcomes)))
        outcomes.append(_outcome(cell))
    form = wire_form(operation.match)
    where: dict[str, Any] = {"tcp": True}
    tenant: dict[str, Any] = {}
    if form is not None:
        where = {"tcp": False, "method": form[0], "path": rego_path(form[1])}
    if operation.tenant is not None and form is not None:
        if operation.tenant.path:
            names = [parameter for _, parameter in form[1].segments]
            tenant = {"segment": names.index(operation.tenant.path) + 1}
        elif operation.tenant.header:
            tenant = {"header": operation.tenant.header}
        else:
            tenant = {"claim": True}
    return {
        "name": operation.name,
        **where,
        "tenant": tenant,
        "single_use": operation.single_use,
        "callers": callers,
        "outcomes": outcomes,
        "otherwise": _rule(operation.otherwise),
    }


def _outcome(cell: Cell) -> dict[str, Any]:
    if cell.rule is not None:
        return {"rule": _rule(cell.rule)}
    if cell.tenants is None:
        raise AssertionError("a cell has a rule or tenants")
    by_tenant = {tenant: _rule(rule) for tenant, rule in sorted(cell.tenants.by_tenant.items())}
    return {"by_tenant": by_tenant, "otherwise": _rule(cell.tenants.otherwise)}


def _rule(rule: Rule) -> dict[str, Any]:
    said: dict[str, Any] = {"verdict": rule.verdict.value, "code": rule.code.value, "policy": rule.policy}
    return said if rule.token is None else said | {"token": _token(rule.token)}


def _token(rules: TokenRules) -> dict[str, Any]:
    return {
        "unapproved": _origins(rules.unapproved),
        "approved_by": {approver: _origins(origins) for approver, origins in sorted(rules.approved_by.items())},
        "approved": _origins(rules.approved),
    }


def _origins(rules: OriginRules) -> dict[str, Any]:
    return {
        "by_origin": {origin: _rule(rule) for origin, rule in sorted(rules.by_origin.items())},
        "otherwise": _rule(rules.otherwise),
    }


def _json(value: Mapping[str, Any]) -> str:
    """JSON, which is Rego too; not ASCII alone, since Rego's texts are Unicode."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
