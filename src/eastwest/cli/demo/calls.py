"""A call as the demo asks for it, and what its caller, and then the ledger, said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from eastwest.cli.demo.processes import Lines

CODE_HEADER = "x-eastwest-code"
REFERENCE_HEADER = "x-request-id"
HANDSHAKE_REFUSED = "handshake refused"

Via = Literal["sidecar", "plaintext", "tls", "app-socket", "borrowed-sidecar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call: who makes it, how, and the answer that must come.

    ``via``: through the caller's own sidecar; straight to the port without TLS, or with TLS but no certificate;
    straight to the service's own socket; or through the sidecar of the workload ``borrowed``. ``status`` 0 means
    that no HTTP answer comes. ``code`` is the decision's, as the caller is told, and ``ledger`` the one that is
    recorded (by default the same; "-" where nobody can record anything). ``headers`` may carry the stolen key or a
    token, ``body`` a token.
    """

    name: str
    story: str
    caller: str
    service: str
    method: str = "GET"
    path: str
    via: Via = "sidecar"
    tenant: str = ""
    status: int
    code: str = ""
    error: str = ""
    ledger: str = ""
    borrowed: str = ""
    attack: bool = False
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: str = field(default="", repr=False)

    @property
    def recorded(self) -> str:
        """The code that the ledger must have."""
        return self.ledger or self.code or "ALLOWED"


@dataclass(slots=True)
class Made:
    """A call that was made: what the caller observed, and what the service's side recorded of it."""

    call: Call
    status: int = 0
    code: str = ""
    error: str = ""
    reference: str = ""
    reused: bool = False
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    certificate: str = field(default="", repr=False)
    record: Mapping[str, Any] | None = None

    @property
    def expected(self) -> str:
        """The answer that must come, as one short text."""
        return _answer(self.call.status, self.call.code, self.call.error)

    @property
    def observed(self) -> str:
        """The answer that came. Of a refused handshake its caller sees only an alert; the code is the ledger's."""
        if self.call.via == "tls" and self.error and self.certificate:
            return _answer(0, str((self.record or {}).get("code", "")), HANDSHAKE_REFUSED)
        return _answer(self.status, self.code, self.error)

    @property
    def verdict(self) -> str:
        """What the service's side recorded: ``allow``, ``deny``, or ``report`` where a refusal was only reported."""
        if self.record is None or "verdict" not in self.record:
            return ""
        denied = self.record["verdict"] == "deny"
        return "deny" if denied and self.record["enforced"] else "report" if denied else "allow"

    @property
    def ok(self) -> bool:
        return self.expected == self.observed


@dataclass(frozen=True, slots=True)
class Load:
    """What calling again and again came to: ``failures`` has a line for each call without the answer it must have."""

    calls: int
    connections: int
    failures: tuple[str, ...]


async def make(apps: Mapping[str, Lines], call: Call, port: int, *, socket: str = "", keep: str = "") -> Made:
    """Have the caller's own process make ``call`` to ``port`` or ``socket``.

    ``keep`` names a connection that the process keeps for later calls.
    """
    answer = await apps[call.caller].ask(command(call, port) | {"socket": socket, "keep": keep})
    found: dict[str, str] = answer.get("headers", {})
    return Made(
        call,
        status=answer.get("status", 0),
        code=found.get(CODE_HEADER, ""),
        error=answer.get("error", ""),
        reference=found.get(REFERENCE_HEADER, ""),
        reused=answer.get("reused", False),
        headers=found,
        body=_json(answer.get("body", "")),
        certificate=answer.get("peer_certificate", ""),
    )


def command(call: Call, port: int) -> dict[str, Any]:
    """``call`` as the app understands it."""
    headers = dict(call.headers)
    if call.tenant and call.service == "notification":
        headers["x-tenant"] = call.tenant
    return {
        "do": "call",
        "via": call.via,
        "service": call.service,
        "port": port,
        "method": call.method,
        "path": call.path,
        "headers": headers,
        "body": call.body,
    }


def _answer(status: int, code: str, error: str) -> str:
    return f"{status or error} {code}".strip()


def _json(body: str) -> Mapping[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}
