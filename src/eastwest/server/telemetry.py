"""The server's metrics, made by the catalogue ``eastwest.metrics``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from eastwest.metrics import BY_NAME
from eastwest.spiffe.id import TrustDomain


class Metrics:
    """What the server counts, under the names of ``eastwest.metrics``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.issued = self._counter("eastwest_svids_issued_total")
        self.refused = self._counter("eastwest_issuance_refused_total")
        self.issuances = self._counter("eastwest_issuances_total")
        self.issuance_seconds = self._histogram("eastwest_issuance_seconds")
        self.token_requests = self._counter("eastwest_token_requests_total")
        self.log_size = self._gauge("eastwest_log_size")
        self.checkpoint_age = self._gauge("eastwest_log_checkpoint_age_seconds")
        self.agents_connected = self._gauge("eastwest_agents_connected")
        self.updates = self._counter("eastwest_control_updates_total")
        self.ack_seconds = self._histogram("eastwest_control_ack_seconds")
        self.acks_outstanding = self._gauge("eastwest_control_acks_outstanding")
        self.activations = self._counter("eastwest_estate_activations_total")
        self.break_glass = self._gauge("eastwest_break_glass")
        self.rollout_open = self._gauge("eastwest_rollout_open")
        self.rollout_ring = self._gauge("eastwest_rollout_ring")
        self.rollout_paused = self._gauge("eastwest_rollout_paused")
        self.rollout_ended = self._counter("eastwest_rollout_ended_total")
        self.decisions = self._counter("eastwest_decisions_stored_total")
        self.decisions_lost = self._counter("eastwest_decisions_lost_total")
        self.unsealed_rows = self._gauge("eastwest_ledger_unsealed_rows")
        self.calls = self._counter("eastwest_calls_total")
        self.failures = self._counter("eastwest_failures_total")
        self.slo_calls = self._counter("eastwest_slo_calls_total")
        self.slo_failures = self._counter("eastwest_slo_failures_total")
        self.slo_objective = self._gauge("eastwest_slo_objective_ratio")
        self.export_rows = self._counter("eastwest_export_rows_total")
        self.export_missed = self._counter("eastwest_export_missed_rows_total")
        self.export_failing = self._gauge("eastwest_export_failing")
        self.verify_findings = self._gauge("eastwest_verify_findings")
        self.verify_last_run = self._gauge("eastwest_verify_last_run_timestamp_seconds")

    def issue(self, kind: str, profile: str, door: str, count: int = 1) -> None:
        """Count SVIDs that leave."""
        self.issued.labels(kind, profile).inc(count)
        self.issuances.labels(door, "issued").inc(count)

    def _counter(self, name: str) -> Counter:
        return Counter(name, BY_NAME[name].help, BY_NAME[name].labels, registry=self.registry)

    def _gauge(self, name: str) -> Gauge:
        return Gauge(name, BY_NAME[name].help, BY_NAME[name].labels, registry=self.registry)

    def _histogram(self, name: str) -> Histogram:
        return Histogram(name, BY_NAME[name].help, BY_NAME[name].labels, registry=self.registry)


class ExpiryMetrics(Collector):
    """When the first certificate of each kind ends."""

    def __init__(self, ends: Callable[[], Iterable[tuple[str, float]]]) -> None:
        """``ends`` gives kinds and moments (Unix seconds), any number for each kind."""
        self._ends = ends

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What Prometheus reads, made when it asks."""
        name = "eastwest_certificate_expiry_timestamp_seconds"
        family = GaugeMetricFamily(name, BY_NAME[name].help, labels=BY_NAME[name].labels)
        first: dict[str, float] = {}
        for kind, moment in self._ends():
            first[kind] = min(moment, first.get(kind, moment))
        for kind, moment in sorted(first.items()):
            family.add_metric([kind], moment)
        yield family


class FederationMetrics(Collector):
    """How old each federated bundle is. A label for each relationship, of which there is a bounded number."""

    def __init__(self, ages: Callable[[], Iterable[tuple[TrustDomain, float, float]]]) -> None:
        """``ages`` gives trust domain, seconds since the last good look, and its moment (Unix seconds)."""
        self._ages = ages

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What Prometheus reads, made when it asks."""
        age, success = (
            GaugeMetricFamily(name, BY_NAME[name].help, labels=BY_NAME[name].labels)
            for name in (
                "eastwest_federated_bundle_age_seconds",
                "eastwest_federated_bundle_last_success_timestamp_seconds",
            )
        )
        for domain, seconds, moment in self._ages():
            age.add_metric([domain.name], seconds)
            success.add_metric([domain.name], moment)
        yield age
        yield success
