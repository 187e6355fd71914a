"""What one agent should hold now: its entries, the trust bundles, and the rules of the workloads it may run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache

from eastwest.api.eastwest.control.v1 import control_pb2 as pb
from eastwest.clock import Clock
from eastwest.pki.profile import WORKLOAD, Profile
from eastwest.pki.signer import KeyAlgorithm
from eastwest.registry.containment import NOBODY, Contained
from eastwest.registry.entry import Entry
from eastwest.registry.node import Standing
from eastwest.registry.nodes import NodeBanned, UnknownNode
from eastwest.registry.registry import Registry
from eastwest.rpc.spire import bundle_to_proto, entry_to_proto
from eastwest.server.control import Item, Key, resource
from eastwest.server.estate import EstateKeeper
from eastwest.server.gate import refusal
from eastwest.server.sidecar_configs import SidecarConfig
from eastwest.server.tables import Given
from eastwest.spiffe.bundle import Bundle
from eastwest.spiffe.id import SpiffeId, TrustDomain

_ENTRY = pb.ResourceName.KIND_ENTRY
_BUNDLE = pb.ResourceName.KIND_BUNDLE
_SIDECAR = pb.ResourceName.KIND_SIDECAR
_TAINTED = pb.ResourceName.KIND_TAINTED
_TOKEN_KEYS = pb.ResourceName.KIND_TOKEN_KEYS
_POLICY_VERSION = pb.ResourceName.KIND_POLICY_VERSION
_CONTAINED = pb.ResourceName.KIND_CONTAINED
CAN_CONTAIN = "contain"
"""The capability of agents that take the list of contained identities."""
_CANARIES = pb.ResourceName.KIND_CANARIES
CANARIES = "canaries"
"""What an agent can that lets canaries count while a verify run lasts."""
VERSIONS = "versions"
"""What an agent can that keeps a policy version for each of its sidecars."""
REPORT = "report"
"""What an agent can that tells what rules in report mode would have said."""


class AgentView:
    """Composes registry, bundle and estate for the control stream."""

    def __init__(
        self,
        registry: Registry,
        estate: EstateKeeper,
        bundle: Callable[[], Bundle],
        federated: Callable[[], Mapping[TrustDomain, Bundle]],
        clock: Clock,
        tainted: Callable[[], tuple[str, ...]] = tuple,
        profiles: Callable[[], Iterable[Profile]] = tuple,
    ) -> None:
        """``tainted`` gives the issuing CAs (subject key identifiers in hex) that nothing should stem from any more;
        ``profiles`` those in force. ``token_keys`` (an attribute) gives the JWK set of transaction tokens, if there is
        one.
        """
        self._registry = registry
        self._estate = estate
        self._bundle = bundle
        self._federated = federated
        self._clock = clock
        self._tainted = tainted
        self._profiles = profiles
        self.token_keys: Callable[[], bytes] = bytes
        self.capabilities: Callable[[SpiffeId], Collection[str]] = lambda _agent: ()
        self.contained: Callable[[], Contained] = lambda: NOBODY
        """Gives who is cut off."""
        self.canaries: Callable[[], pb.Canaries | None] = lambda: None
        """Gives the verify run that is under way."""
        self._served: dict[SpiffeId, set[str]] = {}
        self._called: dict[SpiffeId, set[tuple[str, str]]] = {}
        self._kept: dict[tuple[SpiffeId, SpiffeId], Given] = {}
        """Of agents that know no report mode: what each sidecar was given last."""

    def of(self, agent: SpiffeId) -> Mapping[Key, Item]:
        """The whole truth for one agent; raises the refusal when it may hold nothing."""
        try:
            entries = self._registry.authorized(agent, self._clock.now()).entries
        except NodeBanned:
            raise refusal(Standing.AGENT_BANNED, agent) from None
        except UnknownNode:
            raise refusal(Standing.AGENT_NOT_ATTESTED, agent) from None
        keys = {profile.name: profile.keys for profile in self._profiles()}
        items = {Key(_ENTRY, entry.id): _entry_item(entry, keys.get(entry.profile, ())) for entry in entries}
        bundle = self._bundle()
        items[Key(_BUNDLE, bundle.trust_domain.name)] = _bundle_item(bundle)
        if tainted := self._tainted():
            items[Key(_TAINTED, bundle.trust_domain.name)] = _tainted_item(bundle.trust_domain, tainted)
        if token_keys := self.token_keys():
            items[Key(_TOKEN_KEYS, bundle.trust_domain.name)] = _token_keys_item(bundle.trust_domain, token_keys)
        contained = self.contained()
        if contained.generation and CAN_CONTAIN in self.capabilities(agent):
            items[Key(_CONTAINED, bundle.trust_domain.name)] = _contained_item(bundle.trust_domain, contained)
        capable = VERSIONS in self.capabilities(agent)
        canaries = self.canaries()
        if canaries is not None and CANARIES in self.capabilities(agent):
            name = bundle.trust_domain.name
            items[Key(_CANARIES, name)] = Item(canaries.run, resource(_CANARIES, name, canaries=canaries))
        served, called = self._served.setdefault(agent, set()), self._called.setdefault(agent, set())
        others: set[TrustDomain] = set()
        versions: dict[str, str] = {}
        for entry in entries:
            others.update(entry.federates_with)
            given = self.intended(agent, entry.spiffe_id)
            if given is not None:
                config = given.config
                served.update(config.services)
                called.update((str(entry.spiffe_id), service) for service in config.reached)
                others.update(config.trust_domains)
                items[Key(_SIDECAR, str(entry.spiffe_id))] = _sidecar_item(entry.spiffe_id, config)
                versions[str(entry.spiffe_id)] = given.version
        if common := self._common_version(versions, capable=capable):
            items[Key(_POLICY_VERSION, bundle.trust_domain.name)] = _version_item(bundle.trust_domain.name, common)
            for name, version in versions.items():
                if version != common:
                    items[Key(_POLICY_VERSION, name)] = _version_item(name, version)
        federated = self._federated()
        for domain in others & federated.keys():
            items[Key(_BUNDLE, domain.name)] = _bundle_item(federated[domain])
        return items

    def without_report(self, agent: SpiffeId, spiffe_id: SpiffeId, given: Given) -> Given:
        """What an agent is given that knows no report mode: where rules are in it, the last that it had.

        After a restart of this server nobody knows which that was; then it is what is enforced, which is the same with
        and without them.
        """
        key = (agent, spiffe_id)
        if not given.config.reports:
            self._kept[key] = given
        return self._kept.get(key) or Given(given.config.without_report(), given.version)

    def intended(self, agent: SpiffeId, spiffe_id: SpiffeId) -> Given | None:
        """What the agent's sidecars of a workload are to enforce; None: nothing.

        An agent that knows one version for all its sidecars is in the last ring of a rollout as a whole.
        """
        capabilities = self.capabilities(agent)
        given = self._estate.tables.given(agent, spiffe_id, last=VERSIONS not in capabilities)
        if given is None or REPORT in capabilities:
            return given
        return self.without_report(agent, spiffe_id, given)

    def cannot(self, agent: SpiffeId, spiffe_id: SpiffeId) -> tuple[str, ...]:
        """What the agent would have to be able to do to be given the workload's rules as they are."""
        capabilities = self.capabilities(agent)
        given = self._estate.tables.given(agent, spiffe_id, last=VERSIONS not in capabilities)
        return (REPORT,) if given is not None and given.config.reports and REPORT not in capabilities else ()

    def _common_version(self, versions: Mapping[str, str], *, capable: bool) -> str:
        """The version that the agent holds its sidecars to be of, unless it is told another for one of them."""
        earlier = self._estate.tables.earlier
        if not capable and earlier is not None and earlier.version in versions.values():
            return earlier.version
        return self._estate.version

    def elsewhere(self, heard: Collection[SpiffeId]) -> Iterator[tuple[SpiffeId, SpiffeId]]:
        """Agents that may still run, beside those that are ``heard``, each with every workload that it may run."""
        now = self._clock.now()
        for node in self._registry.nodes.list().items:
            ended = max(node.not_after, node.new_not_after) < now.timestamp()
            if node.spiffe_id not in heard and not node.banned and not ended:
                entries = self._registry.authorized(node.spiffe_id, now).entries
                yield from sorted({(node.spiffe_id, entry.spiffe_id) for entry in entries})

    def services(self, agent: SpiffeId) -> Collection[str]:
        """The services that the agent was told to run since this server started, those since removed included.

        Its word about any other is worth nothing; reports of a service's last moments come after its removal.
        """
        if agent not in self._served:
            self.of(agent)
        return self._served[agent]

    def calls(self, agent: SpiffeId) -> Collection[tuple[str, str]]:
        """Callers (SPIFFE IDs) that the agent was told to run since this server started, each with a service it calls.

        Of these the agent is believed that the caller's sidecar refused the service.
        """
        if agent not in self._called:
            self.of(agent)
        return self._called[agent]


@lru_cache(maxsize=200_000)
def _entry_item(entry: Entry, keys: tuple[KeyAlgorithm, ...]) -> Item:
    # Agents make P-256 keys where nothing else is said.
    told = () if keys == WORKLOAD.keys else tuple(key.value for key in keys)
    return Item((entry.id, entry.revision, told), resource(_ENTRY, entry.id, entry=entry_to_proto(entry), keys=told))


@lru_cache(maxsize=1024)
def _bundle_item(bundle: Bundle) -> Item:
    return Item(bundle, resource(_BUNDLE, bundle.trust_domain.name, bundle=bundle_to_proto(bundle)))


@lru_cache(maxsize=16)
def _tainted_item(trust_domain: TrustDomain, tainted: tuple[str, ...]) -> Item:
    body = pb.Tainted(subject_key_ids=[bytes.fromhex(key_id) for key_id in tainted])
    return Item(tainted, resource(_TAINTED, trust_domain.name, tainted=body))


@lru_cache(maxsize=16)
def _token_keys_item(trust_domain: TrustDomain, token_keys: bytes) -> Item:
    return Item(token_keys, resource(_TOKEN_KEYS, trust_domain.name, token_keys=token_keys))


@lru_cache(maxsize=20_000)
def _version_item(name: str, version: str) -> Item:
    return Item(version, resource(_POLICY_VERSION, name, policy_version=version))


@lru_cache(maxsize=16)
def _contained_item(trust_domain: TrustDomain, contained: Contained) -> Item:
    body = pb.Contained(generation=contained.generation, spiffe_ids=contained.spiffe_ids)
    return Item(contained.generation, resource(_CONTAINED, trust_domain.name, contained=body))


@lru_cache(maxsize=20_000)
def _sidecar_item(spiffe_id: SpiffeId, config: SidecarConfig) -> Item:
    return Item(config.token, resource(_SIDECAR, str(spiffe_id), sidecar=config.encode()))
