"""Requests and certificates by file: environments that wait for an offline root, and what is not taken."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from eastwest.entropy import SystemEntropy, serial_numbers
from eastwest.errors import AlreadyExists, FailedPrecondition, InvalidInput
from eastwest.pki.ca import certify_ca
from eastwest.pki.rotation.state import Kind, Source, Stage
from eastwest.server.ca.files import CaFiles
from eastwest.server.ca.opening import open_authority
from eastwest.server.ca.rotation import AuthorityKeeper
from eastwest.server.config import ServerConfig, ServerFile
from eastwest.server.init import init_server
from eastwest.testing.ca import TestCA
from eastwest.testing.clock import FakeClock

ME = "unix:uid:0"


class World:
    """A server below an offline root, and the machine where that root is."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.above = TestCA("td.test", self.clock.now())
        self.keeper: AuthorityKeeper
        self.files: CaFiles

    async def open(self, data: Path, stack: AsyncExitStack) -> None:
        file = ServerFile(trust_domain="td.test")
        await init_server(data, file, self.clock, SystemEntropy(), self.above.root)
        opened = await open_authority(ServerConfig.load(data), self.clock, SystemEntropy(), stack)
        self.keeper = opened.keeper
        self.files = CaFiles(self.keeper, self.clock, SystemEntropy())

    def sign(self, csr: bytes, lifetime: timedelta = timedelta(days=90), above: TestCA | None = None) -> bytes:
        root = above or self.above
        [serial] = serial_numbers(SystemEntropy(), 1)
        domain = self.keeper.maker.trust_domain
        return certify_ca(csr, root.root, root.root_signer, domain, serial, self.clock.now(), lifetime)

    async def begin(self) -> None:
        [(_, csr)] = await self.files.export([], ME)
        await self.files.take([self.sign(csr)], [], ME)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World()
    async with AsyncExitStack() as stack:
        await made.open(tmp_path, stack)
        yield made


async def test_nothing_signs_before_the_first_certificate_and_it_does_at_once_after(world: World) -> None:
    keeper = world.keeper
    assert keeper.signing is None
    [(environment, csr)] = await world.files.export([], ME)
    assert environment == ""
    assert (await world.files.export([], ME))[0].csr == csr
    await world.files.take([world.sign(csr), world.above.root], [], ME)
    assert keeper.signing is not None
    assert keeper.state.active_root is not None
    assert keeper.state.active_root.source is Source.OFFLINE
    assert keeper.state.requests == ()
    with pytest.raises(FailedPrecondition, match="the root is offline"):
        await keeper.prepare(Kind.X509, ME)


async def test_a_new_environment_waits_for_its_certificate(world: World) -> None:
    await world.begin()
    await world.keeper.want(["edge", "vm"], ME)
    assert world.keeper.awaiting == {"edge", "vm"}
    exported = await world.files.export([], ME)
    assert [one.environment for one in exported] == ["edge", "vm"]
    await world.files.take([world.sign(one.csr) for one in exported], [], ME)
    assert world.keeper.awaiting == frozenset()
    assert set(world.keeper.state.issuing()) == {"", "edge", "vm"}
    with pytest.raises(InvalidInput, match="no environment 'moon'"):
        await world.files.export(["moon"], ME)


async def test_renewal_below_the_same_root_is_prepared_and_below_a_new_one_a_generation(world: World) -> None:
    await world.begin()
    [again] = await world.files.export([], ME, everything=True)
    [renewed] = await world.files.take([world.sign(again.csr)], [], ME)
    assert renewed.item.stage is Stage.PREPARED
    await world.keeper.activate(Kind.ISSUING, renewed.item.id, ME)
    new = TestCA("td.test", world.clock.now())
    [other] = await world.files.export([], ME, everything=True)
    certificate = world.sign(other.csr, above=new)
    with pytest.raises(FailedPrecondition, match="does not lead to a trusted root"):
        await world.files.take([certificate], [], ME)
    await world.files.take([certificate], [new.root], ME)
    prepared = world.keeper.state.prepared_root
    assert prepared is not None
    assert prepared.certificate == new.root
    await world.keeper.activate(Kind.X509, prepared.id, ME)
    assert world.keeper.state.active_root is not None
    assert world.keeper.state.active_root.certificate == new.root


async def test_what_cannot_be_taken(world: World) -> None:
    [(_, csr)] = await world.files.export([], ME)
    state = world.keeper.state
    stranger = TestCA("elsewhere.test", world.clock.now())
    hour = world.sign(csr, timedelta(minutes=30))
    for certificates, roots, told in [
        ([world.above.authority.chain[0]], [], "answers none of our requests"),
        ([b"no certificate"], [], "cannot be read"),
        ([], [], "no certificate is given"),
        ([hour], [], "ends at"),
        ([world.sign(csr)] * 65, [], "at most 64"),
    ]:
        with pytest.raises(InvalidInput, match=told):
            await world.files.take(certificates, roots, ME)
    for roots, told in [
        ([stranger.authority.chain[0]], "not self-signed"),
        ([], "no root is given"),
        ([stranger.svid("/x")[0].chain[0]], "may not sign"),
    ]:
        with pytest.raises(InvalidInput, match=told):
            await world.files.trust(roots, ME)
    assert world.keeper.state == state


async def test_a_root_that_was_only_trusted_becomes_the_next_generation(world: World) -> None:
    await world.begin()
    corporate = TestCA("td.test", world.clock.now())
    [trusted] = await world.files.trust([corporate.root], ME)
    with pytest.raises(AlreadyExists):
        await world.files.trust([corporate.root], ME)
    sequence = world.keeper.state.sequence
    [request] = await world.files.export([], ME, everything=True)
    await world.files.take([world.sign(request.csr, above=corporate)], [], ME)
    prepared = world.keeper.state.prepared_root
    assert prepared is not None
    assert (prepared.id, prepared.source) == (trusted.item.id, Source.OFFLINE)
    assert world.keeper.state.sequence == sequence
    assert prepared.sequence == trusted.sequence


async def test_ours_cannot_be_crossed_where_its_key_is_not(world: World) -> None:
    await world.begin()
    other = TestCA("td.test", world.clock.now())
    with pytest.raises(FailedPrecondition, match="the root's key is not here"):
        await world.files.cross_sign(other.root, timedelta(days=1), ME, constrained=True)
    with pytest.raises(InvalidInput, match="not for the key of any of our roots"):
        await world.files.take_cross([other.root], [other.root], ME)
