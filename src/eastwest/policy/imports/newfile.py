"""A service file that is not there yet, from what a person says about the service."""

from __future__ import annotations

import msgspec

from eastwest.policy.forms import complaint
from eastwest.policy.imports.model import refuse
from eastwest.policy.problems import Findings, Position


class NewService(msgspec.Struct, frozen=True, kw_only=True):
    """What no document says: the fields of the same names in a service file; ``upstream`` a path or host:port."""

    service: str
    workload: str = ""
    owner: str = ""
    domain: str = ""
    port: int = 0
    upstream: str = ""


def head(new: NewService, tenant: str = "") -> str:
    """The beginning of the file, without operations; raises ``DocumentInvalid`` with all that is missing or wrong.

    ``tenant``: the parameter of paths that may be the tenant, for a person to confirm.
    """
    findings = Findings()
    forms = {"service": "name", "workload": "spiffe-id", "owner": "owner", "domain": "name"}
    for field, form in forms.items():
        _check(findings, field, form, getattr(new, field))
    if not 1 <= new.port <= 65535:
        findings.error(
            Position("--port"), "a new service file needs the port that its sidecar listens on", "1 to 65535"
        )
    is_socket = new.upstream.startswith("/")
    _check(findings, "upstream", "socket-path" if is_socket else "endpoint", new.upstream)
    refuse(findings)
    kind = "unix" if is_socket else "tcp"
    return (
        f"service: {new.service}\nworkload: {new.workload}\nowner: {new.owner}\ndomain: {new.domain}\n"
        f"listen: {{port: {new.port}, protocol: http, mtls: strict}}\n"
        f'upstream: {{{kind}: "{new.upstream}"}}\n' + suggested_tenant(tenant)
    )


def suggested_tenant(parameter: str) -> str:
    """A comment that becomes the tenant's source where it is right; "" without a parameter."""
    return f"# suggested: tenant: {{path: {parameter}}}\n" if parameter else ""


def _check(findings: Findings, field: str, form: str, value: str) -> None:
    where = Position(f"--{field}")
    if not value:
        findings.error(where, f"a new service file needs its {field}", f"give --{field}, or --into a file that exists")
    elif (wrong := complaint(form, value)) is not None:
        findings.error(where, wrong[0], wrong[1])
    elif '"' in value or "\\" in value or "\n" in value:
        findings.error(where, f"{value[:80]!r} has a quote, a backslash or a new line", "write it without")
