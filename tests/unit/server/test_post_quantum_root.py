"""The second hierarchy: when its root comes, who must have it first, and that neither disturbs the other."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ca_world import DAY, ME, World, holder, make
from cryptography import x509

from eastwest.clock import SystemClock
from eastwest.entropy import SystemEntropy
from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.pki.confirmation import NotConfirmed
from eastwest.pki.rotation.state import Hierarchy, Kind, Stage
from eastwest.pki.signer import KeyAlgorithm, Signer, algorithm_of
from eastwest.plugins.disk_keys import DiskKeyStore
from eastwest.server.ca.authority import Lifetimes, Maker
from eastwest.server.ca.rotator import Rotator
from eastwest.server.config import ServerConfig, ServerFile, read_file
from eastwest.server.init import init_server

QUANTUM = Hierarchy.POST_QUANTUM


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await make(tmp_path)
    yield made
    await made.stack.aclose()


def algorithms(world: World) -> list[KeyAlgorithm]:
    """The key types of the roots in the bundle."""
    roots = world.keeper.trust.bundle.x509_authorities
    return [algorithm_of(x509.load_der_x509_certificate(root.der).public_key()) for root in roots]


async def test_it_comes_into_use_once_all_have_confirmed_it(world: World) -> None:
    keeper = world.keeper
    rotator = Rotator(keeper, world.clock, automatic=True)
    keeper.holders = lambda: [holder(keeper.state.sequence - 1)]
    await keeper.offer_post_quantum(ME)
    assert algorithms(world) == [KeyAlgorithm.EC_P256, KeyAlgorithm.ML_DSA_65]
    await rotator.turn()
    assert keeper.state.active_of(QUANTUM) is None
    assert keeper.signing is not None
    assert keeper.signing.post_quantum == {}
    [problem] = keeper.problems.values()
    assert "activating the next root is due and waits" in problem
    keeper.holders = lambda: [holder(keeper.state.sequence)]
    await rotator.turn()
    assert keeper.problems == {}
    assert keeper.signing.post_quantum[""].signer.algorithm is KeyAlgorithm.ML_DSA_65
    assert keeper.signing.authorities[""].signer.algorithm is KeyAlgorithm.EC_P256
    before = keeper.state
    await keeper.offer_post_quantum(ME)
    assert keeper.state is before
    [*_, record] = await world.records("ca.activated")
    assert record["hierarchy"] == "post-quantum"


async def test_environments_get_a_ca_in_each_hierarchy(world: World) -> None:
    keeper = world.keeper
    await keeper.want(["prod"], ME)
    assert keeper.awaiting_post_quantum == frozenset()
    await keeper.offer_post_quantum(ME)
    prepared = keeper.state.prepared_of(QUANTUM)
    assert prepared is not None
    await keeper.activate(Kind.X509, prepared.id, ME)
    await keeper.want(["prod", "edge"], ME)
    for hierarchy in Hierarchy:
        assert set(keeper.state.issuing(hierarchy)) == {"", "prod", "edge"}
    assert keeper.awaiting_post_quantum == frozenset()
    renewed = (await keeper.prepare(Kind.ISSUING, ME, "prod", QUANTUM)).item
    await keeper.activate(Kind.ISSUING, renewed.id, ME)
    assert keeper.state.issuing(QUANTUM)["prod"].id == renewed.id


async def test_neither_root_is_in_the_way_of_the_other(world: World) -> None:
    keeper = world.keeper
    classical = keeper.state.active_root
    assert classical is not None
    await keeper.offer_post_quantum(ME)
    # Both may be prepared at once, each is activated alone.
    following = (await keeper.prepare(Kind.X509, ME)).item
    quantum = keeper.state.prepared_of(QUANTUM)
    assert quantum is not None
    with pytest.raises(FailedPrecondition, match="prepared already"):
        await keeper.prepare(Kind.X509, ME, hierarchy=QUANTUM)
    keeper.holders = lambda: [holder(quantum.sequence)]
    await keeper.activate(Kind.X509, quantum.id, ME)
    with pytest.raises(NotConfirmed):
        await keeper.activate(Kind.X509, following.id, ME)
    assert keeper.state.active_root == classical
    keeper.holders = tuple
    await keeper.activate(Kind.X509, following.id, ME)
    active = keeper.state.active_of(QUANTUM)
    assert active is not None
    assert active.id == quantum.id
    await keeper.taint(Kind.X509, classical.id, ME)
    await keeper.revoke(Kind.X509, classical.id, ME)
    assert algorithms(world) == [KeyAlgorithm.ML_DSA_65, KeyAlgorithm.EC_P256]
    assert world.keys == set(keeper.state.key_names())


async def test_each_has_its_own_calendar(tmp_path: Path) -> None:
    world = await make(tmp_path, root_days=400, intermediate_days=100, jwt_key_days=3650)
    keeper, clock = world.keeper, world.clock
    rotator = Rotator(keeper, clock, automatic=True)
    keeper.holders = lambda: [holder(keeper.state.sequence)]
    clock.advance(200 * DAY)
    await keeper.offer_post_quantum(ME)
    seen: dict[Hierarchy, set[str]] = {hierarchy: set() for hierarchy in Hierarchy}
    for _ in range(400):
        clock.advance(2 * DAY)
        while await rotator.turn() == 0.0:
            pass
        assert keeper.problems == {}
        for hierarchy in Hierarchy:
            root = keeper.state.active_of(hierarchy)
            assert root is not None
            seen[hierarchy].add(root.id)
            now = int(clock.now().timestamp())
            assert keeper.state.issuing(hierarchy)[""].not_after > now + DAY
    assert [len(roots) for roots in seen.values()] == [3, 3]
    assert seen[Hierarchy.CLASSICAL].isdisjoint(seen[QUANTUM])
    assert world.keys == set(keeper.state.key_names())
    await world.stack.aclose()


class ClassicalKeys(DiskKeyStore):
    """A key store that makes no ML-DSA-65 keys, as those of tokens."""

    def create(self, name: str, algorithm: KeyAlgorithm) -> Signer:
        if algorithm is KeyAlgorithm.ML_DSA_65:
            raise InvalidInput("the token makes no ml-dsa-65 keys")
        return super().create(name, algorithm)


async def test_a_key_store_without_it_leaves_a_problem_and_all_else(world: World) -> None:
    keys = ClassicalKeys(world.data / "server" / "keys")
    lifetimes = Lifetimes.of(ServerConfig.load(world.data))
    keeper = world.keeper
    keeper.maker = Maker(keeper.maker.trust_domain, keys, world.clock, SystemEntropy(), lifetimes)
    before = keeper.state.roots
    await keeper.offer_post_quantum(ME)
    assert keeper.problems["post-quantum"] == "there is no post-quantum root: the token makes no ml-dsa-65 keys"
    assert (keeper.state.roots, keeper.state.loose) == (before, ())
    assert (await keeper.prepare(Kind.X509, ME)).item.id not in {root.id for root in before}


@pytest.mark.parametrize("algorithm", ["ec-p256", "ec-p384", "ed25519"])
async def test_a_new_server_has_both_at_once(tmp_path: Path, algorithm: str) -> None:
    file = ServerFile(trust_domain="td.test", ca_key=algorithm, post_quantum=True)
    await init_server(tmp_path, file, SystemClock(), SystemEntropy())
    config = ServerConfig.load(tmp_path)
    assert (config.file.ca_key, config.file.post_quantum) == (algorithm, True)
    for name, expected in (("issuing", algorithm), ("post-quantum-issuing", "ml-dsa-65")):
        [made] = x509.load_pem_x509_certificates((config.paths.certificates / f"{name}.pem").read_bytes())
        assert algorithm_of(made.public_key()) == expected
    bundle = x509.load_pem_x509_certificates((config.paths.certificates / "bundle.pem").read_bytes())
    assert [algorithm_of(root.public_key()) for root in bundle] == [algorithm, "ml-dsa-65"]


def test_the_control_plane_cannot_stand_below_ml_dsa() -> None:
    with pytest.raises(InvalidInput, match="ml-dsa-65"):
        read_file(b'trust_domain = "td.test"\nca_key = "ml-dsa-65"\n', "server.toml", {})


def test_stages_of_one_hierarchy_do_not_count_for_the_other(world: World) -> None:
    state = world.keeper.state
    assert state.active_of(Hierarchy.CLASSICAL) is state.active_root
    assert state.active_of(QUANTUM) is None
    assert [root.stage for root in state.roots] == [Stage.ACTIVE]
