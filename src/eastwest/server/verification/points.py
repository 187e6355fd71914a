"""Where to ask: every address of every service, with the rules that what runs there was told, and who told it."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec

from eastwest.mesh.action import inbound_version
from eastwest.policy.canary import MAX_CANARIES, Examination, Point, checks
from eastwest.policy.enforcement import MtlsMode, Sidecar
from eastwest.policy.estate import Estate, Sensitivity, Service
from eastwest.server.control import AgentStream, ControlHub
from eastwest.server.estate import EstateKeeper
from eastwest.server.verification.diagnosis import Instance
from eastwest.server.view import AgentView
from eastwest.spiffe.id import SpiffeId

_READING = frozenset({Sensitivity.OPEN, Sensitivity.READ, Sensitivity.RESTRICTED_READ})


def instances(hub: ControlHub, view: AgentView, run: str = "") -> list[Instance]:
    """Every sidecar that agents have told of; of those looked at in ``run``, with what was found."""
    found = []
    for agent, stream in sorted(hub.streams.items()):
        for node_id, status in sorted(stream.sidecars.items()):
            given = view.intended(agent, SpiffeId.parse(status.spiffe_id))
            found.append(
                Instance(
                    agent=str(agent),
                    node_id=node_id,
                    spiffe_id=status.spiffe_id,
                    connected=status.connected,
                    agent_connected=stream.session is not None,
                    agent_behind=_is_behind(stream),
                    acknowledged=status.acknowledged_version,
                    intended=given.config.compiled.version if given is not None else "",
                    error=status.error,
                    examination=_examination(status.examination) if run and status.examined_run == run else None,
                )
            )
    return found


def points(
    estate: EstateKeeper, view: AgentView, running: Sequence[Instance], trust_domain: str, wanted: Collection[str]
) -> Iterator[Point]:
    """The points of ``wanted`` services (none: of all). Raises ``KeyError`` with one that the estate does not have."""
    intended = estate.intended
    if intended is None:
        return
    unknown = set(wanted) - {service.service for service in intended.services}
    if unknown:
        raise KeyError(min(unknown))
    enforced = estate.enforced
    by_workload: dict[str, list[Instance]] = {}
    for one in running:
        by_workload.setdefault(one.spiffe_id, []).append(one)
    reading = _reading(intended)
    contained = view.contained()  # what is cut off has nothing to prove
    for service in intended.services:
        if (wanted and service.service not in wanted) or service.workload in contained:
            continue
        behind = sorted(by_workload.get(service.workload, ()), key=lambda one: not one.connected)
        sidecar, version = _given(view, behind, enforced, service.workload, estate.version)
        inbound = next((one for one in sidecar.inbound if one.service == service.service), None) if sidecar else None
        if sidecar is None or inbound is None:
            continue
        asked = checks(sidecar, inbound, trust_domain, reading)
        note = ""
        if inbound.protocol == "tcp":
            note = "tcp: only handshakes are proved, a connection has no answer"
        elif inbound.post_quantum:
            note = "post-quantum: only handshakes are proved, canaries have classical keys"
        if _differ(view, behind, service):
            asked = tuple(check for check in asked if not check.caller)
            note = "its sidecars are given different rules while a change rolls out: only handshakes are proved"
        elif len({check.stands_for for check in asked} - {""}) >= MAX_CANARIES:
            note = f"canaries stand for {MAX_CANARIES} of its callers; answers that only others get are not proved"
        for host, port in _addresses(service):
            yield Point(
                service=service.service,
                spiffe_id=service.workload,
                host=host,
                port=port,
                protocol=inbound.protocol,
                strict=inbound.mode is not MtlsMode.PERMISSIVE,
                version=inbound_version(inbound),
                policy_version=version,
                agent=behind[0].agent if len({one.agent for one in behind}) == 1 else "",
                note=note,
                settling=any(one.agent_connected and one.stale for one in behind),
                cut_off=bool(behind) and not any(one.agent_connected for one in behind),
                checks=asked,
            )


def _given(
    view: AgentView, behind: Sequence[Instance], enforced: Mapping[str, Sidecar], workload: str, version: str
) -> tuple[Sidecar | None, str]:
    """The rules that hold at the point: while a change rolls out, those that its agent was given."""
    for one in behind:
        given = view.intended(SpiffeId.parse(one.agent), SpiffeId.parse(workload))
        if given is not None:
            return given.config.compiled, given.version
    return enforced.get(workload), version


def _differ(view: AgentView, behind: Sequence[Instance], service: Service) -> bool:
    """Whether sidecars that may stand behind one address are meant to enforce different rules of the service."""
    versions = set()
    for one in behind:
        given = view.intended(SpiffeId.parse(one.agent), SpiffeId.parse(service.workload)) if one.connected else None
        if given is not None:
            versions |= {inbound_version(i) for i in given.config.compiled.inbound if i.service == service.service}
    return len(versions) > 1


def _reading(estate: Estate) -> frozenset[str]:
    return frozenset(o.name for service in estate.services for o in service.operations if o.sensitivity in _READING)


def _addresses(service: Service) -> list[tuple[str, int]]:
    if service.endpoints:
        return [(host.strip("[]"), int(port)) for host, _, port in (e.rpartition(":") for e in service.endpoints)]
    address = ipaddress.ip_address(service.listen.address)
    here = "::1" if address.version == 6 else "127.0.0.1"
    return [(here if address.is_unspecified else str(address), service.listen.port)]


def _is_behind(stream: AgentStream) -> bool:
    return stream.acknowledged < stream.number


def _examination(told: bytes) -> Examination | None:
    try:
        return msgspec.json.decode(told, type=Examination)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Examination(unread=("what the agent told of it cannot be read",))
