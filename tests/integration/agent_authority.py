"""A small authority in one process for tests of the agent: real TLS, real protocols, real certificates.

It keeps everything in memory and does as it is told: tests register, ban, take offline and set its clock.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from eastwest import errors
from eastwest.agent.app import Ports, run
from eastwest.agent.config import Settings
from eastwest.api.eastwest.control.v1 import control_pb2 as control
from eastwest.api.spire.api.server.agent.v1 import agent_pb2 as agent
from eastwest.api.spire.api.server.svid.v1 import svid_pb2 as svid
from eastwest.api.spire.api.types import types_pb2 as types
from eastwest.clock import SystemClock
from eastwest.entropy import SystemEntropy, serial_numbers
from eastwest.pki.chain import dump_chain_pem
from eastwest.pki.csr import verify_csr
from eastwest.pki.jwt import mint
from eastwest.pki.profile import BACKDATE, Usage
from eastwest.pki.signer import KeyAlgorithm
from eastwest.pki.template import encode_validity
from eastwest.plugins.unix import UnixAttestor
from eastwest.policy.enforcement import Sidecar, encode_sidecar
from eastwest.registry.entry import Entry
from eastwest.rpc import spire
from eastwest.rpc.service import Call, Listener, Service
from eastwest.rpc.status import Refused
from eastwest.rpc.tls import certificate_id, server_context
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.spiffe.selector import Selector
from eastwest.testing.ca import TestCA
from eastwest.testing.tokens import TokenUses

TD = TrustDomain("saas.example")
AGENT_ID = TD.id("/spire/agent/join_token/t1")
ENTRY = control.ResourceName.KIND_ENTRY
BUNDLE = control.ResourceName.KIND_BUNDLE
SIDECAR = control.ResourceName.KIND_SIDECAR


async def _know(call: Call) -> None:
    """Whoever shows a certificate of ours may stay."""
    if call.peer_certificate is not None:
        call.prove(str(certificate_id(call.peer_certificate)))


class FakeAuthority:
    """An authority on a free port of loopback."""

    def __init__(self, *, agent_ttl: timedelta = timedelta(hours=1)) -> None:
        self.ca = TestCA("saas.example", datetime.now(UTC), lifetime=timedelta(days=1))
        self.tokens = {"t1"}
        self.entries: dict[str, Entry] = {}
        self.sidecars: dict[str, Sidecar] = {}
        self.epoch, self.number = "e1", 1
        self.history: list[control.Update] = []
        self.agent_ttl = agent_ttl
        self.skew = timedelta(0)
        self.refuse: Refused | None = None
        self.unsignable: set[str] = set()
        self.hellos: list[control.Hello] = []
        self.acks: list[control.Ack] = []
        self.batches: list[list[str]] = []
        self.decisions: list[bytes] = []
        self.spools: dict[str, int] = {}
        self.token_uses = TokenUses()
        self.renewals = 0
        self.jwts = 0
        self.changed = asyncio.Condition()
        self.port = 0
        self._queues: set[asyncio.Queue[control.Update]] = set()
        self._listener: Listener | None = None

    async def start(self) -> None:
        own, key = self.ca.svid("/spire/server", timedelta(hours=12))
        chain, key_pem = TestCA.pem(own, key)
        services = [
            Service(
                agent.DESCRIPTOR.services_by_name["Agent"],
                {"AttestAgent": self._attest, "RenewAgent": self._renew},
                guard=_know,
            ),
            Service(
                svid.DESCRIPTOR.services_by_name["SVID"],
                {"BatchNewX509SVID": self._sign, "NewJWTSVID": self._jwt},
                guard=_know,
            ),
            Service(
                control.DESCRIPTOR.services_by_name["Control"],
                {"Subscribe": self._subscribe, "ReportDecisions": self._report, "UseToken": self._use_token},
                guard=_know,
            ),
        ]
        self._listener = Listener(services)
        await self._listener.listen_tcp("127.0.0.1", self.port, server_context(chain, key_pem, self.ca.roots))
        self.port = self._listener.port

    async def stop(self) -> None:
        if self._listener is not None:
            await self._listener.close()
            self._listener = None

    def write_bundle(self, path: Path) -> Path:
        path.write_bytes(dump_chain_pem(self.ca.roots))
        return path

    def put(self, name: str, *selectors: str, ttl: int = 0, **fields: object) -> Entry:
        """Register a workload and push it."""
        old = self.entries.get(name)
        entry = Entry(
            id=name,
            spiffe_id=TD.id(f"/{name}"),
            parent_id=AGENT_ID,
            selectors=frozenset(map(Selector.parse, selectors)),
            x509_svid_ttl=ttl,
            revision=old.revision + 1 if old else 0,
            **fields,
        )
        self.entries[name] = entry
        self.push(
            control.Update(
                upserts=[
                    control.Resource(
                        name=control.ResourceName(kind=ENTRY, name=name), entry=spire.entry_to_proto(entry)
                    )
                ]
            )
        )
        return entry

    def remove(self, name: str) -> None:
        del self.entries[name]
        self.push(control.Update(removals=[control.ResourceName(kind=ENTRY, name=name)]))

    def put_sidecar(self, sidecar: Sidecar) -> None:
        self.sidecars[sidecar.spiffe_id] = sidecar
        self.push(
            control.Update(
                upserts=[
                    control.Resource(
                        name=control.ResourceName(kind=SIDECAR, name=sidecar.spiffe_id), sidecar=encode_sidecar(sidecar)
                    )
                ]
            )
        )

    def push(self, update: control.Update) -> None:
        self.number += 1
        update.epoch, update.number, update.time_unix_ms = self.epoch, self.number, self._now_ms()
        self.history.append(update)
        for queue in self._queues:
            queue.put_nowait(update)

    def full(self) -> control.Update:
        update = control.Update(epoch=self.epoch, number=self.number, full=True, time_unix_ms=self._now_ms())
        update.upserts.add(
            name=control.ResourceName(kind=BUNDLE, name=TD.name), bundle=spire.bundle_to_proto(self.ca.bundle)
        )
        for entry in self.entries.values():
            update.upserts.add(name=control.ResourceName(kind=ENTRY, name=entry.id), entry=spire.entry_to_proto(entry))
        for name, sidecar in self.sidecars.items():
            update.upserts.add(name=control.ResourceName(kind=SIDECAR, name=name), sidecar=encode_sidecar(sidecar))
        return update

    async def until(self, condition) -> None:
        async with self.changed:
            await self.changed.wait_for(condition)

    async def _noted(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _attest(self, _: None, call: Call) -> None:
        request = await call.receive()
        token = request.params.data.payload.decode()
        if token not in self.tokens:
            raise errors.InvalidInput(
                "the join token is unknown or used", fix="make a new one with eastwest token create"
            )
        self.tokens.discard(token)
        chain = self._issue(request.params.params.csr, AGENT_ID, self.agent_ttl)
        reply = agent.AttestAgentResponse()
        reply.result.svid.cert_chain.extend(chain)
        reply.result.svid.id.CopyFrom(spire.id_to_proto(AGENT_ID))
        await call.send(reply)

    async def _renew(self, request, call: Call) -> agent.RenewAgentResponse:
        self._check(call)
        self.renewals += 1
        await self._noted()
        chain = self._issue(request.params.csr, AGENT_ID, self.agent_ttl)
        return agent.RenewAgentResponse(svid=types.X509SVID(cert_chain=chain, id=spire.id_to_proto(AGENT_ID)))

    async def _sign(self, request, call: Call) -> svid.BatchNewX509SVIDResponse:
        self._check(call)
        self.batches.append([params.entry_id for params in request.params])
        response = svid.BatchNewX509SVIDResponse()
        for params in request.params:
            entry = self.entries.get(params.entry_id)
            if entry is None or entry.id in self.unsignable:
                response.results.add(status=types.Status(code=5, message="no such entry"))
                continue
            chain = self._issue(params.csr, entry.spiffe_id, timedelta(seconds=entry.x509_svid_ttl or 3600))
            response.results.add(
                status=types.Status(),
                svid=types.X509SVID(cert_chain=chain, id=spire.id_to_proto(entry.spiffe_id)),
            )
        await self._noted()
        return response

    async def _jwt(self, request, call: Call) -> svid.NewJWTSVIDResponse:
        self._check(call)
        self.jwts += 1
        entry = self.entries[request.entry_id]
        now = datetime.now(UTC)
        end = now + timedelta(seconds=entry.jwt_svid_ttl or 300)
        token = mint(self.ca.jwt_key, entry.spiffe_id, list(request.audience), now, end, f"jti-{self.jwts}").token
        return svid.NewJWTSVIDResponse(
            svid=types.JWTSVID(
                token=token,
                id=spire.id_to_proto(entry.spiffe_id),
                issued_at=int(now.timestamp()),
                expires_at=int(end.timestamp()),
            )
        )

    async def _subscribe(self, _: None, call: Call) -> None:
        self._check(call)
        first = await call.receive()
        self.hellos.append(first.hello)
        await self._noted()
        queue: asyncio.Queue[control.Update] = asyncio.Queue()
        missed = [u for u in self.history if u.number > first.hello.number]
        if first.hello.epoch == self.epoch and first.hello.number + len(missed) == self.number:
            for update in missed:
                queue.put_nowait(update)
        else:
            queue.put_nowait(self.full())
        self._queues.add(queue)
        reading = asyncio.ensure_future(self._read_acks(call))
        try:
            while True:
                await call.send(await queue.get())
        finally:
            reading.cancel()
            self._queues.discard(queue)

    async def _read_acks(self, call: Call) -> None:
        async for message in call:
            self.acks.append(message.ack)
            await self._noted()

    async def _report(self, request, call: Call) -> control.ReportDecisionsResponse:
        self._check(call)
        held = self.spools.get(request.spool, 0)
        if request.sequence > held:
            self.spools[request.spool] = held = request.sequence
            self.decisions.append(request.decisions)
        await self._noted()
        return control.ReportDecisionsResponse(sequence=held)

    async def _use_token(self, request, call: Call) -> control.UseTokenResponse:
        self._check(call)
        asked = (request.token_id, request.expires_at, request.approval_id, request.operation)
        return control.UseTokenResponse(used=not await self.token_uses.use_token(*asked))

    def _check(self, call: Call) -> None:
        if self.refuse is not None:
            raise self.refuse
        certificate = call.peer_certificate
        if certificate is None or certificate_id(certificate) != AGENT_ID:
            raise errors.PermissionDenied("not an agent")

    def _issue(self, csr: bytes, spiffe_id: SpiffeId, ttl: timedelta) -> list[bytes]:
        key = verify_csr(csr, set(KeyAlgorithm))
        start = datetime.now(UTC).replace(microsecond=0)
        template = self.ca.authority.template(frozenset(Usage))
        serial = serial_numbers(SystemEntropy(), 1)[0]
        unsigned = template.to_be_signed(
            serial, encode_validity(start - BACKDATE, start + ttl), key, str(spiffe_id), ()
        )
        return [template.wrap(unsigned, self.ca.authority.signer.sign(unsigned)), *self.ca.authority.chain]

    def _now_ms(self) -> int:
        return int((datetime.now(UTC) + self.skew).timestamp() * 1000)


def settings(authority: FakeAuthority, data: Path, **changes) -> Settings:
    """Settings of an agent under ``authority``."""
    data.mkdir(exist_ok=True)
    values = {
        "data": data,
        "host": "127.0.0.1",
        "port": authority.port,
        "bundle_file": authority.write_bundle(data / "bundle.pem"),
        "trust_domain": None,
        "join_token": "t1",
        "wait": 5.0,
    }
    return Settings(**{**values, **changes})


async def start(config: Settings, ports: Ports | None = None) -> tuple["asyncio.Task[None]", str]:
    """An agent in this process, and its ready line; raises what kept it from starting."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    ports = ports or Ports(SystemClock(), SystemEntropy(), random.Random(7), (UnixAttestor(),))
    task = asyncio.ensure_future(run(config, ports, ready.set_result))
    try:
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        return task, ready.result()
    except BaseException:
        await stop(task)
        raise


async def stop(task: "asyncio.Task[None]") -> None:
    """End an agent as its service manager would."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def running(config: Settings, ports: Ports | None = None) -> AsyncIterator[str]:
    """An agent in this process for a while; yields its ready line."""
    task, ready = await start(config, ports)
    try:
        yield ready
    finally:
        await stop(task)
