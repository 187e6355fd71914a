"""What a transaction token costs a call: verified and held against caller, key and operation, and used up once.

    load generator -> caller's Envoy -> mTLS -> service's Envoy, which answers by itself; single use: -> agent

The agent that is asked about single use is a thread of this process, with the product's service and a memory of uses:
what the server adds, a call and a durable write, is not in these numbers.
"""

from __future__ import annotations

import hashlib
import os
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from envoy.config.core.v3 import config_source_pb2
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
    HttpFilter,
)

from bench.load import Connection
from bench.measure import Result, calibration, cpu_seconds, percentile, spread, thread_seconds
from bench.processes import TRUST_DOMAIN, Helper, Process, free_port, scratch
from bench.sidecars import Envoy, Rewrite, Sidecars
from bench.tree import CALLER, CONNECTIONS, _caller, _edited, _without_filters, _without_logs
from eastwest.mesh import clusters, names
from eastwest.mesh.matching import pack
from eastwest.mesh.settings import Settings
from eastwest.mesh.snapshot import Resource
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    OriginRules,
    Rule,
    Sidecar,
    TokenRules,
    Verdict,
)
from eastwest.policy.transaction import Token
from eastwest.testing.tokens import TokenMint

NAMES = (
    "token_repeated_rps_ratio",
    "token_fresh_rps_ratio",
    "contextual_rps_ratio",
    "contextual_cpu_us",
    "contextual_vs_opa_cpu_ratio",
    "contextual_vs_opa_rps_ratio",
    "contextual_vs_opa_lookup_cpu_ratio",
    "contextual_vs_opa_lookup_rps_ratio",
    "stepup_added_ms_p50",
)
OPERATION = "things:make"
_TOKENS_PER_SECOND = 8000
"""Made before a round, more than it takes; with fewer a fast machine's round ends early."""
_ALLOW = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="makers")
_HELD = OriginRules(otherwise=_ALLOW)
_STEP_UP = Rule(
    verdict=Verdict.DENY,
    code=DecisionCode.STEP_UP_REQUIRED,
    policy="makers",
    token=TokenRules(unapproved=_HELD, approved=_HELD),
)


@dataclass
class Variant:
    """A service, which tokens its requests bring, and what was measured at it."""

    name: str
    rule: Rule
    rewrite: Rewrite = _without_logs
    fresh: bool = False
    single_use: bool = False
    envoy: Envoy | None = None
    rps: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    agent: list[float] = field(default_factory=list)

    @property
    def request(self) -> str:
        return f"POST /v1/things HTTP/1.1\r\nhost: {self.name}\r\ntxn-token: {{token}}\r\ncontent-length: 0\r\n\r\n"

    def sidecar(self) -> Sidecar:
        operation = OperationRules(
            name=f"{self.name}:{OPERATION}",
            match=HttpMatch(method="POST", path="/v1/things"),
            single_use=self.single_use,
            cells=(Cell(callers=(CALLER,), rule=self.rule),),
        )
        inbound = Inbound(
            service=self.name,
            address="127.0.0.1",
            port=free_port(),
            protocol="http",
            mode=MtlsMode.STRICT,
            upstream="tcp:127.0.0.1:1",
            operations=(operation,),
        )
        spiffe_id = f"spiffe://{TRUST_DOMAIN}/prod/{self.name}"
        return Sidecar(spiffe_id=spiffe_id, version=self.name, known_callers=(CALLER,), inbound=(inbound,))


class _Tokens:
    """Tokens of the caller's Envoy."""

    def __init__(self, mint: TokenMint, caller: Envoy) -> None:
        self._mint = mint
        certificate = x509.load_pem_x509_certificate(caller.identity.chain)
        self._certificate = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
        self._made = 0

    def make(self, service: str, count: int) -> Iterator[str]:
        for _ in range(count):
            self._made += 1
            token = Token(
                id=f"token-{self._made}",
                transaction="transaction",
                caller=CALLER,
                certificate=self._certificate,
                action=f"{service}:{OPERATION}",
                resource=service,
                origin=CALLER,
                expires=int(time.time()) + 60,
                chain=(CALLER,),
            )
            yield self._mint.mint(token)


def run(*, quick: bool) -> list[Result]:
    """The load rounds, then single calls."""
    rounds, seconds = (4, 0.2) if quick else (21, 0.25)
    variants = [
        Variant("mtls", _ALLOW, _without_filters),
        Variant("tree", _ALLOW),
        Variant("repeated", _STEP_UP),
        Variant("fresh", _STEP_UP, fresh=True),
        Variant("once", _STEP_UP, fresh=True, single_use=True),
    ]
    mint = TokenMint(f"spiffe://{TRUST_DOMAIN}")
    with scratch() as folder, Sidecars(folder) as sidecars, Helper("bench.load") as load, ExitStack() as stack:
        opas: dict[str, Process] = {}
        if binary := os.environ.get("EASTWEST_BENCH_OPA"):
            for name, rego in (("opa", _REGO), ("opalookup", _REGO_LOOKUP)):
                port = free_port()
                opas[name] = stack.enter_context(_opa(binary, port, folder, name, rego, mint))
                opas[name].wait_for("its port", partial(_listens, port))
                variants.append(Variant(name, _ALLOW, _asking_opa(port), fresh=True))
        for variant in variants:
            variant.envoy = sidecars.add(variant.sidecar(), variant.rewrite, mint.key_set)
        caller = sidecars.add(_caller(variants))  # type: ignore[arg-type] - of them it reads names and Envoys
        sidecars.settle()
        tokens = _Tokens(mint, caller)
        for number in range(rounds + 1):
            turn = [*variants[number % len(variants) :], *variants[: number % len(variants)]]
            for variant in turn if number % 2 else reversed(turn):
                _load(variant, load, caller.egress, tokens, sidecars.thread, seconds, count=bool(number), opas=opas)
        added = _single(variants[1], variants[3], caller.egress, tokens, 20 if quick else 200)
    return [*_ratios(variants, rounds), added]


def _load(
    variant: Variant,
    load: Helper,
    path: Path,
    tokens: _Tokens,
    agent: int,
    seconds: float,
    *,
    count: bool,
    opas: dict[str, Process],
) -> None:
    assert variant.envoy is not None
    made = list(tokens.make(variant.name, int(seconds * _TOKENS_PER_SECOND) if variant.fresh else 1))
    request = variant.request if variant.fresh else variant.request.replace("{token}", made[0])
    pid = variant.envoy.process.pid

    def asked() -> float:
        return cpu_seconds(opas[variant.name].pid) if variant.name in opas else _thread(agent)

    before, asked_before = thread_seconds(pid), asked()
    answer = load.ask(
        path=str(path),
        request=request,
        connections=CONNECTIONS,
        seconds=seconds,
        expect=200,
        tokens=made if variant.fresh else [],
    )
    if answer["wrong"]:
        raise RuntimeError(f"{variant.name}: {answer['wrong']} of {answer['requests']} answers were not 200")
    if count:  # the first round opens connections
        variant.rps.append(answer["requests"] / answer["seconds"])
        variant.cpu.append((thread_seconds(pid) - before) / answer["requests"] * 1e6)
        variant.agent.append((asked() - asked_before) / answer["requests"] * 1e6)


def _thread(number: int) -> float:
    return int(Path(f"/proc/self/task/{number}/schedstat").read_bytes().split()[0]) / 1e9


def _ratios(variants: list[Variant], rounds: int) -> list[Result]:
    base = variants[0]

    def ratio(variant: Variant) -> tuple[float, str]:
        ratios = [mine / its for mine, its in zip(variant.rps, base.rps, strict=True)]
        used = statistics.median(variant.cpu) - statistics.median(base.cpu)
        note = f"against mTLS alone, median of {rounds} rounds ({spread(ratios, 2)}); server's Envoy {used:+.1f} us"
        return round(statistics.median(ratios), 3), note

    _, _, repeated, fresh, once, *others = variants
    agent = statistics.median(once.agent)
    return [
        Result("token_repeated_rps_ratio", *_spaced(ratio(repeated), rounds)),
        Result("token_fresh_rps_ratio", *_spaced(ratio(fresh), rounds)),
        Result("contextual_rps_ratio", *_spaced(ratio(once), rounds)),
        Result(
            "contextual_cpu_us",
            round(agent, 1),
            "us",
            rounds,
            f"of the agent, per check ({spread(once.agent)}); {calibration()}",
        ),
        *(found for opa in others for found in _beside_opa(once, opa, rounds)),
    ]


def _beside_opa(once: Variant, opa: Variant, rounds: int) -> list[Result]:
    theirs, ours = statistics.mean(opa.agent), statistics.mean(once.agent)
    note = f"of the process that is asked: our agent {ours:.0f} us, OPA {theirs:.0f} us; below 1, ours took less"
    rps = [mine / its for mine, its in zip(once.rps, opa.rps, strict=True)]
    lookup = opa.name != "opa"
    does = "OPA looks the caller up and verifies nothing" if lookup else "a new token each, verified by both"
    both = f"median of {rounds} rounds ({spread(rps, 2)}); {does}; ours is verified and used up"
    label = "contextual_vs_opa_lookup" if lookup else "contextual_vs_opa"
    return [
        Result(f"{label}_cpu_ratio", round(ours / theirs, 3), "ratio", rounds, note),
        Result(f"{label}_rps_ratio", round(statistics.median(rps), 3), "ratio", rounds, both),
    ]


def _opa(binary: str, port: int, folder: Path, name: str, rego: str, mint: TokenMint) -> Process:
    """OPA with its Envoy plug-in, deciding by a map of callers and, but for the lookup, by the token: all that ours do
    except whether it was used before.
    """
    policy = folder / f"{name}.rego"
    policy.write_text(rego.replace("KEYS", mint.key_set.decode()))
    plugin = f"plugins.envoy_ext_authz_grpc.addr=127.0.0.1:{port}"
    path = "plugins.envoy_ext_authz_grpc.path=mesh/allow"
    server = ["run", "--server", "--addr", f"127.0.0.1:{free_port()}", "--log-level", "error", "--skip-version-check"]
    return Process([binary, *server, "--set", plugin, "--set", path, policy], folder / f"{name}.log")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _asking_opa(port: int) -> Rewrite:
    """mTLS alone, and OPA asked about each request."""

    def rewrite(resources: list[Resource]) -> list[Resource]:
        cluster = clusters.local("authorizer", f"tcp:127.0.0.1:{port}", Settings(egress_socket=""), grpc=True)
        return [Resource.of(cluster.name, names.CLUSTER, cluster), *_edited(_without_filters(resources), _ask)]

    def _ask(manager: HttpConnectionManager) -> None:
        config = ext_authz_pb2.ExtAuthz(
            transport_api_version=config_source_pb2.V3,
            grpc_service={
                "envoy_grpc": {"cluster_name": names.local_cluster("authorizer", grpc=True)},
                "timeout": {"seconds": 5},
            },
        )
        asking = HttpFilter(name="envoy.filters.http.ext_authz", typed_config=pack(config))
        filters = [asking, *manager.http_filters]
        manager.ClearField("http_filters")
        manager.http_filters.extend(filters)

    return rewrite


_REGO = f"""package mesh

import rego.v1

default allow := false

callers := {{"{CALLER}": {{"POST": true}}}}

said := claims if {{
	token := input.attributes.request.http.headers["txn-token"]
	rules := {{"cert": `KEYS`, "iss": "spiffe://{TRUST_DOMAIN}", "aud": "spiffe://{TRUST_DOMAIN}"}}
	[good, _, claims] := io.jwt.decode_verify(token, rules)
	good
}}

allow if {{
	callers[input.attributes.source.principal][input.attributes.request.http.method]
	said.sub == input.attributes.source.principal
	said.tctx.action == "opa:{OPERATION}"
	said.tctx.resource == "opa"
}}
"""

_REGO_LOOKUP = f"""package mesh

import rego.v1

default allow := false

callers := {{"{CALLER}": {{"POST": true}}}}

allow if callers[input.attributes.source.principal][input.attributes.request.http.method]
"""


def _spaced(found: tuple[float, str], rounds: int) -> tuple[float, str, int, str]:
    return found[0], "ratio", rounds, found[1]


def _single(plain: Variant, fresh: Variant, path: Path, tokens: _Tokens, count: int) -> Result:
    """One call after the other, in turns: with a token that is new, and where none is asked for."""
    connections = {variant.name: Connection(str(path)) for variant in (plain, fresh)}
    times: dict[str, list[float]] = {plain.name: [], fresh.name: []}
    for _ in range(count):
        for variant in (plain, fresh):
            [token] = tokens.make(variant.name, 1)
            raw = variant.request.replace("{token}", token).encode()
            begin = time.perf_counter()
            connections[variant.name].send(raw)
            if connections[variant.name].receive() != 200:
                raise RuntimeError(f"{variant.name}: a call with a good token was refused")
            times[variant.name].append((time.perf_counter() - begin) * 1e3)
    for connection in connections.values():
        connection.close()
    without, brought = (percentile(times[variant.name], 0.5) for variant in (plain, fresh))
    note = f"a call with a new token {brought:.2f} ms, the same where none is asked for {without:.2f} ms (p50)"
    return Result("stepup_added_ms_p50", round(brought - without, 2), "ms", count, note)
