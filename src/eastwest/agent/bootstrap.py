"""From nothing to an attested agent: whom to trust, which trust domain, and the first certificate."""

from __future__ import annotations

import random
from pathlib import Path

import structlog
from cryptography import x509

from eastwest import errors
from eastwest.agent.attestation import Attestation, EvidenceRefused
from eastwest.agent.backoff import until_answered
from eastwest.agent.config import Settings
from eastwest.agent.connection import Dismissed, ServerConnection, skew_or
from eastwest.agent.own import OwnIdentity, OwnSvid
from eastwest.agent.received import check_svid
from eastwest.clock import Clock
from eastwest.pki.chain import load_chain_pem
from eastwest.pki.jwks import parse_bundle
from eastwest.rpc.client import Untrusted
from eastwest.spiffe.bundle import Bundle, X509Authority
from eastwest.spiffe.id import MalformedSpiffeId, TrustDomain

_log = structlog.get_logger()


class JoinTokenRefused(EvidenceRefused):
    """The server does not take the join token."""


def read_bundle(path: Path, trust_domain: TrustDomain | None) -> Bundle:
    """The roots in a file, PEM or SPIFFE JSON; the trust domain is read from the roots where none is given.

    Raises ``InvalidInput`` that names the file and what to do.
    """
    where = str(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise errors.InvalidInput(
            f"the trust bundle cannot be read: {error.strerror}",
            fix="write it with `eastwest bundle show` on the server",
            where=where,
        ) from None
    try:
        roots = _roots(data)
    except errors.Error as error:
        raise errors.InvalidInput(
            f"this is no trust bundle: {error.message}", fix="give PEM certificates or SPIFFE JSON", where=where
        ) from None
    if not roots:
        raise errors.InvalidInput("the trust bundle has no root certificate", where=where)
    named = {domain for root in roots if (domain := _trust_domain_of(root)) is not None}
    if trust_domain is None:
        if len(named) != 1:
            raise errors.InvalidInput(
                "the trust bundle does not say which trust domain it is for", fix="give --trust-domain", where=where
            )
        trust_domain = named.pop()
    elif named and named != {trust_domain}:
        raise errors.InvalidInput(
            f"the trust bundle is of {', '.join(sorted(map(str, named)))}, not of {trust_domain}",
            fix="give the bundle of the right server, or another --trust-domain",
            where=where,
        )
    return Bundle(trust_domain, tuple(X509Authority(root) for root in roots))


class Bootstrap:
    """Gets the agent its own identity: the stored one while it lives, else a new one for its evidence."""

    def __init__(
        self, settings: Settings, identity: OwnIdentity, clock: Clock, jitter: random.Random, *, repeatable: bool
    ) -> None:
        """``repeatable``: this node can show its evidence again, so that an expired identity is no end."""
        self._repeatable = repeatable
        self._settings = settings
        self._identity = identity
        self._clock = clock
        self._jitter = jitter

    def stored(self, trust_domain: TrustDomain) -> OwnSvid | None:
        """The stored identity if it can still be used; an expired one too, where the evidence can be shown again.

        Raises ``FailedPrecondition`` when the directory is another trust domain's, or the identity has expired and
        no token is at hand.
        """
        own = self._identity.load()
        if own is None:
            return None
        if own.id.trust_domain != trust_domain:
            raise errors.FailedPrecondition(
                f"this data directory belongs to {own.id}, and the trust domain is {trust_domain}",
                fix="choose another --data, or give the bundle of that trust domain",
                where=str(self._settings.paths.home),
            )
        if own.is_live(self._clock.now()) or self._repeatable:
            return own
        if not self._settings.join_token:
            raise errors.FailedPrecondition(
                f"the agent's certificate ended at {own.not_after:%Y-%m-%dT%H:%M:%SZ}",
                fix="check this machine's clock; if it is right, start the agent with a new join token",
            )
        _log.warning("agent.identity.expired", id=str(own.id), not_after=own.not_after.isoformat())
        return None

    async def attest(self, connection: ServerConnection, attestation: Attestation, bundle: Bundle) -> OwnSvid:
        """Attest, trying for ``settings.wait`` seconds while the server does not answer.

        All attempts are with one key, kept until the server has answered, if need be over a restart: a join token
        whose answer was lost on the way is good once more for the key that used it.
        """
        connection.use([authority.der for authority in bundle.x509_authorities], None)
        pending = self._identity.prepare(bundle.trust_domain, resume=True)

        async def once() -> OwnSvid:
            try:
                svid = await attestation.attest(pending.csr)
            except Dismissed:
                self._identity.discard(pending)
                raise
            except EvidenceRefused as refused:
                self._identity.discard(pending)
                if attestation.kind == "join_token":
                    raise JoinTokenRefused(refused.message, fix=refused.fix) from None
                raise
            own = self._identity.keep(pending, list(svid.cert_chain))
            # Kept before it is checked: the token is spent, and a clock can be set right afterwards.
            check_svid(own.chain, pending.spki, None, bundle, self._clock.now())
            return own

        what = f"no attestation with {connection.target}"
        return await until_answered(once, what, self._settings.wait, self._clock, self._jitter)


def explain(error: errors.Error, target: str) -> errors.Error:
    """What a user is told when the first contact fails for good."""
    told = skew_or(error)
    if told is error and isinstance(error, Untrusted):
        return errors.Unauthenticated(
            error.message,
            fix=f"give the trust bundle of the server at {target}, as `eastwest bundle show` prints it there",
        )
    return told


def _roots(data: bytes) -> tuple[bytes, ...]:
    if data.lstrip().startswith(b"{"):
        # The document does not name its trust domain, and none is needed to read its roots.
        return tuple(authority.der for authority in parse_bundle(TrustDomain("unnamed"), data).x509_authorities)
    return load_chain_pem(data)


def _trust_domain_of(root: bytes) -> TrustDomain | None:
    try:
        names = x509.load_der_x509_certificate(root).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
        return TrustDomain.parse(uris[0]) if len(uris) == 1 else None
    except (x509.ExtensionNotFound, ValueError, MalformedSpiffeId):
        return None
