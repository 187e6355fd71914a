"""TLS contexts that follow a source: each new connection shows the newest SVID and trusts the newest bundles.

TLS 1.3 only.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable

from eastwest.errors import FailedPrecondition
from eastwest.pki.chain import dump_chain_pem
from eastwest.rpc import tls
from eastwest.rpc.workload_client import OwnSvid
from eastwest.sdk.source import Rules, RuleSource

_PROTOCOL = "http/1.1"


class ServerTls:
    """The context to listen with (``listening``) for one source, to be made once the source is ``ready``.

    It asks for a client certificate and refuses a bad one. It takes none as well, so that the refusal by policy
    (``MTLS_REQUIRED``) can be an answer; who a certificate names is for ``eastwest.sdk.peers`` to say.
    """

    def __init__(self, source: RuleSource) -> None:
        self._source = source
        self._made_of: tuple[OwnSvid | None, Rules | None] = (None, None)
        self._current = self.listening = self._context()

        def newest(sock: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
            # Runs at each handshake: early enough to look whether anything is newer.
            if self._made_of != (source.identity, source.rules):
                self._current = self._context()
            sock.context = self._current

        self.listening.sni_callback = newest

    def _context(self) -> ssl.SSLContext:
        identity, rules = self._source.identity, self._source.rules
        if identity is None:
            raise FailedPrecondition("the source has no identity yet", fix="wait for it: await source.ready()")
        self._made_of = (identity, rules)
        trusted = [*identity.roots, *(root for roots in rules.bundles.values() for root in roots)] if rules else []
        context = tls.server_context(dump_chain_pem(identity.chain), identity.key_pem, list(dict.fromkeys(trusted)))
        return _modern(context)


def client_context(identity: OwnSvid, roots: Iterable[bytes]) -> ssl.SSLContext:
    """For calling a workload that chains to ``roots`` (DER), as ``identity``. Whom it reached is checked after that."""
    return _modern(tls.client_context(list(roots), dump_chain_pem(identity.chain), identity.key_pem))


def _modern(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([_PROTOCOL])
    return context
