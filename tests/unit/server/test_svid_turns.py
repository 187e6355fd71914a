"""Batches of SVIDs take turns, and small requests need not wait for them."""

import asyncio

from eastwest.api.spire.api.server.svid.v1 import svid_pb2 as pb
from eastwest.issuance.issuer import Issuer
from eastwest.issuance.request import Instance
from eastwest.pki.csr import make_csr
from eastwest.pki.signer import KeyAlgorithm, generate_private_key
from eastwest.registry.entry import Entry
from eastwest.registry.node import Node
from eastwest.registry.registry import Registry
from eastwest.server.control import ControlHub
from eastwest.server.gate import AgentCaller
from eastwest.server.spire.svid import LARGE_AT_ONCE, SMALL_BATCH, SvidService
from eastwest.server.telemetry import Metrics
from eastwest.spiffe.selector import Selector
from eastwest.testing import FakeClock, SeededEntropy, TestCA
from eastwest.testing.registry import MemoryRegistryStore


class SlowLog:
    """A recorder that is not done until it is told to; ``waiting`` are the sizes of what it is asked to record."""

    def __init__(self):
        self.waiting = []
        self.open = asyncio.Event()

    async def append(self, entries):
        self.waiting.append(len(entries))
        await self.open.wait()
        return range(len(entries))


class OneAgent:
    """A gate through which one agent comes."""

    def __init__(self, caller):
        self._caller = caller

    async def enter(self, _call):
        """Whoever it is."""

    async def agent(self, _call):
        return self._caller


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def test_large_batches_take_turns_and_small_ones_pass_them():
    ca, clock, log = TestCA(), FakeClock(), SlowLog()
    agent = ca.trust_domain.id("/spire/agent/join_token/one")
    registry = await Registry.open(ca.trust_domain, MemoryRegistryStore(), SeededEntropy())
    await registry.nodes.record_attestation(
        Node(spiffe_id=agent, attestation_type="join_token", serial_current="1", not_after=2**40)
    )
    draft = Entry(
        spiffe_id=ca.trust_domain.id("/shop"), parent_id=agent, selectors=frozenset({Selector("unix", "uid:1000")})
    )
    [made] = await registry.entries.create([draft], clock.now())
    csr = make_csr(generate_private_key(KeyAlgorithm.EC_P256), draft.spiffe_id)
    issuer = Issuer({"": ca.authority}, ca.jwt_key, log, clock, SeededEntropy(), Instance("one", "0"))
    hub = ControlHub(lambda _: {}, clock, SeededEntropy(), Metrics(), 60)
    gate = OneAgent(AgentCaller(agent, "1", clock.now()))
    service = SvidService(registry, issuer, hub, clock, Metrics(), 300, gate)
    handler = service.service()._handlers["BatchNewX509SVID"]

    def ask(size):
        params = [pb.NewX509SVIDParams(entry_id=made.entry.id, csr=csr)] * size
        return asyncio.create_task(handler(pb.BatchNewX509SVIDRequest(params=params), None))

    large = [ask(SMALL_BATCH + 1) for _ in range(LARGE_AT_ONCE + 3)]
    await until(lambda: len(log.waiting) == LARGE_AT_ONCE)
    small = [ask(1), ask(SMALL_BATCH)]
    await until(lambda: len(log.waiting) == LARGE_AT_ONCE + 2)
    assert sorted(log.waiting) == [1, SMALL_BATCH] + [SMALL_BATCH + 1] * LARGE_AT_ONCE
    # One that gives up while it waits leaves its turn to the next.
    large[LARGE_AT_ONCE].cancel()
    log.open.set()
    replies = await asyncio.gather(*large, *small, return_exceptions=True)
    assert isinstance(replies.pop(LARGE_AT_ONCE), asyncio.CancelledError)
    assert [len(reply.results) for reply in replies] == [SMALL_BATCH + 1] * (LARGE_AT_ONCE + 2) + [1, SMALL_BATCH]
    assert all(result.status.code == 0 for reply in replies for result in reply.results)
