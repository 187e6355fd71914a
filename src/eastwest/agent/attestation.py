"""The agent's evidence: shown at the first start, and again where that is how a certificate is renewed."""

from __future__ import annotations

from datetime import datetime

import structlog

from eastwest import errors
from eastwest.agent.config import Settings
from eastwest.agent.connection import Dismissed, Outdated, ServerConnection, dismissed_by
from eastwest.agent.own import OwnSvid
from eastwest.api.spire.api.types import types_pb2 as types
from eastwest.attest.node import NodeProver, ProverContext
from eastwest.clock import Clock
from eastwest.entropy import Entropy
from eastwest.process.plugins import NODE_PROVERS, load_plugin
from eastwest.rpc.status import Refused
from eastwest.spiffe.id import TrustDomain

_log = structlog.get_logger()
_REFUSALS = (errors.InvalidInput, errors.NotFound, errors.AlreadyExists, errors.PermissionDenied)


def load_prover(settings: Settings, trust_domain: TrustDomain, clock: Clock, entropy: Entropy) -> NodeProver:
    """The prover that the settings name; raises what is wrong with it or its options."""
    context = ProverContext(trust_domain=trust_domain, clock=clock, entropy=entropy, join_token=settings.join_token)
    name = settings.node_attestor
    table = settings.node_provers.get(name, {})
    prover: NodeProver = load_plugin(NODE_PROVERS, name, table, context, f"{settings.where}: node_provers.{name}")
    return prover


class EvidenceRefused(errors.InvalidInput):
    """The server does not take this node's evidence; trying again without a change cannot help."""


class Attestation:
    """Gets the agent certificates: by evidence, or by the certificate that it has.

    The server says which (``reattestable``); after a restart that is found out by trying to renew.
    """

    def __init__(self, prover: NodeProver, connection: ServerConnection) -> None:
        self._prover = prover
        self._connection = connection
        self._instead_of_renewing = False
        self.refused: EvidenceRefused | None = None

    @property
    def repeatable(self) -> bool:
        """Whether the node can show its evidence again."""
        return self._prover.repeatable

    @property
    def kind(self) -> str:
        """The kind of evidence, such as ``x509pop``."""
        return self._prover.name

    async def attest(self, csr: bytes) -> types.X509SVID:
        """A certificate by evidence. Raises ``EvidenceRefused``, ``Dismissed`` when banned, ``Unavailable``."""
        try:
            result = await self._connection.attest(self._prover, csr)
        except Refused as refused:
            if (dismissed := dismissed_by(refused)) is not None and dismissed.banned:
                raise dismissed from None
            self.refused = self._refusal(refused)
            raise self.refused from None
        except errors.Exhausted as error:
            raise errors.Unavailable(error.message, fix=error.fix) from None
        except _REFUSALS as error:
            self.refused = self._refusal(error)
            raise self.refused from None
        self.refused = None
        self._instead_of_renewing = result.reattestable
        return result.svid

    async def certify(self, csr: bytes, own: OwnSvid, now: datetime) -> types.X509SVID:
        """A certificate in the place of ``own``, in whichever way works. Raises as ``attest`` and ``renew`` do."""
        if self.repeatable and (
            self._instead_of_renewing or self._connection.outdated.is_set() or not own.is_live(now)
        ):
            return await self._again(csr)
        try:
            return await self._connection.renew(csr)
        except Outdated as error:
            _log.info("agent.attests.again", why=error.message)
            return await self._again(csr)

    async def _again(self, csr: bytes) -> types.X509SVID:
        try:
            return await self.attest(csr)
        except Dismissed as dismissed:
            self._connection.dismiss(dismissed)
            raise

    def _refusal(self, error: errors.Error) -> EvidenceRefused:
        what = "the join token" if self.kind == "join_token" else f"this node's evidence ({self.kind})"
        return EvidenceRefused(f"the server refuses {what}: {error.message}", fix=error.fix, where=error.where)
