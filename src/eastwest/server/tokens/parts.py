"""Transaction tokens put together for one server, where its settings have a table ``[tokens]``."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter

from eastwest.clock import Clock
from eastwest.entropy import Entropy
from eastwest.issuance.ports import SigningPool
from eastwest.issuance.transaction import Targets
from eastwest.pki.signer import KeyStore
from eastwest.pki.token_keys import Calendar
from eastwest.policy.enforcement import Outbound
from eastwest.policy.operations import OWN_SERVICE
from eastwest.policy.transaction import MAX_LIFE, SKEW
from eastwest.registry.administrators import Administrator
from eastwest.registry.containment import NOBODY, Contained
from eastwest.rpc.service import Servable
from eastwest.server.config import ServerConfig, TokenSettings
from eastwest.server.estate import EstateKeeper
from eastwest.server.gate import Gate, PortGate
from eastwest.server.identity import SERVER_PATH, ServerIdentity
from eastwest.server.journal import Journal
from eastwest.server.public.endpoints import tell_port
from eastwest.server.public.https import PublicListener
from eastwest.server.tokens.admin import ApprovalService
from eastwest.server.tokens.approvals import Approvals, Lifetimes
from eastwest.server.tokens.endpoint import Endpoint, Rates, application
from eastwest.server.tokens.exchange import Exchange
from eastwest.server.tokens.http2 import by_alpn, places
from eastwest.server.tokens.keys import TokenKeys
from eastwest.server.tokens.usage import usage_service
from eastwest.server.view import AgentView
from eastwest.store.database import Database
from eastwest.store.tokens import SqliteTokens

KEPT_SECONDS = MAX_LIFE + SKEW + 60
"""For how long a key stays published after its successor has begun to sign; clocks may differ by a minute."""
Spawn = Callable[[Coroutine[Any, Any, None], str], None]


@dataclass(frozen=True, slots=True)
class Around:
    """What the token service needs of the server around it."""

    config: ServerConfig
    database: Database
    keys: KeyStore
    estate: EstateKeeper
    view: AgentView
    journal: Journal
    clock: Clock
    entropy: Entropy
    pool: SigningPool
    administrator: Callable[[str], Administrator | None]
    """Who has a name now, if anybody."""
    contained: Callable[[], Contained] = lambda: NOBODY
    """Who is cut off."""


class TokenService:
    """Keys, approvals, the endpoint. Open it with ``open``, then ``listen``."""

    def __init__(self, around: Around, settings: TokenSettings) -> None:
        self._around = around
        self._settings = settings
        config, estate, clock = around.config, around.estate, around.clock
        self._store = SqliteTokens(around.database)
        self.keys = TokenKeys(
            config.trust_domain,
            self._store,
            around.keys,
            Calendar(settings.key_life, settings.key_publish, KEPT_SECONDS),
            around.journal,
            clock,
            around.entropy,
        )
        targets = self._targets = _Targets(estate)
        self.approvals = Approvals(
            self._store,
            targets,
            estate.domain_of,
            around.administrator,
            Lifetimes(settings.approval_wait, settings.approval_life),
            around.journal,
            clock,
            around.entropy,
        )
        self.approvals.contained = around.contained
        exchange = Exchange(
            config.trust_domain,
            targets,
            self.keys,
            self.approvals,
            around.journal,
            clock,
            around.entropy,
            around.pool,
            settings.life,
        )
        exchange.contained = around.contained
        rates = Rates(settings.rate, settings.burst, settings.caller_rate)
        self._endpoint = Endpoint(config.trust_domain, exchange, clock, rates)

    @classmethod
    async def open(cls, around: Around, on_keys: Callable[[], None]) -> TokenService | None:
        """The service with a key that signs; None where the settings ask for none. ``on_keys`` hears of new keys."""
        settings = around.config.file.tokens
        if settings is None:
            return None
        service = cls(around, settings)
        await service.keys.open()
        service.keys.on_change = on_keys
        around.view.token_keys = lambda: service.keys.document
        return service

    def count(self, requests: Counter) -> None:
        """Count requests by outcome from now on."""
        self._endpoint.on_outcome = lambda outcome: requests.labels(outcome).inc()

    def listen(self, identity: ServerIdentity, stack: AsyncExitStack, spawn: Spawn) -> None:
        """Serve the endpoint, tell every sidecar where it is, and keep the keys young."""
        assert identity.mutual is not None, "the server's identity comes before its listeners"
        settings, config = self._settings, self._around.config
        listener = PublicListener(
            application(self._endpoint),
            "tokens",
            tls=identity.mutual.listening,
            protocol=by_alpn(self._endpoint),
            places=places(),
        )
        port = listener.bind(settings.address, settings.port)
        tell_port(config.paths.tokens_port, port, stack)
        host = f"[{settings.address}]" if ":" in settings.address else settings.address
        self._around.estate.offer(
            Outbound(
                service=OWN_SERVICE,
                spiffe_id=str(config.trust_domain.id(SERVER_PATH)),
                endpoints=(settings.advertise or f"{host}:{port}",),
                protocol="http",
            )
        )
        spawn(listener.run(), "tokens")
        stack.callback(listener.stop)
        spawn(self.keys.keep(), "token keys")

    def services(self, gate: Gate) -> list[Servable]:
        """What is served on the agents' port and the admin socket: ``gate`` says on which of them."""
        around = self._around
        found: list[Servable] = [ApprovalService(self.approvals, gate, around.clock).service()]
        if isinstance(gate, PortGate):
            found.append(usage_service(self._store, gate, self._targets, around.view.services, around.clock))
        return found


class _Targets:
    """The operations of the policy in force, read anew when it changes.

    While a version rolls out they are those that points have, of the version before where it has not come yet.
    """

    def __init__(self, estate: EstateKeeper) -> None:
        self._estate = estate
        self._seen: tuple[object, ...] = ()
        self._targets = Targets(())

    def __call__(self) -> Targets:
        tables = self._estate.tables
        earlier = tables.earlier.whole if tables.earlier is not None else None
        seen = (tables.enforced, earlier, tables.progress)
        if len(seen) != len(self._seen) or any(new is not old for new, old in zip(seen, self._seen, strict=True)):
            holding, beside = tables.holding()
            self._seen = seen
            self._targets = Targets(holding.values(), Targets({**holding, **beside}.values()) if beside else None)
        return self._targets
