"""A PKI secrets engine of OpenBao or HashiCorp Vault, over its HTTP API (version 1).

Calls: ``POST /v1/<mount>/root/sign-intermediate`` (or ``/issuer/<ref>/sign-intermediate``), ``GET
/v1/<mount>/cert/ca_chain`` (or ``/issuer/<ref>/json``), ``POST /v1/auth/<approle>/login``. The token that a file
holds is read anew for each call; one that AppRole gave is used until shortly before its end.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from eastwest.clock import Clock
from eastwest.errors import FailedPrecondition, InvalidInput, PermissionDenied, Unavailable
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.pki.upstream import CaRequest, MintedCa, UpstreamContext
from eastwest.plugins.secret_files import secret_from_file
from eastwest.plugins.upstream_chain import is_self_signed, minted, requested_key
from eastwest.spiffe.bundle import JwtAuthority

MAX_ANSWER_BYTES = 1024 * 1024
EARLY = 30.0
"""Seconds before its end that an AppRole token is no longer used."""


class VaultUpstream:
    """A PKI mount. Its policy must allow ``update`` on sign-intermediate; the chain is readable to everybody."""

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``[upstreams.vault]``.

        ``url``: such as ``https://vault.example:8200``; plain http only to this machine. ``mount``: of the PKI engine.
        ``issuer``: a name or id of one of its issuers; empty: the mount's default. ``namespace``: where one is used.
        Either ``token_file``, or ``role_id`` and ``secret_id_file`` for AppRole at ``approle_mount``; the files are
        private. ``ca_file``: PEM, for checking the server's certificate; empty: the system's. ``roots_file``: PEM, the
        roots, where the mount does not know them itself. ``timeout``: seconds for each call.
        """

        url: str
        mount: str = "pki"
        issuer: str = ""
        namespace: str = ""
        token_file: str = ""
        role_id: str = ""
        secret_id_file: str = ""
        approle_mount: str = "approle"
        ca_file: str = ""
        roots_file: str = ""
        timeout: float = 15.0

    def __init__(self, options: Options, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._http = _Http(options)
        self._login: _Login | None = None
        self._turn = asyncio.Lock()

    @classmethod
    def from_options(cls, options: Options, context: UpstreamContext) -> Self:
        """As the entry point makes it; the first call goes out when a CA is asked for."""
        _check(options)
        return cls(options, context.clock)

    async def mint(self, request: CaRequest) -> MintedCa:
        requested_key(request)
        pem = x509.load_der_x509_csr(request.csr_der).public_bytes(Encoding.PEM).decode()
        body = {
            "csr": pem,
            "format": "pem",
            "ttl": f"{int(request.lifetime.total_seconds())}s",
            "max_path_length": request.path_length,
            # Else it would leave out the trust domain's URI name, without which the CA is worthless.
            "use_csr_values": True,
        }
        part = f"issuer/{self._options.issuer}" if self._options.issuer else "root"
        # One at a time: a token that has ended is replaced once, not by everybody.
        async with self._turn:
            data = await self._authenticated(f"{self._options.mount}/{part}/sign-intermediate", body)
        others = [*_texts(data, "ca_chain"), *_texts(data, "issuing_ca")]
        (ca,) = self._certificates(_texts(data, "certificate"))[:1] or self._nothing()
        roots = self._given_roots() or tuple(filter(_is_root, self._certificates(others)))
        if not roots:
            roots = tuple(await self.roots())
        return minted(request, ca, self._certificates(others), roots, self._http.where)

    async def roots(self) -> Sequence[bytes]:
        given = self._given_roots()
        if given:
            return given
        mount, issuer = self._options.mount, self._options.issuer
        path = f"{mount}/issuer/{issuer}/json" if issuer else f"{mount}/cert/ca_chain"
        data = await self._call("GET", path, None, "")
        chain = self._certificates([*_texts(data, "ca_chain"), *_texts(data, "certificate")])
        roots = tuple(dict.fromkeys(filter(_is_root, chain)))
        if not roots:
            raise FailedPrecondition(
                "the mount does not know the root above its CA",
                where=self._http.where,
                fix="import the root into the mount, or set roots_file",
            )
        return roots

    async def publish_jwt(self, keys: Sequence[JwtAuthority]) -> None:  # noqa: ARG002 - as the port has it
        return None

    async def _authenticated(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        token = await self._token()
        try:
            return await self._call("POST", path, body, token)
        except PermissionDenied:
            if self._login is None:
                raise
            # It may have been revoked; a new login says whether the role itself is refused.
            self._login = None
            return await self._call("POST", path, body, await self._token())

    async def _token(self) -> str:
        options = self._options
        if options.token_file:
            return await asyncio.to_thread(_secret, options.token_file, "token_file")
        if self._login is None or self._clock.monotonic() >= self._login.until:
            secret_id = await asyncio.to_thread(_secret, options.secret_id_file, "secret_id_file")
            body = {"role_id": options.role_id, "secret_id": secret_id}
            answer = await self._call("POST", f"auth/{options.approle_mount}/login", body, "", part="auth")
            token, seconds = answer.get("client_token"), answer.get("lease_duration")
            if not isinstance(token, str) or not isinstance(seconds, int):
                raise Unavailable("the login's answer has no token", where=self._http.where)
            # A lease of 0 has no end.
            lasts = seconds - EARLY if seconds else float("inf")
            self._login = _Login(token, self._clock.monotonic() + lasts)
        return self._login.token

    async def _call(
        self, verb: str, path: str, body: Mapping[str, Any] | None, token: str, part: str = "data"
    ) -> Mapping[str, Any]:
        answer = await asyncio.to_thread(self._http.call, verb, path, body, token)
        found = answer.get(part)
        if not isinstance(found, dict):
            raise Unavailable(f"the answer to {path} has no {part}", where=self._http.where)
        return found

    def _given_roots(self) -> tuple[bytes, ...]:
        if not self._options.roots_file:
            return ()
        return _read_certificates(self._options.roots_file, "roots_file")

    def _certificates(self, texts: Sequence[str]) -> list[bytes]:
        try:
            return [
                c.public_bytes(Encoding.DER) for text in texts for c in x509.load_pem_x509_certificates(text.encode())
            ]
        except PARSE_ERRORS:
            raise Unavailable("the answer holds what is no certificate", where=self._http.where) from None

    def _nothing(self) -> Sequence[bytes]:
        raise Unavailable("the answer holds no certificate", where=self._http.where)


@dataclass(frozen=True, slots=True)
class _Login:
    token: str = field(repr=False)
    until: float


class _Http:
    """One call after another over HTTP; the answer is JSON, bounded, and never quoted in an error."""

    def __init__(self, options: VaultUpstream.Options) -> None:
        self.where = options.url
        self._url = urlsplit(options.url)
        self._namespace = options.namespace
        self._timeout = options.timeout
        self._ca_file = options.ca_file

    def call(self, verb: str, path: str, body: Mapping[str, Any] | None, token: str) -> Mapping[str, Any]:
        """The answer's JSON object."""
        headers = {"X-Vault-Request": "true", "Content-Type": "application/json"}
        if token:
            headers["X-Vault-Token"] = token
        if self._namespace:
            headers["X-Vault-Namespace"] = self._namespace
        connection = self._connect()
        try:
            target = f"{self._url.path.rstrip('/')}/v1/{path}"
            connection.request(verb, target, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read(MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            reason = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else type(error).__name__
            raise Unavailable(f"{path} gets no answer ({reason})", where=self.where) from None
        finally:
            connection.close()
        if response.status != 200:
            _refuse(response.status, path, self.where)
        if len(text) > MAX_ANSWER_BYTES:
            raise Unavailable(f"the answer to {path} is too long", where=self.where)
        try:
            answer = json.loads(text)
        except ValueError:
            raise Unavailable(f"the answer to {path} is not JSON", where=self.where) from None
        if not isinstance(answer, dict):
            raise Unavailable(f"the answer to {path} is no object", where=self.where)
        return answer

    def _connect(self) -> http.client.HTTPConnection:
        host = self._url.hostname or ""
        if self._url.scheme == "http":
            return http.client.HTTPConnection(host, self._url.port or 8200, timeout=self._timeout)
        try:
            context = ssl.create_default_context(cafile=self._ca_file or None)
        except OSError:
            raise FailedPrecondition("the file of ca_file holds no PEM certificates", where=self._ca_file) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return http.client.HTTPSConnection(host, self._url.port or 8200, timeout=self._timeout, context=context)


def _refuse(status: int, path: str, where: str) -> None:
    # The answer's own words are dropped: they may quote the request.
    if status in {401, 403}:
        raise PermissionDenied(
            f"{path} is refused (HTTP {status})", where=where, fix="check the token, and the policy on this path"
        )
    if status in {400, 404, 405}:
        raise InvalidInput(
            f"{path} is not accepted (HTTP {status})",
            where=where,
            fix="check mount and issuer, and the CA's own limits",
        )
    raise Unavailable(f"{path} cannot be answered now (HTTP {status})", where=where)


def _check(options: VaultUpstream.Options) -> None:
    url = urlsplit(options.url)
    local = url.hostname in {"127.0.0.1", "::1", "localhost"}
    try:
        usable = url.scheme in {"https", "http"} and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable or url.username or url.query or url.fragment:
        raise InvalidInput("url is not usable", fix="such as https://vault.example:8200")
    if url.scheme == "http" and not local:
        raise InvalidInput("url must be https: the token would be seen on the way")
    for name in ("mount", "issuer", "approle_mount"):
        if not re.fullmatch(
            r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*", getattr(options, name) or "-"
        ):
            raise InvalidInput(f"{name} is not a path of letters, digits, . _ - and /")
    if re.search(r"[^\x21-\x7e]", options.namespace):
        raise InvalidInput("namespace is not plain text")
    if not 0.1 <= options.timeout <= 300:
        raise InvalidInput("timeout must be 0.1 to 300 seconds")
    approle = bool(options.role_id) + bool(options.secret_id_file)
    if approle == 1 or bool(options.token_file) == bool(approle):
        raise InvalidInput("set either token_file, or role_id and secret_id_file")


def _secret(path: str, option: str) -> str:
    secret = secret_from_file(path, option)
    if not re.fullmatch(rb"[\x21-\x7e]+", secret):
        raise FailedPrecondition(f"the file of {option} holds no plain text", where=path)
    return secret.decode("ascii")


def _read_certificates(path: str, option: str) -> tuple[bytes, ...]:
    try:
        pem = Path(path).read_bytes()
        return tuple(c.public_bytes(Encoding.DER) for c in x509.load_pem_x509_certificates(pem))
    except OSError as error:
        raise FailedPrecondition(f"the file of {option} cannot be read: {error.strerror}", where=path) from None
    except PARSE_ERRORS:
        raise FailedPrecondition(f"the file of {option} holds no PEM certificates", where=path) from None


def _texts(data: Mapping[str, Any], name: str) -> list[str]:
    value = data.get(name)
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.strip()]


def _is_root(der: bytes) -> bool:
    return is_self_signed(x509.load_der_x509_certificate(der))
