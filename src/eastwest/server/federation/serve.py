"""Federation put together for one server: the state, the poller, and the bundle endpoint where settings ask for it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

from eastwest.pki.rotation.state import Kind
from eastwest.server.config import ServerConfig
from eastwest.server.federation.client import web_trust
from eastwest.server.federation.endpoint import bundle_endpoint
from eastwest.server.federation.keeper import Federation
from eastwest.server.identity import ServerIdentity
from eastwest.server.public.endpoints import tell_port
from eastwest.server.public.https import CertificateFiles, PublicListener
from eastwest.spiffe.bundle import Bundle

Spawn = Callable[[Coroutine[Any, Any, None], str], None]
NAME = "bundle_endpoint"


def endpoint_trust(config: ServerConfig) -> Any:
    """How endpoints of profile https_web are verified; raises ``InvalidInput`` for a bad ``federation_ca_file``."""
    name = config.file.federation_ca_file
    return web_trust(str(config.paths.home / name) if name else "")


def publish_wait(config: ServerConfig, federation: Federation, kind: Kind) -> int:
    """For how many seconds an authority must have been published before it is used: 0 where nobody outside looks."""
    file = config.file
    watched = file.bundle_endpoint_port is not None or bool(federation.relationships)
    if kind is Kind.JWT:
        watched = watched or file.oidc_port is not None or bool(file.oidc_socket)
    return file.publish_wait if watched else 0


def listen_bundle_endpoint(
    config: ServerConfig, bundle: Callable[[], Bundle], identity: ServerIdentity, stack: AsyncExitStack, spawn: Spawn
) -> CertificateFiles | None:
    """Serve the own bundle on ``bundle_endpoint_port``; nothing where that is not set.

    With a certificate and key of the web's PKI the profile is https_web, without them https_spiffe. Gives those files.
    """
    file = config.file
    files = None
    if file.bundle_endpoint_port is None:
        return files
    if file.bundle_endpoint_certificate:
        home = config.paths.home
        files = CertificateFiles(home / file.bundle_endpoint_certificate, home / file.bundle_endpoint_key)
        tls = files.listening
    else:
        assert identity.web is not None, "the server's identity comes before its listeners"
        tls = identity.web.listening
    listener = PublicListener(bundle_endpoint(bundle), NAME, tls=tls)
    port = listener.bind(file.bundle_endpoint_address, file.bundle_endpoint_port)
    tell_port(config.paths.bundle_endpoint_port, port, stack)
    spawn(listener.run(), NAME)
    stack.callback(listener.stop)
    return files
