"""CPU of the pure issuance path: signing request in, certificate in DER and log entry out. No log, no transport."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Sequence

from bench.measure import Result, calibration
from eastwest.clock import SystemClock
from eastwest.entropy import SystemEntropy
from eastwest.issuance.issuer import Issuer
from eastwest.issuance.request import Instance, X509Request
from eastwest.pki.csr import make_csr
from eastwest.pki.profile import Door
from eastwest.pki.signer import KeyAlgorithm, generate_private_key
from eastwest.testing import TestCA

NAMES = ("issuance_core_cpu_us_batch500", "issuance_core_cpu_us_single")
ROUNDS = 15


class NullRecorder:
    """Takes entries and keeps none."""

    async def append(self, entries: Sequence[bytes]) -> Sequence[int]:
        return range(len(entries))


def run(*, quick: bool = False) -> list[Result]:
    """Medians in microseconds of process CPU per SVID."""
    rounds = 3 if quick else ROUNDS
    batch = asyncio.run(_measure(500, 1, rounds))
    single = asyncio.run(_measure(1, 500, rounds))
    note = "no log, no transport; " + calibration()
    return [
        Result("issuance_core_cpu_us_batch500", round(batch, 1), "us", 500 * rounds, note),
        Result("issuance_core_cpu_us_single", round(single, 1), "us", 500 * rounds, note),
    ]


async def _measure(size: int, repeats: int, rounds: int) -> float:
    clock = SystemClock()
    ca = TestCA(now=clock.now())
    issuer = Issuer({"": ca.authority}, ca.jwt_key, NullRecorder(), clock, SystemEntropy(), Instance("bench", "0"))
    batches = [requests(ca, size) for _ in range(repeats)]
    samples = []
    for _ in range(rounds):
        gc.collect()
        start = time.process_time()
        for batch in batches:
            await issuer.issue_x509(batch)
        samples.append((time.process_time() - start) / (size * repeats) * 1e6)
    return statistics.median(samples)


def requests(ca: TestCA, count: int) -> list[X509Request]:
    requests = []
    for number in range(count):
        spiffe_id = ca.trust_domain.id(f"/prod/commerce/service-{number}")
        requests.append(
            X509Request(
                csr_der=make_csr(generate_private_key(KeyAlgorithm.EC_P256), spiffe_id),
                spiffe_id=spiffe_id,
                door=Door.SPIRE_API,
                caller="spiffe://saas.example/spire/agent/join_token/0b1f",
                node="spiffe://saas.example/spire/agent/join_token/0b1f",
                entry_id=f"entry-{number}",
                entry_revision=1,
                evidence={"selectors": ["unix:uid:1000", "unix:path:/usr/bin/service"]},
            )
        )
    return requests
