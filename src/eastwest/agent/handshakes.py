"""TLS handshakes that failed, out of Envoy's access logs: at a service's listener, and on the way out to one."""

from __future__ import annotations

import binascii
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from eastwest.errors import InvalidInput
from eastwest.ledger.handshake import Shown, cause_of, server_cause_of
from eastwest.ledger.record import Decision
from eastwest.mesh import logs, names
from eastwest.mesh.action import InForce
from eastwest.policy.enforcement import DecisionCode, MtlsMode, Verdict
from eastwest.spiffe.id import MalformedSpiffeId, SpiffeId

MAX_TEXT = 256
MAX_CERTIFICATE = 64 * 1024
"""Characters of a certificate as Envoy quotes it; a longer one is as good as none."""
Left = Callable[[bytes], bool]
"""Whether an authority signed this certificate (DER) that was trusted here once and is no more."""


def never_left(_certificate: bytes) -> bool:
    """For those who remember no authorities."""
    return False


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Who calls, where a workload's sidecar is on its way out to a service."""

    caller: str
    policy_version: str


def refused_handshake(entry: Any, current: InForce, node: str, left: Left = never_left) -> Decision | None:
    """The decision in a listener's entry, where the connection ended in its TLS handshake; else None."""
    common = entry.common_properties
    if not common.downstream_transport_failure_reason:
        return None
    caller, _ = caller_of(common)
    shown = Shown(_uris(common), _certificate(common))
    cause = cause_of(common.downstream_transport_failure_reason, shown, left)
    if cause.plaintext:  # the look into the first bytes leaves this mark; the plaintext chain makes its own entry
        return None
    return Decision(
        time=time_of(common),
        service=current.service,
        verdict=Verdict.DENY,
        code=cause.code,
        mode=current.mode,
        enforced=True,
        caller=caller[:MAX_TEXT],
        claimed=bool(caller),
        policy_version=current.policy_version,
        rules_version=current.version,
        node=node,
        reference=common.stream_id[:MAX_TEXT],
        cause=cause.name,
        source=source_of(common),
    )


def refused_server(entry: Any, outgoing: Callable[[str], Outgoing | None], node: str) -> Decision | None:
    """The decision in an entry of the way out, where the sidecar refused what the service showed; else None.

    ``outgoing(service)``: who calls it from here; None where nobody may.
    """
    common = entry.common_properties
    service = common.upstream_cluster.removeprefix(names.remote_cluster(""))
    caller = outgoing(service) if service != common.upstream_cluster else None
    if caller is None or not common.upstream_transport_failure_reason:
        return None
    cause = server_cause_of(common.upstream_transport_failure_reason)
    if cause is None:
        return None
    return Decision(
        time=time_of(common),
        service=service,
        verdict=Verdict.DENY,
        code=DecisionCode.SERVER_REFUSED,
        mode=MtlsMode.STRICT,
        enforced=True,
        caller=caller.caller,
        policy_version=caller.policy_version,
        node=node,
        reference=(entry.request.request_id if hasattr(entry, "request") else common.stream_id)[:MAX_TEXT],
        cause=cause.name,
    )


def caller_of(common: Any) -> tuple[str, bool]:
    """The peer's URI SANs, joined as Envoy joins them, and whether they are one SPIFFE ID."""
    text = ",".join(_uris(common))
    try:
        SpiffeId.parse(text)
    except MalformedSpiffeId:
        return text, False
    return text, True


def source_of(common: Any) -> str:
    """The peer's address, without the port."""
    return str(common.downstream_direct_remote_address.socket_address.address)


def time_of(common: Any) -> datetime:
    """When the connection or request began. Raises ``InvalidInput`` where that is no moment."""
    start = common.start_time
    try:
        return datetime.fromtimestamp(start.seconds, UTC).replace(microsecond=start.nanos // 1000)
    except (ValueError, OverflowError, OSError):
        raise InvalidInput("a log entry has an impossible time") from None


def _uris(common: Any) -> tuple[str, ...]:
    return tuple(san.uri for san in common.tls_properties.peer_certificate_properties.subject_alt_name if san.uri)


def _certificate(common: Any) -> bytes:
    quoted = str(common.custom_tags.get(logs.PEER, ""))
    if not quoted or len(quoted) > MAX_CERTIFICATE:
        return b""
    try:
        return ssl.PEM_cert_to_DER_cert(unquote(quoted))
    except (ValueError, binascii.Error):
        return b""
