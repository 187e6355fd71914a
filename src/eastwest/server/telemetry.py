"""Names of the server's metrics, all in one place."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """What the server counts. Labels are few and bounded: never an identity."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.issued = Counter(
            "eastwest_svids_issued", "SVIDs that left the process", ["kind", "profile"], registry=self.registry
        )
        self.refused = Counter(
            "eastwest_issuance_refused", "requests that got no SVID", ["code"], registry=self.registry
        )
        self.issuance_seconds = Histogram(
            "eastwest_issuance_seconds", "time of one issuance call, batch or single", registry=self.registry
        )
        self.log_size = Gauge("eastwest_log_size", "entries in the published log", registry=self.registry)
        self.agents_connected = Gauge("eastwest_agents_connected", "open control streams", registry=self.registry)
        self.updates = Counter("eastwest_control_updates", "updates pushed to agents", registry=self.registry)
        self.decisions = Counter("eastwest_decisions_stored", "ledger rows stored", registry=self.registry)
        self.decisions_lost = Counter("eastwest_decisions_lost", "decisions that agents lost", registry=self.registry)
