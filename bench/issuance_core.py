"""CPU of the pure issuance path: signing request in, certificate in DER and log entry out. No log, no transport.

Run it as ``python bench/issuance_core.py``; a signature of the issuing key is timed beside it, as the yardstick.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

from eastwest.clock import SystemClock
from eastwest.entropy import SystemEntropy
from eastwest.issuance.issuer import Issuer
from eastwest.issuance.request import Instance, X509Request
from eastwest.pki.csr import make_csr
from eastwest.pki.profile import Door
from eastwest.pki.signer import KeyAlgorithm, generate_private_key
from eastwest.testing import TestCA

ROUNDS = 15


class NullRecorder:
    """Takes entries and keeps none."""

    async def append(self, entries: Sequence[bytes]) -> Sequence[int]:
        return range(len(entries))


def run(rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Medians in microseconds of process CPU per SVID."""
    batch = asyncio.run(_measure(500, 1, rounds))
    single = asyncio.run(_measure(1, 500, rounds))
    sign = _signature_us(rounds)
    note = f"one P-256 signature took {sign:.0f} us in the same run"
    return [
        {
            "name": "issuance_core_cpu_us_batch500",
            "value": round(batch, 1),
            "unit": "us",
            "n": 500 * rounds,
            "note": note,
        },
        {
            "name": "issuance_core_cpu_us_single",
            "value": round(single, 1),
            "unit": "us",
            "n": 500 * rounds,
            "note": note,
        },
    ]


async def _measure(size: int, repeats: int, rounds: int) -> float:
    clock = SystemClock()
    ca = TestCA(now=clock.now())
    issuer = Issuer(ca.authority, ca.jwt_key, NullRecorder(), clock, SystemEntropy(), Instance("bench", "0"))
    batches = [_requests(ca, size) for _ in range(repeats)]
    samples = []
    for _ in range(rounds):
        gc.collect()
        start = time.process_time()
        for batch in batches:
            await issuer.issue_x509(batch)
        samples.append((time.process_time() - start) / (size * repeats) * 1e6)
    return statistics.median(samples)


def _requests(ca: TestCA, count: int) -> list[X509Request]:
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


def _signature_us(rounds: int) -> float:
    signer = TestCA().authority.signer
    data = bytes(400)
    samples = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(200):
            signer.sign(data)
        samples.append((time.process_time() - start) / 200 * 1e6)
    return statistics.median(samples)


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
