"""What mends a caller that strict mode would refuse: a command or a line of the estate, by cause."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eastwest.ledger.failure import advice
from eastwest.policy.failures import FailureClass

if TYPE_CHECKING:
    from eastwest.ledger.breaks import Break

MAX_PART = 96
"""Characters of one part of a process's name, as agents tell it; one of that length may have been cut."""
_CLASSES = {kind.value: kind for kind in FailureClass}


def fix_of(found: Break, trust_domain: str) -> str:
    """One concrete step."""
    if found.cause == "plaintext":
        return _plaintext(found, trust_domain)
    if found.cause == "old_http":
        return f"it speaks HTTP/1.0, which no sidecar takes in any mode{_at(found)}: let it speak HTTP/1.1, with mTLS"
    if found.cause == FailureClass.WRONG_TRUST_DOMAIN.value:
        foreign = found.caller.removeprefix("spiffe://").partition("/")[0]
        return f"give it an identity of {trust_domain}; or estate.yaml: federation: [{{trust_domain: {foreign}, ...}}]"
    if found.cause == FailureClass.EXPIRED.value:
        return f"on its node{_at(found)}: eastwest agent check; its agent does not renew"
    if found.cause == FailureClass.NO_CERTIFICATE.value:
        return f"it speaks TLS without a certificate{_at(found)}: let it call through a sidecar or the SDK"
    if found.cause in _CLASSES:
        return advice(_CLASSES[found.cause], "CERTIFICATE_REFUSED", found.cause).fix
    if found.cause == "unknown_caller":
        return f"workloads/*.yaml: - spiffe_id: {found.caller}"
    if found.cause == "tenant_missing":
        return f"it names no tenant: let it do so as {found.service} says (services/*.yaml, tenant)"
    if found.cause in {"step_up_required", "approval_required"} or found.cause.startswith("token_"):
        return f"what it asks of {found.service} needs a transaction token: let it bring one (services/*.yaml, demands)"
    if found.cause == "forbidden_by_policy":
        return f"a forbid of policies/*.cedar says no at {found.service}: eastwest explain names it; or leave it so"
    if found.cause == "unlisted_operation":
        return f"services/*.yaml: add what it asks for to the operations of {found.service}"
    if found.caller.startswith("spiffe://"):
        return f'policies/*.cedar: permit (principal == Workload::"{found.caller}", ...); or leave it, if it should not'
    return f"eastwest decisions --service {found.service} --verdict deny"


def _plaintext(found: Break, trust_domain: str) -> str:
    parts = dict(part.split(":", 1) for part in found.caller.split(" ") if ":" in part)
    if found.likely:
        return f"it is registered as {found.likely}: eastwest sidecar run beside it, and let it call through that"
    if found.confidence != "process":
        where = next(iter(found.sources), "")
        return f"on {where or 'its node'}: ss -tnp 'dport = :{found.port}' names the process; register it"
    selectors = [f"systemd:id:{parts['unit']}"] if parts.get("unit") else [f"unix:uid:{parts.get('uid', '')}"]
    script = "" if parts.get("unit") else parts.get("from", "")
    # A path that was cut or encoded is no selector, and that of a tool is everybody's.
    if not (parts.get("unit") or script or "%" in parts.get("exe", "%") or len(parts["exe"]) >= MAX_PART):
        selectors.append(f"unix:path:{parts['exe']}")
    quoted = ", ".join(f'"{selector}"' for selector in selectors)
    own = f"run {script} as a user of its own; " if script else ""
    return f"{own}workloads/*.yaml: - {{spiffe_id: spiffe://{trust_domain}/..., selectors: [{quoted}]}}; then a sidecar"


def _at(found: Break) -> str:
    where = found.node or next(iter(found.sources), "")
    return f" ({where})" if where else ""
