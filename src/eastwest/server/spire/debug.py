"""``spire.api.server.debug.v1.Debug``: the server about itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cryptography import x509

from eastwest.api.spire.api.server.debug.v1 import debug_pb2 as pb
from eastwest.registry.registry import Registry
from eastwest.rpc.service import Call, Service
from eastwest.rpc.spire import id_to_proto
from eastwest.rpc.tls import certificate_id
from eastwest.server.gate import Gate

_SERVICE = pb.DESCRIPTOR.services_by_name["Debug"]


def debug_service(
    registry: Registry, chain: Callable[[], Sequence[bytes]], uptime: Callable[[], float], gate: Gate
) -> Service:
    """``chain`` gives the server's own certificates (DER, leaf first); ``uptime`` seconds."""

    def _certificate(der: bytes) -> pb.GetInfoResponse.Cert:
        certificate = x509.load_der_x509_certificate(der)
        spiffe_id = certificate_id(der)
        return pb.GetInfoResponse.Cert(
            id=id_to_proto(spiffe_id) if spiffe_id else None,
            expires_at=int(certificate.not_valid_after_utc.timestamp()),
            subject=certificate.subject.rfc4514_string(),
        )

    async def get_info(_request: pb.GetInfoRequest, call: Call) -> pb.GetInfoResponse:
        await gate.admin(call)
        return pb.GetInfoResponse(
            svid_chain=[_certificate(der) for der in chain()],
            uptime=int(uptime()),
            agents_count=registry.nodes.count(),
            entries_count=registry.entries.count(),
        )

    return Service(_SERVICE, {"GetInfo": get_info}, guard=gate.enter)
