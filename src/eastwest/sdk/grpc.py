"""Enforcement for ``grpc.aio`` servers: an interceptor, and credentials that follow a source.

    server = grpc.aio.server(interceptors=[EnforcementInterceptor(source, "billing")])
    server.add_secure_port("127.0.0.1:9443", server_credentials(source))

A refused call ends with PERMISSION_DENIED, the sentence as details, and in the trailing metadata the code
(``x-eastwest-code``) and the reference (``x-request-id``). Rules of a gRPC service are of methods: its operations match
``grpc: package.Service/Method``. Put the interceptor first: those behind it hear of calls that were let through alone,
and they as the handler see the metadata as it was decided, with ``x-eastwest-caller`` for whom the certificate names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import grpc

from eastwest.errors import FailedPrecondition, Unauthenticated
from eastwest.mesh.replies import CODE_HEADER
from eastwest.pki.chain import dump_chain_pem
from eastwest.sdk import refusals
from eastwest.sdk.decide import CallInfo, Decision, OnDecision, decide, use_once
from eastwest.sdk.grpc_calls import handed_on, serve
from eastwest.sdk.peers import Peer, Peers, chain_of_pem
from eastwest.sdk.recording import refused_certificate, told
from eastwest.sdk.source import RuleSource
from eastwest.sdk.underway import CutOff

current_call: ContextVar[CallInfo] = ContextVar("current_call")
"""The call that a handler serves, as ``scope["eastwest"]`` for ASGI; only there set."""
_END = "-----END CERTIFICATE-----"


def server_credentials(source: RuleSource) -> grpc.ServerCredentials:
    """Credentials that show the source's newest SVID and take only callers with a certificate that verifies.

    To be made once the source is ``ready``.
    """
    made_of: list[object] = []

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        now = [source.identity, source.rules]
        if made_of == now:
            return None
        made_of[:] = now
        return _configuration(source)

    return grpc.dynamic_ssl_server_credentials(_configuration(source), fetch, require_client_authentication=True)


class EnforcementInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Decides every call of ``service`` before its handler runs."""

    def __init__(self, source: RuleSource, service: str, *, on_decision: OnDecision | None = None) -> None:
        self._source = source
        self._service = service
        self._on_decision = on_decision
        self._peers = Peers()
        source.expect(service)

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        metadata = handler_call_details.invocation_metadata or ()

        # Who calls is known only to a handler's context, so the rest of the way is gone from within one.
        async def guarded(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            decision, reference = await self._decide(handler_call_details.method, metadata, context)
            if not decision.passes or decision.request is None:
                await _abort(context, decision, reference)
            current_call.set(decision.call)
            decided = handed_on(metadata, decision)
            try:
                with self._source.underway.serving(decision.principal, decision.token) as call:
                    async for answer in serve(continuation, handler_call_details, decided, requests, context):
                        call.check()
                        yield answer
            except CutOff as cut_off:
                await _abort(context, replace(decision, code=cut_off.code), reference)

        return grpc.stream_stream_rpc_method_handler(guarded)

    async def _decide(self, method: str, metadata: Any, context: Any) -> tuple[Decision, str]:
        source = self._source
        rules, now = source.rules, source.now()
        peer: Peer | None = None
        refused: Unauthenticated | None = None
        try:
            chain = _shown(context.auth_context())
            if chain and rules is not None:
                peer = self._peers.verify(chain, rules.bundles, now)
        except Unauthenticated as error:
            refused = error
        headers = [(key, value) for key, value in metadata if isinstance(value, str) and not key.startswith(":")]
        headers.append(("host", "grpc"))  # the library keeps the authority for itself
        decision = decide(
            rules, self._service, peer, "POST", method, headers, now, http_version="2", records=source.records
        )
        decision = refused_certificate(decision, refused) if refused else await use_once(decision, source.use_token)
        given, trace = (dict(headers).get(name, "") for name in ("x-request-id", "traceparent"))
        reference = refusals.reference(decision, given)
        if refusals.is_recorded(decision, known=rules is not None):
            source.report(
                told(decision, source.now(), reference=reference, source_address=context.peer(), traceparent=trace)
            )
        if self._on_decision is not None:
            self._on_decision(decision)
        return decision, reference


def _configuration(source: RuleSource) -> grpc.ServerCertificateConfiguration:
    identity, rules = source.identity, source.rules
    if identity is None or rules is None:
        raise FailedPrecondition("the source has no identity yet", fix="wait for it: await source.ready()")
    trusted = dict.fromkeys([*identity.roots, *(root for roots in rules.bundles.values() for root in roots)])
    return grpc.ssl_server_certificate_configuration(
        [(identity.key_pem, dump_chain_pem(identity.chain))], root_certificates=dump_chain_pem(list(trusted))
    )


def _shown(auth: dict[str, list[bytes]]) -> tuple[bytes, ...]:
    """The chain that the peer showed, leaf first; what gRPC calls the chain may lack the leaf."""
    leaf, rest = (_certificates(auth.get(name) or ()) for name in ("x509_pem_cert", "x509_pem_cert_chain"))
    return (*leaf[:1], *(der for der in rest if der not in leaf))


def _certificates(texts: Iterable[bytes]) -> tuple[bytes, ...]:
    joined = b"".join(texts).decode("ascii", "replace")
    return chain_of_pem([part + _END for part in joined.split(_END) if part.strip()])


async def _abort(context: Any, decision: Decision, reference: str) -> None:
    more = ((CODE_HEADER, decision.code), ("x-request-id", reference))
    await context.abort(grpc.StatusCode.PERMISSION_DENIED, refusals.said(decision), more)
