"""What policy costs a request: mTLS with the compiled tree against mTLS alone, in one interleaved run.

    load generator -> caller's Envoy -> mTLS -> service's Envoy, which answers by itself

One caller's Envoy serves all variants; each variant is a service with an Envoy of its own, one worker thread each.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2

from bench.load import Connection
from bench.measure import Result, calibration, percentile, spread, thread_seconds
from bench.processes import TRUST_DOMAIN, Helper, free_port, scratch
from bench.sidecars import Envoy, Rewrite, Sidecars
from eastwest.mesh import names
from eastwest.mesh.snapshot import Resource
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    Outbound,
    Rule,
    Sidecar,
    Verdict,
)

NAMES = (
    "tree_10_rps_ratio",
    "tree_10_cpu_ratio",
    "tree_1000_rps_ratio",
    "tree_1000_cpu_ratio",
    "sidecar_1000_rps_ratio",
    "sidecar_1000_cpu_ratio",
    "access_log_rps_ratio",
    "access_log_cpu_ratio",
    "tree_shadow_log_rps_ratio",
    "tree_shadow_log_cpu_ratio",
    "mtls_cpu_us",
    "policy_to_enforced_100_ms_p50",
    "policy_to_enforced_100_ms_p99",
    "ecds_10_to_enforced_ms_p50",
    "ecds_10_to_enforced_ms_p99",
    "ecds_1000_to_enforced_ms_p50",
    "ecds_1000_to_enforced_ms_p99",
)
CALLER = f"spiffe://{TRUST_DOMAIN}/prod/caller"
CONNECTIONS = 8


@dataclass
class Variant:
    """A service, and what was measured at it."""

    name: str
    operations: int
    callers: int
    rewrite: Rewrite
    mode: MtlsMode = MtlsMode.STRICT
    envoy: Envoy | None = None
    rps: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def request(self) -> str:
        """Of the last operation, where the caller comes last: the tree's worst place."""
        last = max(self.operations, 1) - 1
        return f"GET /v1/resource-{last}/42 HTTP/1.1\r\nhost: {self.name}\r\n\r\n"


def run(*, quick: bool) -> list[Result]:
    """The load rounds, then changes of policy."""
    variants = [
        Variant("mtls", 0, 0, _without_filters),
        Variant("tree10", 2, 5, _without_logs),
        Variant("tree1000", 20, 50, _without_logs),
        Variant("sidecar1000", 20, 50, _answering),
        Variant("shadow1000", 20, 50, _answering, MtlsMode.PERMISSIVE),
    ]
    with scratch() as folder, Sidecars(folder) as sidecars, Helper("bench.load") as load:
        for variant in variants:
            variant.envoy = sidecars.add(_service(variant, allowed=True), variant.rewrite)
        hundred = Variant("tree100", 10, 10, _without_logs)
        hundred.envoy = sidecars.add(_service(hundred, allowed=True), hundred.rewrite)
        caller = sidecars.add(_caller([*variants, hundred]))
        sidecars.settle()
        rounds, seconds = (5, 0.2) if quick else (61, 0.125)
        _load(variants, load, caller.egress, rounds, seconds)
        found = [*_ratios(variants, rounds), *_log_ratios(variants[2], variants[3], rounds)]
        for variant, name, count in (
            (variants[1], "ecds_10_to_enforced", 10),
            (hundred, "policy_to_enforced_100", 100),
            (variants[2], "ecds_1000_to_enforced", 1000),
        ):
            found += _changes(sidecars, variant, caller.egress, name, count, changes=5 if quick else 40)
        return found


def _load(variants: list[Variant], load: Helper, path: Path, rounds: int, seconds: float) -> None:
    """Many short rounds: a neighbour that wakes up for a second disturbs all variants alike."""
    for number in range(rounds + 1):
        # Turned round and on each time, so that no variant always runs after the same other.
        turn = [*variants[number % len(variants) :], *variants[: number % len(variants)]]
        for variant in turn if number % 2 else reversed(turn):
            assert variant.envoy is not None
            pid = variant.envoy.process.pid
            before = thread_seconds(pid)
            answer = load.ask(
                path=str(path), request=variant.request, connections=CONNECTIONS, seconds=seconds, expect=200
            )
            if answer["wrong"]:
                raise RuntimeError(f"{variant.name}: {answer['wrong']} of {answer['requests']} answers were not 200")
            if number:  # the first round opens connections
                variant.rps.append(answer["requests"] / answer["seconds"])
                variant.cpu.append((thread_seconds(pid) - before) / answer["requests"] * 1e6)


def _ratios(variants: list[Variant], rounds: int) -> list[Result]:
    base, *others = variants
    cpu = statistics.median(base.cpu)
    rps = statistics.median(base.rps)
    note = f"mTLS alone: server's Envoy, median of {rounds} rounds ({spread(base.cpu)}), {rps:.0f} req/s; "
    found = [Result("mtls_cpu_us", round(cpu, 1), "us", rounds, note + calibration())]
    labels = {
        "tree10": "tree_10",
        "tree1000": "tree_1000",
        "sidecar1000": "sidecar_1000",
        "shadow1000": "tree_shadow_log",
    }
    for variant in others:
        # Of each round its own ratio: what disturbs a round disturbs both sides of it.
        by_rps = [mine / its for mine, its in zip(variant.rps, base.rps, strict=True)]
        by_cpu = [mine / its for mine, its in zip(variant.cpu, base.cpu, strict=True)]
        label = labels[variant.name]
        what = {"sidecar1000": "tree and access log", "shadow1000": "shadow tree and access log"}.get(
            variant.name, "tree"
        )
        rps, cpu = statistics.median(variant.rps), statistics.median(variant.cpu)
        found += [
            Result(
                f"{label}_rps_ratio",
                round(statistics.median(by_rps), 3),
                "ratio",
                rounds,
                f"mTLS + {what} against mTLS alone; median of {rounds} rounds ({spread(by_rps, 2)}), {rps:.0f} req/s",
            ),
            Result(
                f"{label}_cpu_ratio",
                round(statistics.median(by_cpu), 3),
                "ratio",
                rounds,
                f"server's Envoy, CPU per request; ({spread(by_cpu, 2)}), {cpu:.1f} us",
            ),
        ]
    return found


def _log_ratios(without: Variant, logging: Variant, rounds: int) -> list[Result]:
    """The same Envoy and tree with the access log and without: what the log alone costs."""
    by_rps = [mine / its for mine, its in zip(logging.rps, without.rps, strict=True)]
    by_cpu = [mine / its for mine, its in zip(logging.cpu, without.cpu, strict=True)]
    note = f"tree of 1,000 with the access log against the same without; median of {rounds} rounds "
    return [
        Result(
            "access_log_rps_ratio",
            round(statistics.median(by_rps), 3),
            "ratio",
            rounds,
            note + f"({spread(by_rps, 2)}); the agent reads the entries on the same cores",
        ),
        Result(
            "access_log_cpu_ratio",
            round(statistics.median(by_cpu), 3),
            "ratio",
            rounds,
            note + f"({spread(by_cpu, 2)}), server's Envoy",
        ),
    ]


def _changes(sidecars: Sidecars, variant: Variant, path: Path, name: str, count: int, changes: int) -> list[Result]:
    """From handing a new snapshot to the config streams to the first new answer on the same connection."""
    assert variant.envoy is not None
    connection = Connection(str(path))
    request = variant.request.encode()
    samples = []
    for number in range(changes):
        allowed = number % 2 == 1
        sidecar = _service(variant, allowed=allowed, version=f"v{number}", at=variant.envoy.sidecar.inbound[0].port)
        begin = time.perf_counter()
        sidecars.publish(variant.envoy, sidecar)
        while True:
            connection.send(request)
            if (connection.receive() == 200) == allowed:
                break
            if time.perf_counter() - begin > 20:
                raise RuntimeError(f"{variant.name}: the change is not enforced")
        samples.append((time.perf_counter() - begin) * 1e3)
    connection.close()
    note = f"{count} policies; compiled table handed to the agent's streams -> answer on the same connection"
    return [
        Result(f"{name}_ms_p50", round(percentile(samples, 0.5), 1), "ms", changes, note),
        Result(f"{name}_ms_p99", round(percentile(samples, 0.99), 1), "ms", changes, note),
    ]


def _service(variant: Variant, *, allowed: bool, version: str = "v", at: int | None = None) -> Sidecar:
    """A service with operations x callers policies, each of which permits one caller one operation."""
    callers = [f"spiffe://{TRUST_DOMAIN}/prod/a-{number}" for number in range(variant.callers - 1)] + [CALLER]
    operations = []
    for number in range(variant.operations):
        last = number == variant.operations - 1
        cells = tuple(
            Cell(callers=(caller,), rule=_rule(f"policy-{number}-{place}", allowed or not last or caller != CALLER))
            for place, caller in enumerate(callers)
        )
        match = HttpMatch(method="GET", path=f"/v1/resource-{number}/{{id}}")
        operations.append(OperationRules(name=f"{variant.name}:resource-{number}:read", match=match, cells=cells))
    inbound = Inbound(
        service=variant.name,
        address="127.0.0.1",
        port=at or free_port(),
        protocol="http",
        mode=variant.mode,
        upstream="tcp:127.0.0.1:1",
        operations=tuple(operations),
    )
    known = tuple(sorted({CALLER, *callers}))
    spiffe_id = f"spiffe://{TRUST_DOMAIN}/prod/{variant.name}"
    return Sidecar(spiffe_id=spiffe_id, version=f"{variant.name}-{version}", known_callers=known, inbound=(inbound,))


def _rule(policy: str, allowed: bool) -> Rule:
    if allowed:
        return Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy=policy)
    return Rule(verdict=Verdict.DENY, code=DecisionCode.OPERATION_NOT_PERMITTED, policy=policy)


def _caller(variants: list[Variant]) -> Sidecar:
    outbound = []
    for variant in variants:
        assert variant.envoy is not None
        [inbound] = variant.envoy.sidecar.inbound
        server = variant.envoy.sidecar.spiffe_id
        endpoint = f"127.0.0.1:{inbound.port}"
        outbound.append(Outbound(service=variant.name, spiffe_id=server, endpoints=(endpoint,), protocol="http"))
    return Sidecar(spiffe_id=CALLER, version="caller", known_callers=(CALLER,), outbound=tuple(outbound))


def _answering(resources: list[Resource]) -> list[Resource]:
    """The service's Envoy answers by itself: no application's time is in the numbers."""
    return [_routes_answer(resource) if resource.type_url == names.ROUTES else resource for resource in resources]


def _routes_answer(resource: Resource) -> Resource:
    routes = route_pb2.RouteConfiguration.FromString(resource.body)
    for host in routes.virtual_hosts:
        for route in host.routes:
            if route.HasField("route"):
                route.direct_response.status = 200
                route.direct_response.body.inline_string = "ok"
    return Resource.of(resource.name, resource.type_url, routes, resource.needs)


def _without_logs(resources: list[Resource]) -> list[Resource]:
    return _edited(_answering(resources), lambda manager: manager.ClearField("access_log"))


def _without_filters(resources: list[Resource]) -> list[Resource]:
    """mTLS alone: everything else about the listener stays as it is."""

    def edit(manager: http_connection_manager_pb2.HttpConnectionManager) -> None:
        manager.ClearField("access_log")
        kept = [one for one in manager.http_filters if one.name.endswith(".router")]
        del manager.http_filters[:]
        manager.http_filters.extend(kept)

    # What nobody asks for is never acknowledged.
    return _edited(_answering([one for one in resources if one.type_url != names.EXTENSION]), edit)


def _edited(resources: list[Resource], edit: Callable[..., None]) -> list[Resource]:
    """``edit`` done to the connection manager of each inbound filter chain."""
    edited = []
    for resource in resources:
        if resource.type_url != names.LISTENER or resource.name == names.EGRESS:
            edited.append(resource)
            continue
        listener = listener_pb2.Listener.FromString(resource.body)
        for chain in listener.filter_chains:
            # Before it, a filter chain may ask who is there.
            config = chain.filters[-1].typed_config
            manager = http_connection_manager_pb2.HttpConnectionManager()
            config.Unpack(manager)
            edit(manager)
            config.Pack(manager, deterministic=True)
        edited.append(Resource.of(resource.name, resource.type_url, listener, resource.needs))
    return edited
