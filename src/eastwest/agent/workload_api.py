"""The SPIFFE Workload API on the agent's socket, with SPIRE's codes and habits.

Every call must say that it means to (``workload.spiffe.io: true``) and is attested when it begins. Streams are sent
the full state, again whenever it changes, and end when the caller's last entry goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from eastwest import errors
from eastwest.agent.callers import Attest, Caller, NoIdentity, served_entries
from eastwest.agent.identities import Held, Identities
from eastwest.agent.jwts import JwtCache
from eastwest.agent.knowledge import Knowledge
from eastwest.api.spiffe.workload import workload_pb2 as api
from eastwest.clock import Clock
from eastwest.pki.chain import InvalidSvid
from eastwest.pki.jwks import export_jwks
from eastwest.pki.jwt import unverified_subject, validate
from eastwest.registry.containment import IdentityContained
from eastwest.registry.entry import Entry
from eastwest.rpc.service import SMALL_MESSAGE, Call, Service
from eastwest.spiffe.id import MalformedSpiffeId, SpiffeId

SECURITY_HEADER = "workload.spiffe.io"
FIRST_SVID_SECONDS = 30.0
"""How long a caller waits for SVIDs that are still to be signed before it is told to try again."""


class WorkloadApi:
    """Serves callers that ``attest`` vouches for."""

    def __init__(
        self, knowledge: Knowledge, identities: Identities, jwts: JwtCache, attest: Attest, clock: Clock
    ) -> None:
        self._knowledge = knowledge
        self._identities = identities
        self._jwts = jwts
        self._attest = attest
        self._clock = clock

    def service(self) -> Service:
        """To be added to the agent's listener."""
        return Service(
            api.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"],
            {
                "FetchX509SVID": self._fetch_x509_svid,
                "FetchX509Bundles": self._fetch_x509_bundles,
                "FetchJWTSVID": self._fetch_jwt_svid,
                "FetchJWTBundles": self._fetch_jwt_bundles,
                "ValidateJWTSVID": self._validate_jwt_svid,
            },
            guard=_require_header,
            limit=SMALL_MESSAGE,
        )

    async def _fetch_x509_svid(self, _: api.X509SVIDRequest, call: Call) -> None:
        caller = await self._attest(call)

        def view(entries: tuple[Entry, ...]) -> Message | None:
            return self._x509_response(entries)

        await self._stream(call, caller, view, FIRST_SVID_SECONDS)

    async def _fetch_x509_bundles(self, _: api.X509BundlesRequest, call: Call) -> None:
        caller = await self._attest(call)

        def view(entries: tuple[Entry, ...]) -> Message:
            bundles = self._knowledge.state.bundles_for(entries)
            return api.X509BundlesResponse(bundles={domain.uri: b.x509_der for domain, b in bundles.items()})

        await self._stream(call, caller, view)

    async def _fetch_jwt_bundles(self, _: api.JWTBundlesRequest, call: Call) -> None:
        caller = await self._attest(call)

        def view(entries: tuple[Entry, ...]) -> Message:
            bundles = self._knowledge.state.bundles_for(entries)
            return api.JWTBundlesResponse(bundles={domain.uri: export_jwks(b) for domain, b in bundles.items()})

        await self._stream(call, caller, view)

    async def _fetch_jwt_svid(self, request: api.JWTSVIDRequest, call: Call) -> api.JWTSVIDResponse:
        if not request.audience or not all(request.audience):
            raise errors.InvalidInput("audience must be specified")
        wanted = _requested_id(request.spiffe_id)
        caller = await self._attest(call)
        entries = [entry for entry in self._entries(caller) if wanted is None or entry.spiffe_id == wanted]
        if not entries:
            raise NoIdentity
        tokens = await asyncio.gather(*(self._jwts.fetch(entry, list(request.audience)) for entry in entries))
        return api.JWTSVIDResponse(
            svids=[
                api.JWTSVID(spiffe_id=str(token.id), svid=token.token, hint=entry.hint)
                for entry, token in zip(entries, tokens, strict=True)
            ]
        )

    async def _validate_jwt_svid(self, request: api.ValidateJWTSVIDRequest, call: Call) -> api.ValidateJWTSVIDResponse:
        if not request.audience:
            raise errors.InvalidInput("audience must be specified")
        if not request.svid:
            raise errors.InvalidInput("svid must be specified")
        caller = await self._attest(call)
        bundles = self._knowledge.state.bundles_for(self._entries(caller))
        try:
            subject = unverified_subject(request.svid)
            bundle = bundles.get(subject.trust_domain)
            if bundle is None:
                raise errors.InvalidInput(f"no bundle for trust domain {subject.trust_domain}")
            valid = validate(request.svid, request.audience, bundle, self._clock.now())
        except InvalidSvid as error:
            raise errors.InvalidInput(error.message) from None
        if str(valid.id) in self._knowledge.state.contained:
            raise errors.InvalidInput(IdentityContained(str(valid.id)).message)
        claims = Struct()
        claims.update(msgspec.to_builtins(dict(valid.claims)))
        return api.ValidateJWTSVIDResponse(spiffe_id=str(valid.id), claims=claims)

    async def _stream(
        self, call: Call, caller: Caller, view: Callable[[tuple[Entry, ...]], Message | None], patience: float = 0.0
    ) -> None:
        """Send ``view`` at once and whenever it differs from what was sent last; None is sent never."""
        sent: bytes | None = None
        give_up = self._clock.monotonic() + patience
        while True:
            seen = self._knowledge.changes.count
            message = view(self._entries(caller))
            if message is not None:
                body = message.SerializeToString(deterministic=True)
                if body != sent:
                    await call.send(message)
                    sent = body
                    continue
            try:
                left = give_up - self._clock.monotonic()
                async with asyncio.timeout(left if sent is None and message is None else None):
                    await self._knowledge.changes.beyond(seen)
            except TimeoutError:
                raise errors.Unavailable("the identity is registered, and its certificate cannot be had yet") from None

    def _entries(self, caller: Caller) -> tuple[Entry, ...]:
        return served_entries(self._knowledge, caller.selectors, self._clock)

    def _x509_response(self, entries: tuple[Entry, ...]) -> api.X509SVIDResponse | None:
        """All SVIDs of ``entries``, or None while some are still being made for the first time."""
        state = self._knowledge.state
        held: list[tuple[Entry, Held]] = []
        for entry in entries:
            one = self._identities.held(entry)
            if one is not None:
                held.append((entry, one))
            elif self._identities.failure(entry) is None:
                return None
        if not held:
            return None
        response = api.X509SVIDResponse()
        bundle = state.bundle.x509_der
        for entry, one in held:
            response.svids.add(
                spiffe_id=str(one.svid.id),
                x509_svid=b"".join(one.svid.chain),
                x509_svid_key=one.key.pkcs8,
                bundle=bundle,
                hint=entry.hint,
            )
        for domain, federated in state.bundles_for(entry for entry, _ in held).items():
            if domain != state.trust_domain:
                response.federated_bundles[domain.uri] = federated.x509_der
        return response


def _requested_id(text: str) -> SpiffeId | None:
    if not text:
        return None
    try:
        return SpiffeId.parse(text)
    except MalformedSpiffeId as error:
        raise errors.InvalidInput(f"invalid requested SPIFFE ID: {error.message}") from None


async def _require_header(call: Call) -> None:
    value: Any = call.metadata.get(SECURITY_HEADER)
    if value != "true":
        raise errors.InvalidInput(f"security header missing from request: {SECURITY_HEADER}: true")
