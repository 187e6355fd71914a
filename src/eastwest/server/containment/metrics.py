"""Containment as metrics: how many are cut off, and how many enforcement points do not refuse them yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from eastwest.metrics import BY_NAME
from eastwest.registry.containment import Contained
from eastwest.server.containment.progress import Progress


class ContainmentMetrics(Collector):
    """Read when Prometheus asks."""

    def __init__(self, contained: Callable[[], Contained], progress: Progress) -> None:
        self._contained = contained
        self._progress = progress

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What Prometheus reads."""
        contained = self._contained()
        behind = sum(point.state != "enforced" for point in self._progress.points()) if contained else 0
        closed = sum(self._progress.closed().values())
        for name, value in (
            ("eastwest_contained_identities", len(contained.spiffe_ids)),
            ("eastwest_containment_points_behind", behind),
            ("eastwest_containment_connections_closed", closed),
        ):
            family = GaugeMetricFamily(name, BY_NAME[name].help)
            family.add_metric([], value)
            yield family
