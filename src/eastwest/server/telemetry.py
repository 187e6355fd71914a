"""Names of the server's metrics, all in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from eastwest.spiffe.id import TrustDomain


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


class FederationMetrics(Collector):
    """How old each federated bundle is. A label for each relationship, of which there is a bounded number."""

    def __init__(self, ages: Callable[[], Iterable[tuple[TrustDomain, float, float]]]) -> None:
        """``ages`` gives trust domain, seconds since the last good look, and its moment (Unix seconds)."""
        self._ages = ages

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What Prometheus reads, made when it asks."""
        age = GaugeMetricFamily(
            "eastwest_federated_bundle_age_seconds",
            "time since the bundle endpoint last gave a good bundle",
            labels=["trust_domain"],
        )
        success = GaugeMetricFamily(
            "eastwest_federated_bundle_last_success_timestamp_seconds",
            "when the bundle endpoint last gave a good bundle",
            labels=["trust_domain"],
        )
        for domain, seconds, moment in self._ages():
            age.add_metric([domain.name], seconds)
            success.add_metric([domain.name], moment)
        yield age
        yield success
