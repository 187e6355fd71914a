"""The table itself as plain aligned text, for people who review it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from eastwest.policy.enforcement import DecisionCode, Inbound, OperationRules, OriginRules, Rule, TokenRules
from eastwest.policy.exports.model import Exported, chosen, preamble, printable
from eastwest.policy.operations import match_text, tenant_source_text
from eastwest.policy.table import CompiledPolicy

COLUMNS = ("SERVICE", "OPERATION", "MATCH", "TENANT FROM", "CALLER", "TENANT", "WITHOUT TOKEN", "WITH TOKEN")
Row = tuple[str, ...]


def export_table(compiled: CompiledPolicy, services: Collection[str] = ()) -> Exported:
    """All outcomes, one line for each caller and tenant that a table tells apart."""
    rows = [COLUMNS, *(row for _, inbound in chosen(compiled, services) for row in _rows(inbound))]
    shown = [[printable(cell) or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = [f"# {line}" for line in preamble("table", compiled)]
    lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in shown]
    return Exported({"table.txt": "\n".join(lines) + "\n"})


def _rows(inbound: Inbound) -> Iterator[Row]:
    for operation in inbound.operations:
        head = (inbound.service, operation.name, match_text(operation), tenant_source_text(operation))
        for cell in operation.cells:
            outcomes: list[tuple[str, Rule]] = []
            if cell.rule is not None:
                outcomes = [("", cell.rule)]
            elif cell.tenants is not None:
                outcomes = [*sorted(cell.tenants.by_tenant.items()), ("(any other)", cell.tenants.otherwise)]
            for caller in cell.callers:
                for tenant, rule in outcomes:
                    yield (*head, caller, tenant, *_outcomes(operation, rule, per_tenant=cell.tenants is not None))
        yield (*head, "(any other)", "", _shown(operation.otherwise), "")


def _outcomes(operation: OperationRules, rule: Rule, *, per_tenant: bool) -> Row:
    """Without and with a token. Where the token is what names the tenant, nothing else does."""
    with_token = _with_token(rule, single_use=operation.single_use)
    if per_tenant and operation.tenant is not None and operation.tenant.claim:
        return DecisionCode.TENANT_MISSING.value, with_token or _shown(rule)
    return _shown(rule), with_token


def _shown(rule: Rule) -> str:
    return f"{rule.code} {rule.policy}".strip()


def _with_token(rule: Rule, *, single_use: bool) -> str:
    if rule.token is None:
        return ""
    return "; ".join(_by_approver(rule.token)) + (" (once)" if single_use else "")


def _by_approver(rules: TokenRules) -> Iterator[str]:
    yield f"without approval: {_by_origin(rules.unapproved)}"
    for approver, origins in sorted(rules.approved_by.items()):
        yield f"approved by {approver}: {_by_origin(origins)}"
    yield f"approved: {_by_origin(rules.approved)}"


def _by_origin(rules: OriginRules) -> str:
    named = [f"from {origin} {_shown(rule)}" for origin, rule in sorted(rules.by_origin.items())]
    return ", ".join([*named, _shown(rules.otherwise)])
