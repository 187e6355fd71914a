"""What an all-ML-DSA-65 handshake costs two Envoys, against one with P-256, in interleaved rounds.

    this process -> caller's Envoy -> a new mTLS connection -> service's Envoy -> an echo in this process

Both pairs exchange keys by X25519MLKEM768; they differ in the keys of CA and leaves, and in the size of the chain.
"""

from __future__ import annotations

import socket
import statistics
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from bench.measure import Result, calibration, percentile, spread, thread_seconds
from bench.processes import TRUST_DOMAIN, free_port, scratch
from bench.sidecars import Envoy, Sidecars
from eastwest.pki.signer import KeyAlgorithm
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    Inbound,
    MtlsMode,
    OperationRules,
    Outbound,
    Rule,
    Sidecar,
    TcpMatch,
    Verdict,
)

NAMES = ("pq_handshake_cpu_ratio", "pq_handshake_cpu_us", "mtls_handshake_cpu_us", "pq_handshake_ms_p50")
CALLER, SERVICE = (f"spiffe://{TRUST_DOMAIN}/prod/{name}" for name in ("caller", "service"))


@dataclass
class Pair:
    """Two Envoys with keys of one type, and what was measured at them."""

    way: Path
    envoys: tuple[Envoy, Envoy]
    cpu: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)

    def measure(self, count: int) -> None:
        """``count`` connections one after the other."""
        before = sum(thread_seconds(envoy.process.pid) for envoy in self.envoys)
        for _ in range(count):
            begin = time.perf_counter()
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(20)
                connection.connect(str(self.way))
                connection.sendall(b"x")
                if connection.recv(1) != b"x":
                    raise RuntimeError(f"{self.way}: the connection was refused")
            self.milliseconds.append((time.perf_counter() - begin) * 1e3)
        self.cpu.append((sum(thread_seconds(envoy.process.pid) for envoy in self.envoys) - before) / count * 1e6)


def run(*, quick: bool) -> list[Result]:
    """Rounds of both pairs in turn."""
    rounds, count = (5, 20) if quick else (31, 100)
    with scratch() as folder, ExitStack() as stack:
        app = stack.enter_context(_Echo(folder / "app.sock"))
        classical, quantum_safe = (
            _pair(stack, folder / name, app.path, keys)
            for name, keys in (("p256", KeyAlgorithm.EC_P256), ("mldsa", KeyAlgorithm.ML_DSA_65))
        )
        for number in range(rounds + 1):
            for pair in (classical, quantum_safe) if number % 2 else (quantum_safe, classical):
                pair.measure(count)
    ratios = [mine / its for mine, its in zip(quantum_safe.cpu[1:], classical.cpu[1:], strict=True)]
    note = f"both Envoys; median of {rounds} rounds of {count} connections"
    cpu = [statistics.median(pair.cpu[1:]) for pair in (quantum_safe, classical)]
    slow, fast = (percentile(pair.milliseconds[count:], 0.5) for pair in (quantum_safe, classical))
    return [
        Result(
            "pq_handshake_cpu_ratio",
            round(statistics.median(ratios), 2),
            "ratio",
            rounds,
            f"{note} ({spread(ratios, 2)}); {calibration()}",
        ),
        Result("pq_handshake_cpu_us", round(cpu[0], 1), "us", rounds, f"{note} ({spread(quantum_safe.cpu[1:])})"),
        Result("mtls_handshake_cpu_us", round(cpu[1], 1), "us", rounds, f"{note} ({spread(classical.cpu[1:])})"),
        Result(
            "pq_handshake_ms_p50", round(slow, 2), "ms", rounds * count, f"connection to answer; P-256 {fast:.2f} ms"
        ),
    ]


def _pair(stack: ExitStack, folder: Path, app: Path, keys: KeyAlgorithm) -> Pair:
    folder.mkdir()
    sidecars = stack.enter_context(Sidecars(folder, keys))
    demand = keys is KeyAlgorithm.ML_DSA_65
    port = free_port()
    rule = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="all")
    operation = OperationRules(
        name="service:sessions:open", match=TcpMatch(), cells=(Cell(callers=(CALLER,), rule=rule),)
    )
    inbound = Inbound(
        service="service",
        address="127.0.0.1",
        port=port,
        protocol="tcp",
        mode=MtlsMode.STRICT,
        upstream=f"unix:{app}",
        operations=(operation,),
        post_quantum=demand,
    )
    outbound = Outbound(
        service="service", spiffe_id=SERVICE, endpoints=(f"127.0.0.1:{port}",), protocol="tcp", post_quantum=demand
    )
    known = (CALLER, SERVICE)
    envoys = (
        sidecars.add(Sidecar(spiffe_id=SERVICE, version="v", known_callers=known, inbound=(inbound,))),
        sidecars.add(Sidecar(spiffe_id=CALLER, version="v", known_callers=known, outbound=(outbound,))),
    )
    sidecars.settle()
    return Pair(folder / "service.sock", envoys)


class _Echo:
    """An application on a unix socket that sends back the first byte."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listening = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> Self:
        self._listening.bind(str(self.path))
        self._listening.listen(128)
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_exception: object) -> None:
        # Closing alone does not wake a thread that waits in accept.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                connection.sendall(connection.recv(1))
                connection.recv(1)
