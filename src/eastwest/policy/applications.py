"""Which application stands behind a service: two services may lead to one, whatever they are called and who answers.

An address that only its own machine reaches means an application together with the machine. Which machines there are
the estate does not know; it knows on what kind of node each workload is.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from eastwest.policy.estate import Service, Workload

_GROUP = "group:"


@dataclass(frozen=True, slots=True)
class Application:
    """``address`` is of a socket or ``host:port``; ``node`` that of the workload, "" where others reach the address."""

    address: str
    node: str

    def may_be(self, other: Application) -> bool:
        """Whether the two may be one. One agent's machine may be of any group."""
        if self.address != other.address:
            return False
        groups = self.node.startswith(_GROUP) and other.node.startswith(_GROUP)
        return self.node == other.node or ("" not in {self.node, other.node} and not groups)


def application(service: Service, nodes: Mapping[str, str]) -> Application:
    """What a service leads to; ``nodes`` as ``nodes_of`` gives them."""
    upstream = service.upstream
    address = upstream.tcp or upstream.unix or ""
    return Application(address, nodes.get(service.workload, _GROUP) if upstream.unix or _is_local(address) else "")


def nodes_of(workloads: Iterable[Workload]) -> Mapping[str, str]:
    """``node`` of each workload by SPIFFE ID."""
    return {workload.spiffe_id: workload.node for workload in workloads}


def _is_local(endpoint: str) -> bool:
    host = endpoint.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
