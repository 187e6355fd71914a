"""What the authority shows to everybody, where its settings ask for it: OpenID Connect discovery, CRLs and OCSP."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog

from eastwest.clock import Clock
from eastwest.errors import Error
from eastwest.pki.hierarchy import Authority
from eastwest.pki.revocation import RevocationUrls
from eastwest.pki.rotation.state import Stage
from eastwest.process.files import replace_file
from eastwest.rpc.service import Service
from eastwest.server.ca.rotation import AuthorityKeeper
from eastwest.server.config import ServerConfig
from eastwest.server.gate import Gate
from eastwest.server.journal import Journal
from eastwest.server.public.certificates import CertificateService
from eastwest.server.public.https import CertificateFiles, PublicListener
from eastwest.server.public.oidc import oidc_app
from eastwest.server.public.revocation import Revocations
from eastwest.server.public.revocation_http import revocation_app
from eastwest.spiffe.bundle import Bundle
from eastwest.store.database import Database
from eastwest.store.revocation import SqliteRevocations

_log = structlog.get_logger()
Spawn = Callable[[Coroutine[Any, Any, None], str], None]


def listen_oidc(
    config: ServerConfig, bundle: Callable[[], Bundle], clock: Clock, stack: AsyncExitStack, spawn: Spawn
) -> CertificateFiles | None:
    """Serve OpenID Connect discovery on ``oidc_port`` or ``oidc_socket``; nothing where neither is set.

    Gives the certificate files that are used.
    """
    file = config.file
    if file.oidc_port is None and not file.oidc_socket:
        return None
    files = None
    app = oidc_app(file.jwt_issuer, bundle, clock)
    home = config.paths.home
    if file.oidc_socket:
        listener = PublicListener(app, "oidc")
        listener.bind_unix(home / file.oidc_socket)
    else:
        assert file.oidc_port is not None
        files = CertificateFiles(home / file.oidc_certificate, home / file.oidc_key)
        listener = PublicListener(app, "oidc", tls=files.listening)
        port = listener.bind(file.oidc_address, file.oidc_port)
        tell_port(config.paths.oidc_port, port, stack)
    spawn(listener.run(), "oidc")
    stack.callback(listener.stop)
    return files


def public_addresses(config: ServerConfig) -> list[str]:
    """What is served to everybody and where, a line each, once it is: the ports are those that were taken."""
    file, paths = config.file, config.paths
    found = []
    if file.bundle_endpoint_port is not None:
        profile = "https_web" if file.bundle_endpoint_certificate else "https_spiffe"
        bound = _bound(file.bundle_endpoint_address, paths.bundle_endpoint_port)
        found.append(f"bundle endpoint https://{bound}/ ({profile})")
    if file.oidc_socket:
        found.append(f"OpenID Connect discovery at the socket {paths.home / file.oidc_socket}, for {file.jwt_issuer}")
    elif file.oidc_port is not None:
        bound = _bound(file.oidc_address, paths.oidc_port)
        found.append(f"OpenID Connect discovery https://{bound}/, for {file.jwt_issuer}")
    if file.revocation_url and file.revocation_port is not None:
        bound = _bound(file.revocation_address, paths.revocation_port)
        found.append(f"CRLs and OCSP http://{bound}/, for {file.revocation_url}")
    if file.log is not None and file.log.port is not None:
        scheme = "https" if file.log.certificate else "http"
        found.append(f"transparency log {scheme}://{_bound(file.log.address, paths.log_port)}/")
    if file.tokens is not None:
        found.append(f"transaction tokens https://{_bound(file.tokens.address, paths.tokens_port)}/token")
    return found


def _bound(address: str, port: Path) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{port.read_text().strip()}"


class Revocable:
    """Certificates that can be revoked: remembered always, published where ``revocation_url`` says so."""

    def __init__(
        self, config: ServerConfig, database: Database, journal: Journal, ca: AuthorityKeeper, clock: Clock
    ) -> None:
        self.store = SqliteRevocations(database)
        self.urls = RevocationUrls(config.file.revocation_url) if config.file.revocation_url else None
        self.published: Revocations | None = None
        self._config = config
        self._clock = clock
        if self.urls is not None:
            lifetime = timedelta(hours=config.file.crl_hours)
            known = IssuingAuthorities(ca)
            self.published = Revocations(self.store, journal, known, self.urls, clock, lifetime)

    def service(self, gate: Gate) -> Service:
        """For administrators."""
        return CertificateService(self.store, self.published, self.urls, self._clock, gate).service()

    async def listen(self, stack: AsyncExitStack, spawn: Spawn) -> None:
        """Serve CRLs and OCSP on ``revocation_port``, and keep them fresh; nothing where that is not set."""
        file = self._config.file
        if self.published is None or self.urls is None or file.revocation_port is None:
            return
        await self.published.load()
        listener = PublicListener(revocation_app(self.published, self.urls, self._clock), "revocation")
        port = listener.bind(file.revocation_address, file.revocation_port)
        tell_port(self._config.paths.revocation_port, port, stack)
        spawn(self.published.keep(), "revocation")
        spawn(listener.run(), "revocation-http")
        stack.callback(listener.stop)


class IssuingAuthorities:
    """Every issuing CA whose key is at hand, by key id: former generations must still revoke what they issued."""

    def __init__(self, ca: AuthorityKeeper) -> None:
        self._ca = ca
        self._known: dict[tuple[str, str], Authority] = {}

    async def __call__(self) -> Mapping[str, Authority]:
        there = {
            (root.id, each.id): (root, each)
            for root in self._ca.state.roots
            for each in root.issuing
            if each.key and each.stage is not Stage.PREPARED
        }
        self._known = {place: authority for place, authority in self._known.items() if place in there}
        for place in there.keys() - self._known.keys():
            try:
                self._known[place] = await self._ca.maker.authority(*there[place])
            except Error as error:
                _log.error("revocation.issuer_unusable", issuer=place[1], error=str(error))
        return {authority.key_id: authority for authority in self._known.values()}


def tell_port(path: Path, port: int, stack: AsyncExitStack) -> None:
    """Write the port in use to ``path`` until ``stack`` unwinds."""
    replace_file(path, f"{port}\n".encode(), 0o644)
    stack.callback(path.unlink, missing_ok=True)
