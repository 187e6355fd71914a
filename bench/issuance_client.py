"""The client of the issuance measurement, in a process of its own: an attested agent that asks for SVIDs.

``python -m bench.issuance_client HOST:PORT BUNDLE TOKEN ENTRIES ...``; questions come as JSON lines on standard
input. Four more arguments are another server: ``at`` in a question says which one is meant, and what is prepared is
prepared for all, so that they certify the same requests.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from bench.processes import TRUST_DOMAIN
from eastwest.agent.connection import ServerConnection
from eastwest.agent.own import OwnSvid
from eastwest.api.spire.api.server.entry.v1 import entry_pb2
from eastwest.api.spire.api.types import types_pb2
from eastwest.errors import Error
from eastwest.pki.csr import make_csr
from eastwest.pki.signer import KeyAlgorithm, generate_private_key
from eastwest.plugins.join_token import JoinTokenProver
from eastwest.rpc.client import method
from eastwest.rpc.tls import certificate_id
from eastwest.spiffe.id import TrustDomain

_TD = TrustDomain(TRUST_DOMAIN)
_AUTHORIZED = method(entry_pb2.DESCRIPTOR.services_by_name["Entry"], "GetAuthorizedEntries")
_NO_FIELDS = entry_pb2.GetAuthorizedEntriesRequest(output_mask=types_pb2.EntryMask())


class Client:
    """One agent, one connection."""

    def __init__(self, connection: ServerConnection, entries: list[str]) -> None:
        self._connection = connection
        self._entries = entries
        self._ready: list[tuple[str, bytes, ec.EllipticCurvePrivateKey]] = []
        self._roots: list[bytes] = []

    @classmethod
    async def attest(cls, address: str, bundle: Path, token: str, entries: list[str]) -> Client:
        host, _, port = address.rpartition(":")
        connection = ServerConnection(host, int(port), _TD)
        roots = [c.public_bytes(Encoding.DER) for c in x509.load_pem_x509_certificates(bundle.read_bytes())]
        connection.use(roots, None)
        key = generate_private_key(KeyAlgorithm.EC_P256)
        svid = (await connection.attest(JoinTokenProver(token), make_csr(key, _TD.id("/spire/agent")))).svid
        leaf = x509.load_der_x509_certificate(svid.cert_chain[0])
        found = certificate_id(svid.cert_chain[0])
        assert found is not None
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        times = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        connection.use(roots, OwnSvid(found, tuple(svid.cert_chain), *times, leaf.serial_number, key_pem=pem))
        return cls(connection, entries)

    def close(self) -> None:
        self._connection.close()

    def prepare(self, requests: Sequence[tuple[bytes, ec.EllipticCurvePrivateKey]]) -> None:
        """What is to be asked for, outside what is measured."""
        self._ready = [
            (self._entries[number % len(self._entries)], csr, key) for number, (csr, key) in enumerate(requests)
        ]

    async def seen(self, entry: str) -> dict[str, Any]:
        """Ask for this agent's entries until one is among them: how long that took, and how often was asked."""
        begin = time.perf_counter()
        asked = 1
        async with asyncio.timeout(60):
            while entry not in {each.id for each in (await self._unary(_AUTHORIZED, _NO_FIELDS)).entries}:
                await asyncio.sleep(0.01)
                asked += 1
        return {"seconds": time.perf_counter() - begin, "asked": asked}

    async def _unary(self, descriptor: Any, request: Any) -> Any:
        # The agent itself hears of entries on the control stream, which only our server has.
        return await self._connection._unary(descriptor, request)  # noqa: SLF001 - so its agent has no such method

    async def batches(self, size: int) -> dict[str, Any]:
        """Ask for everything prepared, ``size`` at a time, one batch after the other."""
        seconds = []
        for start in range(0, len(self._ready), size):
            part = self._ready[start : start + size]
            begin = time.perf_counter()
            answers = await self._connection.sign([(entry, csr) for entry, csr, _ in part])
            seconds.append(time.perf_counter() - begin)
            # The first of each batch is looked at, so that nobody measures refusals.
            if isinstance(answers[0], Error) or any(isinstance(answer, Error) for answer in answers):
                raise RuntimeError(f"refused: {answers[0]}")
            _check(answers[0].cert_chain[0], part[0][2])
        return {"seconds": seconds}

    async def flood(self, size: int, seconds: float, tasks: int = 1) -> dict[str, Any]:
        """Ask for the same ``size`` again and again, ``tasks`` at the same time: as load, not to be measured."""
        taken: list[float] = []
        part = [(entry, csr) for entry, csr, _ in self._ready[:size]]
        end = time.perf_counter() + seconds

        async def work() -> None:
            while (begin := time.perf_counter()) < end:
                answers = await self._connection.sign(part)
                taken.append(time.perf_counter() - begin)
                if any(isinstance(answer, Error) for answer in answers):
                    raise RuntimeError("refused")

        await asyncio.gather(*(work() for _ in range(tasks)))
        return {"seconds": taken}

    async def paced(self, pace: int) -> dict[str, Any]:
        """Ask for everything prepared one by one, ``pace`` in each second whether or not the last was answered."""
        begin = time.perf_counter()
        seconds: list[float] = []

        async def one(due: float, entry: str, csr: bytes) -> None:
            [answer] = await self._connection.sign([(entry, csr)])
            if isinstance(answer, Error):
                raise answer
            # From when it was due: what waits behind a slow answer has waited too.
            seconds.append(time.perf_counter() - due)

        async with asyncio.TaskGroup() as group:
            for number, (entry, csr, _) in enumerate(self._ready):
                due = begin + number / pace
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(one(due, entry, csr))
        return {"seconds": seconds}

    async def at_once(self, tasks: int) -> dict[str, Any]:
        """Ask for everything prepared one by one, ``tasks`` at the same time on the one connection."""
        queue = iter(self._ready)

        async def work() -> None:
            for entry, csr, _ in queue:
                [answer] = await self._connection.sign([(entry, csr)])
                if isinstance(answer, Error):
                    raise answer

        await asyncio.gather(*(work() for _ in range(tasks)))
        return {}


def _check(leaf: bytes, key: ec.EllipticCurvePrivateKey) -> None:
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    certified = x509.load_der_x509_certificate(leaf).public_key()
    if certified.public_bytes(*form) != key.public_key().public_bytes(*form):
        raise RuntimeError("the certificate is for another key")


def _requests(count: int) -> list[tuple[bytes, ec.EllipticCurvePrivateKey]]:
    """No key is used twice."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(count)]
    return [(make_csr(key, _TD.id("/workload")), key) for key in keys]


async def _main(*servers: tuple[str, ...]) -> None:
    clients: list[Client] = []
    try:
        for address, bundle, token, entries in servers:
            ids = json.loads(Path(entries).read_text())
            clients.append(await Client.attest(address, Path(bundle), token, ids))
        while line := await asyncio.to_thread(sys.stdin.readline):
            question = json.loads(line)
            client, what = clients[question.pop("at", 0)], question.pop("do")
            answer: dict[str, Any] = {}
            if what == "prepare":
                requests = _requests(**question)
                for each in clients:
                    each.prepare(requests)
            else:
                answer = await getattr(client, what)(**question)
            print(json.dumps(answer), flush=True)
    finally:
        for each in clients:
            each.close()


if __name__ == "__main__":
    asyncio.run(_main(*zip(*[iter(sys.argv[1:])] * 4, strict=True)))
