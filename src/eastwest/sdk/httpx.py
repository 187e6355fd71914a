"""httpx over mutual TLS between workloads: shows this process's SVID, and talks to exactly one SPIFFE ID.

    async with client(source, "spiffe://saas.example/prod/billing", "https://127.0.0.1:9443") as http:
        await http.get("/v1/tenants/acme/invoices")

Who the server is, is checked before a byte of a request leaves. When the SVID is renewed, new requests go over new
connections, and those under way finish on the old ones.
"""

from __future__ import annotations

import difflib
import json
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

import httpcore
import httpx

from eastwest.errors import Error, FailedPrecondition, PermissionDenied, Unavailable
from eastwest.policy.transaction import HEADER
from eastwest.rpc.workload_client import OwnSvid
from eastwest.sdk.peers import shown_chain, verify_peer
from eastwest.sdk.source import RuleSource, roots_of
from eastwest.sdk.tls import client_context
from eastwest.spiffe.id import SpiffeId

GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
TOKEN_TYPE = "urn:ietf:params:oauth:token-type:txn_token"  # noqa: S105 - a name of a type
IDLE_SECONDS = 60.0
"""After which a connection without a request is closed."""


class WrongServer(Unavailable):
    """The server is not whom it should be."""


class TokenNotGiven(PermissionDenied):
    """The token endpoint refused. ``error``: in OAuth's words; ``reason``: the stable code.

    ``approval``: the approval that waits for a decision, where one is needed.
    """

    def __init__(self, message: str, error: str, reason: str, approval: str = "", *, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.error = error
        self.reason = reason
        self.approval = approval


def client(source: RuleSource, server: SpiffeId | str, base_url: str = "", **options: Any) -> httpx.AsyncClient:
    """An ``httpx.AsyncClient`` (``options`` are its own) that talks to the workload ``server`` only."""
    return httpx.AsyncClient(transport=Transport(source, server), base_url=base_url, trust_env=False, **options)


def client_for(source: RuleSource, service: str, **options: Any) -> httpx.AsyncClient:
    """A client of a service by its name in the estate, which this workload may call; raises ``FailedPrecondition``."""
    outbound = source.rules.outbound(service) if source.rules is not None else None
    if outbound is None or not outbound.endpoints or outbound.protocol != "http":
        known = source.rules.callees if source.rules is not None else ()
        otherwise = "permit the call by a policy, and give the service an endpoint"
        near = difflib.get_close_matches(service, known, n=1) if outbound is None else []
        raise FailedPrecondition(
            f"the rules of this workload name no HTTP service {service!r} to call",
            fix=f"did you mean {near[0]!r}? Else {otherwise}" if near else otherwise,
        )
    return client(source, outbound.spiffe_id, f"https://{outbound.endpoints[0]}", **options)


def with_token(token: str) -> dict[str, str]:
    """The header that brings a transaction token."""
    return {HEADER: token}


async def request_token(
    endpoint: httpx.AsyncClient,
    trust_domain: str,
    operation: str,
    *,
    tenant: str = "",
    reason: str = "",
    approval: str = "",
    incoming: str = "",
) -> str:
    """A transaction token for one call of ``operation`` (RFC 8693), from ``POST /token`` of ``endpoint``.

    ``incoming``: the token that this workload was itself called with, to go on with that transaction. The token counts
    for the SVID that ``endpoint`` shows now: after a renewal ask again. Raises ``TokenNotGiven``, ``Unavailable``.
    """
    details = {"tenant": tenant, "reason": reason, "approval": approval}
    form = {
        "grant_type": GRANT,
        "requested_token_type": TOKEN_TYPE,
        "audience": f"spiffe://{trust_domain.removeprefix('spiffe://')}",
        "scope": operation,
        "request_details": json.dumps({name: value for name, value in details.items() if value}),
    }
    if incoming:
        form |= {"subject_token": incoming, "subject_token_type": TOKEN_TYPE}
    try:
        answer = await endpoint.post("/token", data=form)
        said = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise Unavailable(f"the token endpoint gave no answer: {type(error).__name__}") from None
    if not isinstance(said, dict):
        raise Unavailable("the token endpoint's answer is no object")
    token = said.get("access_token")
    if answer.is_success and isinstance(token, str):
        return token
    names = ("error", "code", "error_description", "approval", "fix")
    word, reason, text, waiting, fix = (str(said.get(name, "")) for name in names)
    raise TokenNotGiven(text or f"the token endpoint answered {answer.status_code}", word, reason, waiting, fix=fix)


class Transport(httpx.AsyncBaseTransport):
    """Connections to one workload, made anew for each SVID of ours."""

    def __init__(self, source: RuleSource, server: SpiffeId | str) -> None:
        self._source = source
        self._server = SpiffeId.parse(str(server))
        self._pool: _Pool | None = None
        self._ending: set[_Pool] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.scheme != "https":
            raise httpx.UnsupportedProtocol("workloads are called by https", request=request)
        pool = await self._newest()
        pool.users += 1
        try:
            answer = await pool.connections.handle_async_request(_for_httpcore(request))
        except BaseException as error:
            await self._leave(pool)
            translated = _translated(error, request)
            if translated is not None:
                raise translated from error
            raise
        assert isinstance(answer.stream, AsyncIterable)
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_Body(answer.stream, lambda: self._leave(pool), request),
            extensions=answer.extensions,
        )

    async def aclose(self) -> None:
        pools = [*self._ending, *([self._pool] if self._pool is not None else [])]
        self._pool = None
        self._ending.clear()
        for pool in pools:
            await pool.connections.aclose()

    async def _newest(self) -> _Pool:
        identity = self._source.identity
        if identity is None:
            raise FailedPrecondition("the source has no identity yet", fix="wait for it: await source.ready()")
        pool = self._pool
        if pool is None or pool.identity is not identity:
            self._pool = fresh = _Pool(identity, self._source, self._server)
            if pool is not None:
                self._ending.add(pool)
                await self._close_if_left(pool)
            return fresh
        return pool

    async def _leave(self, pool: _Pool) -> None:
        pool.users -= 1
        await self._close_if_left(pool)

    async def _close_if_left(self, pool: _Pool) -> None:
        if pool in self._ending and not pool.users:
            self._ending.discard(pool)
            await pool.connections.aclose()


class _Pool:
    """Connections that show one SVID."""

    def __init__(self, identity: OwnSvid, source: RuleSource, server: SpiffeId) -> None:
        self.identity = identity
        self.users = 0
        roots = roots_of(identity, server.trust_domain)
        self.connections = httpcore.AsyncConnectionPool(
            ssl_context=client_context(identity, roots),
            keepalive_expiry=IDLE_SECONDS,
            network_backend=_Backend(identity, source, server),
        )


class _Backend(httpcore.AsyncNetworkBackend):
    """Opens connections, and gives out none whose other end is not ``server``."""

    def __init__(self, identity: OwnSvid, source: RuleSource, server: SpiffeId) -> None:
        self._inner = httpcore.AnyIOBackend()
        self._identity, self._source, self._server = identity, source, server

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        stream = await self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        return _Stream(stream, self)

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)

    def check(self, tls: ssl.SSLObject) -> None:
        """Raise ``WrongServer`` unless the other end proved to be the server."""
        roots = roots_of(self._identity, self._server.trust_domain)
        try:
            peer = verify_peer(shown_chain(tls), {self._server.trust_domain: roots}, self._source.now())
        except Error as error:
            raise WrongServer(f"the server proved nothing: {error.message}") from None
        if peer.id != self._server:
            raise WrongServer(f"the server proved to be {peer.id}, not {self._server}")


class _Stream(httpcore.AsyncNetworkStream):
    """A connection that nothing can be written to before TLS has proved who is there."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, backend: _Backend) -> None:
        self._stream = stream
        self._backend = backend

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
    ) -> httpcore.AsyncNetworkStream:
        secured = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        try:
            self._backend.check(secured.get_extra_info("ssl_object"))
        except WrongServer as error:
            await secured.aclose()
            raise httpcore.ConnectError(error.message) from error
        return secured

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002, ASYNC109 - as above
        raise httpcore.ReadError("nothing is read before TLS")

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002, ASYNC109 - as above
        raise httpcore.WriteError("nothing is written before TLS")

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Body(httpx.AsyncByteStream):
    def __init__(self, stream: AsyncIterable[bytes], done: Any, request: httpx.Request) -> None:
        self._stream, self._done, self._request = stream, done, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._stream:
                yield part
        except Exception as error:
            translated = _translated(error, self._request)
            if translated is not None:
                raise translated from error
            raise

    async def aclose(self) -> None:
        done, self._done = self._done, None
        close = getattr(self._stream, "aclose", None)
        try:
            if close is not None:
                await close()
        finally:
            if done is not None:
                await done()


def _for_httpcore(request: httpx.Request) -> httpcore.Request:
    return httpcore.Request(
        method=request.method,
        url=httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        ),
        headers=request.headers.raw,
        content=request.stream,
        extensions=request.extensions,
    )


def _translated(error: BaseException, request: httpx.Request) -> httpx.TransportError | None:
    """An error of httpcore as httpx's of the same name, which is what users of httpx catch."""
    for kind in type(error).__mro__:
        name = kind.__name__
        found = getattr(httpx, name, None)
        if (
            kind.__module__.startswith("httpcore")
            and isinstance(found, type)
            and issubclass(found, httpx.TransportError)
        ):
            return found(str(error), request=request)
    return None
