"""Following the authority above when it lets go of roots and keys, with the server killed between any two steps."""

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from ca_world import ME, Above, World, holder, make

from eastwest.entropy import SystemEntropy
from eastwest.errors import FailedPrecondition
from eastwest.pki.rotation.state import Kind, Root, Stage
from eastwest.server.ca.files import CaFiles
from eastwest.server.ca.upstream import UpstreamWatch
from eastwest.spiffe.bundle import JwtAuthority
from eastwest.testing import TestCA
from eastwest.testing.upstreams import jwt_authority


class Naming(Above):
    """One that names several roots, taints them, and keeps the JWT keys of all servers below it."""

    def __init__(self, clock) -> None:
        super().__init__(clock)
        self.named = [self.ca.root]
        self.bad: set[bytes] = set()
        self.keys: dict[str, JwtAuthority] = {}

    def turn_over(self) -> bytes:
        """Sign below a new root from now on; gives it."""
        self.ca = TestCA("td.test", self.clock.now() + timedelta(seconds=len(self.named)))
        self.named.append(self.ca.root)
        return self.ca.root

    async def roots(self) -> list[bytes]:
        return list(self.named)

    async def tainted(self) -> set[bytes]:
        return self.bad & set(self.named)

    async def publish_jwt(self, keys):
        self.keys |= {key.key_id: key for key in keys if key.key_id not in self.keys}
        return list(self.keys.values())


class Below:
    """Our server, which may be killed at any time."""

    def __init__(self, world: World, above: Naming) -> None:
        self.world, self.above = world, above
        self.confirmed: Callable[[], list] = lambda: [holder(self.keeper.state.sequence)]
        self.lasting = False
        self._wire()

    @property
    def keeper(self):
        return self.world.keeper

    @property
    def stages(self) -> list[tuple[bytes, Stage, bool]]:
        return [(root.certificate, root.stage, root.tainted) for root in self.keeper.state.roots if not root.key]

    def _wire(self, *, automatic: bool = True) -> None:
        async def lasting(_root: Root) -> bool:
            return self.lasting

        def holders() -> list:
            return self.confirmed()

        self.keeper.maker.upstream = self.above
        self.keeper.holders = holders
        self.watch = UpstreamWatch(self.keeper, self.above, self.world.clock, automatic=automatic, lasting=lasting)

    async def look(self, *, killed: bool = True, automatic: bool = True) -> None:
        """One look, and then a kill."""
        await self.watch.look()
        assert "upstream" not in self.keeper.problems, self.keeper.problems
        if killed:
            problems = self.keeper.problems
            await self.world.reopen()
            self._wire(automatic=automatic)
            self.keeper.problems = problems


@pytest.fixture
async def below(tmp_path: Path) -> AsyncIterator[Below]:
    world = await make(tmp_path)
    made = Below(world, Naming(world.clock))
    prepared = (await made.keeper.prepare(Kind.X509, ME)).item
    await made.keeper.activate(Kind.X509, prepared.id, ME)
    yield made
    await made.world.stack.aclose()


async def test_a_taint_above_is_passed_down_and_the_root_goes_when_nobody_holds(below: Below) -> None:
    above = below.above
    old = above.ca.root
    new = above.turn_over()
    await below.look()
    assert below.stages == [(old, Stage.ACTIVE, False), (new, Stage.OLD, False)]
    above.bad = {old}
    # Trusted by everybody before it signs: somebody lags behind.
    below.confirmed = lambda: [holder(1)]
    await below.look()
    assert below.stages == [(old, Stage.ACTIVE, False), (new, Stage.PREPARED, False)]
    assert "its successor waits" in below.keeper.problems["upstream taint"]
    await below.look()
    assert below.stages[0] == (old, Stage.ACTIVE, False)
    below.confirmed = lambda: [holder(below.keeper.state.sequence)]
    await below.look()
    assert below.stages == [(old, Stage.OLD, False), (new, Stage.ACTIVE, False)]
    assert "upstream taint" not in below.keeper.problems
    await below.look()
    assert below.stages == [(old, Stage.OLD, True), (new, Stage.ACTIVE, False)]
    assert [authority.tainted for authority in below.keeper.trust.bundle.x509_authorities][1:] == [True, False]
    # It is trusted for as long as it is named above, and then until everybody has let go.
    await below.look()
    assert len(below.stages) == 2
    above.named.remove(old)
    below.confirmed = lambda: [holder(below.keeper.state.sequence, tainted=1)]
    await below.look()
    assert len(below.stages) == 2
    below.confirmed = lambda: [holder(below.keeper.state.sequence)]
    below.lasting = True
    await below.look()
    assert len(below.stages) == 2, "a device's certificate below it still lives"
    below.lasting = False
    await below.look()
    assert below.stages == [(new, Stage.ACTIVE, False)]
    assert below.world.keys == set(below.keeper.state.key_names())
    assert below.keeper.signing is not None
    assert below.keeper.signing.authorities[""].roots == (new,)


async def test_a_root_that_is_only_gone_above_ends_with_its_term(below: Below) -> None:
    above = below.above
    old = above.ca.root
    new = above.turn_over()
    above.named.remove(old)
    for _ in range(3):
        await below.look()
    assert below.stages == [(old, Stage.ACTIVE, False), (new, Stage.OLD, False)]
    prepared = (await below.keeper.prepare(Kind.X509, ME)).item
    await below.keeper.activate(Kind.X509, prepared.id, ME)
    await below.look()
    assert below.stages == [(old, Stage.OLD, True), (new, Stage.ACTIVE, False)]
    await below.look()
    assert below.stages == [(new, Stage.ACTIVE, False)]


async def test_what_was_prepared_is_taken_back_when_its_root_is_withdrawn(below: Below) -> None:
    above = below.above
    old, first = above.ca, above.ca.root
    withdrawn = above.turn_over()
    await below.keeper.prepare(Kind.X509, ME)
    assert (withdrawn, Stage.PREPARED, False) in below.stages
    above.named.remove(withdrawn)
    above.ca = old
    await below.look()
    assert below.stages == [(first, Stage.ACTIVE, False)]
    assert below.world.keys == set(below.keeper.state.key_names())


async def test_a_manual_ca_is_told_of_the_taint_and_does_nothing(below: Below) -> None:
    above = below.above
    above.turn_over()
    below._wire(automatic=False)
    await below.look(automatic=False)
    before = below.stages
    above.bad = {above.named[0]}
    await below.look(automatic=False)
    assert below.stages == before
    assert "ca_rotation is manual" in below.keeper.problems["upstream taint"]


async def test_an_authority_that_names_nothing_or_is_away_takes_no_trust(below: Below) -> None:
    above, before = below.above, below.stages
    above.named = []
    await below.watch.look()
    assert "names no root" in below.keeper.problems["upstream"]
    assert below.stages == before


async def test_keys_of_other_servers_go_when_they_are_named_no_more(below: Below) -> None:
    above, keeper = below.above, below.keeper
    now = below.world.clock.now()
    for kid in ("sibling", "bad"):
        above.keys[kid] = jwt_authority(kid, now)
    await below.watch.publish(jwt_authority("below-us", now), ME)
    await below.keeper.append((), [jwt_authority("by-hand", now)], ME)
    await below.look()
    own = keeper.state.active_jwt.id

    def kids() -> dict[str, bool]:
        return {key.key_id: key.tainted for key in below.keeper.trust.bundle.jwt_authorities}

    assert kids() == {own: False, "sibling": False, "bad": False, "below-us": False, "by-hand": False}
    above.keys["bad"] = JwtAuthority(above.keys["bad"].spki, "bad", above.keys["bad"].expires_at, tainted=True)
    del above.keys["sibling"], above.keys["below-us"]
    below.confirmed = lambda: [holder(0)]
    await below.look()
    assert kids() == {own: False, "sibling": True, "bad": True, "below-us": True, "by-hand": False}
    await below.look()
    assert len(kids()) == 5, "somebody has not heard of it"
    below.confirmed = lambda: [holder(below.keeper.state.sequence)]
    await below.look()
    assert kids() == {own: False, "bad": True, "by-hand": False}
    del above.keys["bad"]
    await below.look()
    assert kids() == {own: False, "by-hand": False}


async def _next_jwt(below: Below) -> str:
    """Another JWT key signs from now on; gives the old one's ``kid``."""
    old = below.keeper.state.active_jwt.id
    prepared = (await below.keeper.prepare(Kind.JWT, ME)).item
    await below.keeper.activate(Kind.JWT, prepared.id, ME)
    return old


async def test_an_own_key_that_was_revoked_does_not_come_back_while_it_is_named_above(below: Below) -> None:
    await below.look()
    old = await _next_jwt(below)
    await below.look()
    assert old in below.above.keys
    await below.keeper.taint(Kind.JWT, old, ME)
    await below.keeper.revoke(Kind.JWT, old, ME)
    discarded = (await below.keeper.prepare(Kind.JWT, ME)).item.id
    await below.look()
    await below.keeper.discard(Kind.JWT, discarded, ME)
    assert {old, discarded} < below.above.keys.keys()
    for _ in range(2):
        await below.look()
    assert [key.id for key in below.keeper.state.jwt] == [below.keeper.state.active_jwt.id]
    assert {one.id for one in below.keeper.state.revoked} == {old, discarded}
    # Nor by a server below that shows it as its own, nor by an old bundle.
    again = below.above.keys.pop(old)
    await below.watch.publish(again, ME)
    assert old not in below.above.keys
    with pytest.raises(FailedPrecondition, match="revoked here"):
        await below.keeper.append((), [again], ME)
    assert len(below.keeper.state.jwt) == 1


async def test_a_root_that_was_revoked_by_hand_comes_back_only_by_hand(below: Below) -> None:
    above, keeper = below.above, below.keeper
    old = above.ca.root
    above.turn_over()
    prepared = (await keeper.prepare(Kind.X509, ME)).item
    await keeper.activate(Kind.X509, prepared.id, ME)
    gone = next(root for root in keeper.state.roots if root.certificate == old)
    await keeper.taint(Kind.X509, gone.id, ME)
    await keeper.revoke(Kind.X509, gone.id, ME)
    for _ in range(2):
        await below.look()
        assert [certificate for certificate, *_ in below.stages] == [above.ca.root]
    assert [(one.kind, one.id, one.not_after) for one in below.keeper.state.revoked] == [
        (Kind.X509, gone.id, gone.not_after)
    ]
    with pytest.raises(FailedPrecondition, match="revoked here"):
        await below.keeper.append([old], (), ME)
    await CaFiles(below.keeper, below.world.clock, SystemEntropy()).trust([old], ME)
    await below.look()
    assert {certificate for certificate, *_ in below.stages} == {old, above.ca.root}
    assert below.keeper.state.revoked == ()


async def test_what_was_only_followed_comes_back_when_it_is_named_again(below: Below) -> None:
    sibling = jwt_authority("sibling", below.world.clock.now())
    below.above.keys["sibling"] = sibling
    await below.look()
    del below.above.keys["sibling"]
    for _ in range(2):
        await below.look()
    assert "sibling" not in {key.id for key in below.keeper.state.jwt}
    below.above.keys["sibling"] = sibling
    await below.look()
    assert "sibling" in {key.id for key in below.keeper.state.jwt}


async def test_a_server_whose_key_is_not_taken_above_says_so(below: Below) -> None:
    class Refusing(Naming):
        async def publish_jwt(self, keys):
            return [jwt_authority("another", self.clock.now())]

    below.above = Refusing(below.world.clock)
    below.above.named = [root.certificate for root in below.keeper.state.roots]
    below._wire()
    await below.watch.look()
    signs = below.keeper.state.active_jwt.id
    assert f"does not name the JWT key {signs}" in below.keeper.problems["upstream taint"]
