"""``grpc.health.v1.Health`` for probes and load balancers."""

from __future__ import annotations

from collections.abc import Callable

from eastwest.api.grpc.health.v1 import health_pb2 as pb
from eastwest.rpc.service import TINY_MESSAGE, Call, Service

_SERVICE = pb.DESCRIPTOR.services_by_name["Health"]


class HealthService:
    """Serving while ``problems`` is empty, whatever service is asked about."""

    def __init__(self, problems: Callable[[], list[str]]) -> None:
        self._problems = problems

    def service(self) -> Service:
        """The gRPC service."""
        return Service(_SERVICE, {"Check": self._check}, limit=TINY_MESSAGE)

    async def _check(self, _request: pb.HealthCheckRequest, _call: Call) -> pb.HealthCheckResponse:
        status = pb.HealthCheckResponse.NOT_SERVING if self._problems() else pb.HealthCheckResponse.SERVING
        return pb.HealthCheckResponse(status=status)
