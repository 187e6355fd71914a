"""Enforcement for ``grpc.aio`` servers: an interceptor, and credentials that follow a source.

    server = grpc.aio.server(interceptors=[EnforcementInterceptor(source, "billing")])
    server.add_secure_port("127.0.0.1:9443", server_credentials(source))

A refused call ends with PERMISSION_DENIED, the sentence as details, and the code in the trailing metadata
``x-eastwest-code``. Rules of a gRPC service are of methods: its operations match ``grpc: package.Service/Method``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextvars import ContextVar
from typing import Any

import grpc

from eastwest.errors import FailedPrecondition, Unauthenticated
from eastwest.mesh.replies import CODE_HEADER, sentence
from eastwest.pki.chain import dump_chain_pem
from eastwest.policy.enforcement import DecisionCode
from eastwest.sdk.decide import CallInfo, Decision, OnDecision, decide, use_once
from eastwest.sdk.peers import Peer, Peers, chain_of_pem
from eastwest.sdk.recording import refused_certificate, told
from eastwest.sdk.source import RuleSource

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

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        metadata = handler_call_details.invocation_metadata or ()

        async def enter(context: Any) -> None:
            decision = await self._decide(method, metadata, context)
            if not decision.passes or decision.request is None:
                await _abort(context, decision)
            current_call.set(decision.call)

        return _guarded(handler, enter)

    async def _decide(self, method: str, metadata: Any, context: Any) -> Decision:
        source = self._source
        rules, now = source.rules, source.now()
        peer: Peer | None = None
        refused = ""
        try:
            chain = _shown(context.auth_context())
            if chain and rules is not None:
                peer = self._peers.verify(chain, rules.bundles, now)
        except Unauthenticated as error:
            refused = error.message
        headers = [(key, value) for key, value in metadata if isinstance(value, str) and not key.startswith(":")]
        headers.append(("host", "grpc"))  # the library keeps the authority for itself
        decision = decide(rules, self._service, peer, "POST", method, headers, now, http_version="2")
        decision = refused_certificate(decision, refused) if refused else await use_once(decision, source.use_token)
        if decision.code in DecisionCode.__members__:
            source.report(told(decision, source.now(), source_address=context.peer()))
        if self._on_decision is not None:
            self._on_decision(decision)
        return decision


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


async def _abort(context: Any, decision: Decision) -> None:
    await context.abort(grpc.StatusCode.PERMISSION_DENIED, sentence(decision.code), ((CODE_HEADER, decision.code),))


def _guarded(handler: Any, enter: Callable[[Any], Awaitable[None]]) -> Any:
    """The handler behind ``enter``; where there is none, the refusal comes first all the same."""
    if handler is None:

        async def unimplemented(_: Any, context: Any) -> None:
            await enter(context)
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no such method")

        return grpc.unary_unary_rpc_method_handler(unimplemented)

    async def single(request: Any, context: Any) -> Any:
        await enter(context)
        return await (handler.unary_unary or handler.stream_unary)(request, context)

    async def many(request: Any, context: Any) -> AsyncIterator[Any]:
        await enter(context)
        answers = (handler.unary_stream or handler.stream_stream)(request, context)
        if hasattr(answers, "__aiter__"):
            async for answer in answers:
                yield answer
        else:
            await answers  # writes to the context itself

    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(
        many if handler.response_streaming else single,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
