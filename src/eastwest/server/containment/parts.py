"""Containment put together for one server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from eastwest.clock import Clock
from eastwest.issuance.issuer import JWT_MAX_TTL
from eastwest.policy.estate import Estate
from eastwest.registry.registry import Registry
from eastwest.server.changes.keeper import Changes
from eastwest.server.config import ServerPaths
from eastwest.server.containment.evidence import Evidence
from eastwest.server.containment.keeper import Containments
from eastwest.server.containment.metrics import ContainmentMetrics
from eastwest.server.containment.progress import Progress
from eastwest.server.containment.selectors import Selectors
from eastwest.server.containment.service import ContainmentApi
from eastwest.server.control import ControlHub
from eastwest.server.ledger.keeper import Ledger
from eastwest.server.telemetry import Metrics
from eastwest.server.tokens.approvals import Approvals
from eastwest.store.log import SqliteLog


def assemble(
    containments: Containments,
    paths: ServerPaths,
    hub: ControlHub,
    registry: Registry,
    estate: Callable[[], Estate | None],
    ledger: Ledger,
    log: SqliteLog,
    approvals: Approvals | None,
    changes: Changes,
    metrics: Metrics,
    clock: Clock,
) -> ContainmentApi:
    """What a containment sets off, and its API."""
    containments.on_change = hub.wake
    changes.contained = lambda: containments.contained

    async def void(names: Sequence[str], actor: str, containment: str) -> int:
        voided = await approvals.void(names, actor, containment) if approvals is not None else 0
        return voided + await changes.void(names, actor, containment)

    containments.void = void
    progress = Progress(hub, lambda: registry.nodes.list().items, lambda: containments.contained, clock.now)
    metrics.registry.register(ContainmentMetrics(lambda: containments.contained, progress))
    evidence = Evidence(
        paths.containment,
        registry,
        estate,
        ledger,
        log,
        paths.log_index,
        lambda: [asdict(point) for point in progress.points()],
        clock,
    )
    selectors = Selectors(registry, estate)
    return ContainmentApi(containments, selectors, progress, hub, registry, estate, evidence, JWT_MAX_TTL)
