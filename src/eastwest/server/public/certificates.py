"""``eastwest.certificates.v1.Certificates``: long-lived certificates, listed and revoked by administrators."""

from __future__ import annotations

import re

from eastwest.api.eastwest.certificates.v1 import certificates_pb2 as pb
from eastwest.clock import Clock
from eastwest.errors import InvalidInput, NotFound
from eastwest.pki.revocation import Reason, RevocationUrls
from eastwest.rpc.service import Call, Service
from eastwest.server.gate import Gate
from eastwest.server.public.revocation import MAX_AT_ONCE, Revocations
from eastwest.spiffe.id import SpiffeId
from eastwest.store.revocation import MAX_ROWS, CertificateQuery, Registered, SqliteRevocations

_SERVICE = pb.DESCRIPTOR.services_by_name["Certificates"]
_SERIAL = re.compile(r"[0-9a-fA-F]{1,40}")
_TOKEN = re.compile(r"([0-9]{1,15}) ([0-9a-f]{1,128}) ([0-9a-f]{1,40})")
_WHAT_TO_DO = (
    "short-lived certificates are not revoked but end by themselves: to contain one now, ban the node"
    " (eastwest node ban ID) or delete the entry (eastwest entry delete ENTRY), and deny the identity by policy"
)


class CertificateService:
    """What can be revoked, and revoking it."""

    def __init__(
        self,
        store: SqliteRevocations,
        revocations: Revocations | None,
        urls: RevocationUrls | None,
        clock: Clock,
        gate: Gate,
    ) -> None:
        """``revocations`` and ``urls`` are None where the server publishes none."""
        self._store = store
        self._revocations = revocations
        self._urls = urls
        self._clock = clock
        self._gate = gate

    def service(self) -> Service:
        """The gRPC service of the admin socket."""
        return Service(
            _SERVICE,
            {"ListCertificates": self._list, "RevokeCertificates": self._revoke},
            guard=self._gate.enter,
        )

    async def _list(self, request: pb.ListCertificatesRequest, call: Call) -> pb.ListCertificatesResponse:
        await self._gate.admin(call)
        limit = min(request.page_size or 100, MAX_ROWS)
        query = CertificateQuery(
            now=self._clock.now(),
            serial=_serial(request.serial) if request.serial else None,
            spiffe_id=str(SpiffeId.parse(request.spiffe_id)) if request.spiffe_id else "",
            only_revoked=request.only_revoked,
            limit=limit,
            after=_after(request.page_token),
        )
        found = await self._store.find(query)
        reply = pb.ListCertificatesResponse(certificates=[self._told(each) for each in found])
        if len(found) == limit:
            last = found[-1].issued
            reply.next_page_token = f"{int(last.not_after.timestamp())} {last.issuer_key_id} {last.serial:x}"
        return reply

    async def _revoke(self, request: pb.RevokeCertificatesRequest, call: Call) -> pb.RevokeCertificatesResponse:
        actor = await self._gate.admin(call)
        reason = _reason(request.reason)
        if bool(request.serials) == bool(request.spiffe_id):
            raise InvalidInput("name the certificates by their serials, or else by one SPIFFE ID")
        if len(request.serials) > MAX_AT_ONCE:
            raise InvalidInput(f"at most {MAX_AT_ONCE} certificates can be revoked at once")
        now = self._clock.now()
        if request.spiffe_id:
            spiffe_id = str(SpiffeId.parse(request.spiffe_id))
            wanted = await self._store.find(CertificateQuery(now=now, spiffe_id=spiffe_id, limit=MAX_AT_ONCE))
            if not wanted:
                raise NotFound(f"{spiffe_id} has no certificate that can be revoked", fix=_WHAT_TO_DO)
        else:
            wanted = [one for text in dict.fromkeys(request.serials) for one in await self._by_serial(text)]
        if self._revocations is None:
            raise NotFound("this server publishes no revocations", fix="set revocation_url and revocation_port")
        done = await self._revocations.revoke(wanted, reason, actor)
        return pb.RevokeCertificatesResponse(certificates=[self._told(each) for each in done])

    async def _by_serial(self, text: str) -> list[Registered]:
        found = await self._store.find(CertificateQuery(now=self._clock.now(), serial=_serial(text)))
        if not found:
            raise NotFound(f"no certificate that can be revoked has the serial {text}", fix=_WHAT_TO_DO)
        return found

    def _told(self, registered: Registered) -> pb.Certificate:
        issued, revoked = registered.issued, registered.revoked
        return pb.Certificate(
            serial=f"{issued.serial:x}",
            issuer_key_id=issued.issuer_key_id,
            spiffe_id=str(issued.spiffe_id),
            profile=issued.profile,
            not_before=int(issued.not_before.timestamp()),
            not_after=int(issued.not_after.timestamp()),
            node=issued.node,
            entry_id=issued.entry_id,
            revoked_at=int(revoked.revoked_at.timestamp()) if revoked else 0,
            reason=revoked.reason.value if revoked else "",
            crl_url=self._urls.crl(issued.issuer_key_id, issued.shard) if self._urls else "",
            certificate=issued.der,
        )


def _serial(text: str) -> int:
    plain = text.replace(":", "")
    if not _SERIAL.fullmatch(plain):
        raise InvalidInput(
            f"{text[:80]!r} is not a serial number", fix="hexadecimal, as openssl x509 -serial prints it"
        )
    return int(plain, 16)


def _reason(text: str) -> Reason:
    try:
        return Reason(text or Reason.UNSPECIFIED)
    except ValueError:
        raise InvalidInput(f"{text[:40]!r} is not a reason", fix=f"one of {', '.join(Reason)}") from None


def _after(token: str) -> tuple[int, str, str] | None:
    if not token:
        return None
    parts = _TOKEN.fullmatch(token)
    if parts is None:
        raise InvalidInput("the page token is not one of ours")
    return int(parts[1]), parts[2], parts[3]
