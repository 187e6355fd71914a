"""What an agent knows: entries, bundles and sidecars, as one immutable value that whole updates replace.

The rules that keep a node on its last good state live here, without I/O: an update is parsed completely before
anything changes, deltas must follow each other without a gap, and a state without the own trust domain's roots
is no state.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import TypeVar

import msgspec
from cryptography import x509

from eastwest import errors
from eastwest.api.eastwest.control.v1 import control_pb2 as control
from eastwest.api.spire.api.types import types_pb2 as types
from eastwest.attest import match
from eastwest.pki.signer import KeyAlgorithm
from eastwest.policy.enforcement import Sidecar, decode_sidecar, encode_sidecar
from eastwest.registry.containment import MAX_CONTAINED, NOBODY, Contained
from eastwest.registry.entry import Entry
from eastwest.rpc import spire
from eastwest.spiffe.bundle import Bundle
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.spiffe.selector import Selector

MAX_REMEMBERED = 10_000
"""Kinds of callers (sets of selectors) whose entries are remembered until the next state."""
MAX_POLICY_VERSION = 128
MAX_TOKEN_KEYS = 16 * 1024
"""Bytes of the key set of transaction tokens; a key has some two hundred, and few live at a time."""
_ENTRY = control.ResourceName.KIND_ENTRY
_BUNDLE = control.ResourceName.KIND_BUNDLE
_SIDECAR = control.ResourceName.KIND_SIDECAR
_TAINTED = control.ResourceName.KIND_TAINTED
_TOKEN_KEYS = control.ResourceName.KIND_TOKEN_KEYS
_POLICY_VERSION = control.ResourceName.KIND_POLICY_VERSION
_CONTAINED = control.ResourceName.KIND_CONTAINED
_CANARIES = control.ResourceName.KIND_CANARIES
_RUN = re.compile("[0-9a-f]{32}")
_ALGORITHMS = {algorithm.value: algorithm for algorithm in KeyAlgorithm}
_K = TypeVar("_K")
_V = TypeVar("_V")


class BadUpdate(errors.Unavailable):
    """An update cannot be applied; what is held stays, and the full state must be asked for."""


@dataclass(frozen=True, slots=True)
class Canaries:
    """The verify run that is under way, and until when (Unix seconds) its canaries count; "": none is."""

    run: str = ""
    expires_at: int = 0

    def count_at(self, now: datetime) -> bool:
        """Whether enforcement points are to know canaries."""
        return bool(self.run) and now.timestamp() < self.expires_at


@dataclass(frozen=True)
class State:
    """One complete, consistent picture. ``epoch`` and ``number`` say which update led to it."""

    trust_domain: TrustDomain
    epoch: str = ""
    number: int = 0
    entries: Mapping[str, Entry] = field(default_factory=dict)
    bundles: Mapping[TrustDomain, Bundle] = field(default_factory=dict)
    sidecars: Mapping[SpiffeId, Sidecar] = field(default_factory=dict)
    tainted: frozenset[bytes] = frozenset()
    """Issuing CAs of the own trust domain that nothing should stem from any more (subject key identifiers)."""
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By entry id, the key types that its profile certifies, best first; entries of which the server says nothing are
    missing."""
    token_keys: bytes = b""
    """JWK set of the keys that sign transaction tokens; empty where the trust domain has none."""
    policy_version: str = ""
    """The policy version in force, which the sidecars' decisions are recorded under."""
    policy_versions: Mapping[SpiffeId, str] = field(default_factory=dict)
    """Of sidecars whose rules are those of another version: while a change rolls out, the one before."""
    contained: Contained = NOBODY
    """Who is cut off."""
    canaries: Canaries = Canaries()

    @property
    def bundle(self) -> Bundle:
        """The own trust domain's bundle; empty while nothing is known."""
        return self.bundles.get(self.trust_domain, Bundle(self.trust_domain))

    def policy_version_of(self, spiffe_id: SpiffeId) -> str:
        """The version that the workload's rules are a part of; "" where the server says none."""
        return self.policy_versions.get(spiffe_id, self.policy_version)

    def apply(self, update: control.Update, *, resumed: bool = False) -> State:
        """The state after ``update``; raises ``BadUpdate`` and leaves this one as it is.

        ``resumed``: the server answers our position with it, so it may stand for several numbers at once.
        """
        if not update.epoch:
            raise BadUpdate("the update has no epoch")
        if not update.full:
            follows = update.number > self.number if resumed else update.number == self.number + 1
            if update.epoch != self.epoch or not follows:
                raise BadUpdate(f"update {update.number} does not follow {self.number}")
        entries, bundles, sidecars, tainted, token_keys = _parse(update, self.trust_domain)
        keys = {r.entry.id: tuple(r.keys) for r in update.upserts if r.WhichOneof("body") == "entry" and r.keys}
        held = State(self.trust_domain) if update.full else self
        after = replace(
            held,
            epoch=update.epoch,
            number=update.number,
            entries=_merge(held.entries, entries, _removed(update, _ENTRY)),
            bundles=_merge(held.bundles, bundles, {TrustDomain(name) for name in _removed(update, _BUNDLE)}),
            sidecars=_merge(held.sidecars, sidecars, _removed_ids(update)),
            tainted=_merged_tainted(held.tainted, tainted, _removed(update, _TAINTED)),
            # What came without them has none any more.
            keys=_merge(held.keys, keys, _removed(update, _ENTRY) | (entries.keys() - keys.keys())),
            token_keys=_merged_keys(held.token_keys, token_keys, _removed(update, _TOKEN_KEYS)),
            policy_version=_merged_version(held.policy_version, update, self.trust_domain.name),
            policy_versions=_merged_versions(held.policy_versions, update, self.trust_domain.name),
            contained=_merged_contained(held.contained, update),
            canaries=_merged_canaries(held.canaries, update),
        )
        if not after.bundle.x509_authorities:
            raise BadUpdate(f"the update leaves no root of {self.trust_domain}")
        return after

    def key_algorithm(self, entry: Entry) -> KeyAlgorithm:
        """What kind of key to make for ``entry``: the first of its profile that this agent knows, else P-256."""
        known = (_ALGORITHMS[name] for name in self.keys.get(entry.id, ()) if name in _ALGORITHMS)
        return next(known, KeyAlgorithm.EC_P256)

    def matching(self, selectors: frozenset[Selector]) -> tuple[Entry, ...]:
        """The entries that a caller's selectors earn, by id (``eastwest.attest.match``), found by index."""
        if (known := self._matches.get(selectors)) is not None:
            return known
        candidates = (entry for selector in selectors for entry in self._by_pivot.get(selector, ()))
        result = tuple(match.matching(candidates, selectors))
        if len(self._matches) >= MAX_REMEMBERED:
            self._matches.clear()
        self._matches[selectors] = result
        return result

    def has_entry(self, spiffe_id: str) -> bool:
        """Whether any entry gives ``spiffe_id``."""
        return spiffe_id in self._spiffe_ids

    def bundles_for(self, entries: Iterable[Entry]) -> dict[TrustDomain, Bundle]:
        """The own bundle and those that ``entries`` federate with."""
        wanted = {self.trust_domain}.union(*(entry.federates_with for entry in entries))
        return {domain: self.bundles[domain] for domain in sorted(wanted) if domain in self.bundles}

    def to_update(self) -> control.Update:
        """The one full update that leads to this state; what the cache stores."""
        update = control.Update(epoch=self.epoch, number=self.number, full=True)
        for entry in self.entries.values():
            update.upserts.add(
                name=control.ResourceName(kind=_ENTRY, name=entry.id),
                entry=spire.entry_to_proto(entry),
                keys=self.keys.get(entry.id, ()),
            )
        for domain, bundle in self.bundles.items():
            name = control.ResourceName(kind=_BUNDLE, name=domain.name)
            update.upserts.add(name=name, bundle=spire.bundle_to_proto(bundle))
        for spiffe_id, sidecar in self.sidecars.items():
            name = control.ResourceName(kind=_SIDECAR, name=str(spiffe_id))
            update.upserts.add(name=name, sidecar=encode_sidecar(sidecar))
        if self.tainted:
            name = control.ResourceName(kind=_TAINTED, name=self.trust_domain.name)
            update.upserts.add(name=name, tainted=control.Tainted(subject_key_ids=sorted(self.tainted)))
        if self.token_keys:
            name = control.ResourceName(kind=_TOKEN_KEYS, name=self.trust_domain.name)
            update.upserts.add(name=name, token_keys=self.token_keys)
        if self.policy_version:
            name = control.ResourceName(kind=_POLICY_VERSION, name=self.trust_domain.name)
            update.upserts.add(name=name, policy_version=self.policy_version)
        for spiffe_id, version in self.policy_versions.items():
            name = control.ResourceName(kind=_POLICY_VERSION, name=str(spiffe_id))
            update.upserts.add(name=name, policy_version=version)
        if self.contained.generation:
            name = control.ResourceName(kind=_CONTAINED, name=self.trust_domain.name)
            body = control.Contained(generation=self.contained.generation, spiffe_ids=self.contained.spiffe_ids)
            update.upserts.add(name=name, contained=body)
        if self.canaries.run:
            name = control.ResourceName(kind=_CANARIES, name=self.trust_domain.name)
            told = control.Canaries(run=self.canaries.run, expires_at=self.canaries.expires_at)
            update.upserts.add(name=name, canaries=told)
        return update

    @cached_property
    def _spiffe_ids(self) -> frozenset[str]:
        return frozenset(str(entry.spiffe_id) for entry in self.entries.values())

    @cached_property
    def _by_pivot(self) -> dict[Selector, list[Entry]]:
        """Entries under one of their selectors each: the one that fewest entries have."""
        counts: dict[Selector, int] = {}
        for entry in self.entries.values():
            for selector in entry.selectors:
                counts[selector] = counts.get(selector, 0) + 1
        index: dict[Selector, list[Entry]] = {}
        for entry in self.entries.values():
            index.setdefault(min(entry.selectors, key=counts.__getitem__), []).append(entry)
        return index

    @cached_property
    def _matches(self) -> dict[frozenset[Selector], tuple[Entry, ...]]:
        return {}


_Parsed = tuple[
    dict[str, Entry], dict[TrustDomain, Bundle], dict[SpiffeId, Sidecar], frozenset[bytes] | None, bytes | None
]


class _KeySet(msgspec.Struct, frozen=True):
    """What is looked at here of a JWK set; whoever verifies by it reads the keys."""

    keys: tuple[dict[str, str | tuple[str, ...]], ...]


def _parse(update: control.Update, trust_domain: TrustDomain) -> _Parsed:
    entries: dict[str, Entry] = {}
    bundles: dict[TrustDomain, Bundle] = {}
    sidecars: dict[SpiffeId, Sidecar] = {}
    tainted: frozenset[bytes] | None = None
    token_keys: bytes | None = None
    for resource in update.upserts:
        try:
            match resource.WhichOneof("body"):
                case "entry":
                    entry = spire.entry_from_proto(resource.entry)
                    _check_entry(entry, trust_domain)
                    entries[entry.id] = entry
                case "bundle":
                    bundle = _bundle(resource.bundle)
                    bundles[bundle.trust_domain] = bundle
                case "sidecar":
                    sidecar = decode_sidecar(resource.sidecar)
                    sidecars[SpiffeId.parse(sidecar.spiffe_id)] = sidecar
                case "tainted":
                    tainted = frozenset(resource.tainted.subject_key_ids)
                case "token_keys":
                    token_keys = _key_set(resource.token_keys)
                case "policy_version":
                    if len(resource.policy_version) > MAX_POLICY_VERSION:
                        raise BadUpdate(f"the policy version has more than {MAX_POLICY_VERSION} characters")
                case "contained":
                    _contained(resource.contained)
                case "canaries":
                    _canaries(resource.canaries)
                case kind:
                    raise BadUpdate(f"resource {resource.name.name!r} has a body of an unknown kind ({kind})")
        except (errors.InvalidInput, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadUpdate(f"resource {resource.name.name!r} is malformed: {error}") from None
    return entries, bundles, sidecars, tainted, token_keys


def _check_entry(entry: Entry, trust_domain: TrustDomain) -> None:
    if not entry.id or not entry.selectors:
        raise BadUpdate(f"the entry for {entry.spiffe_id} lacks an id or selectors")
    if not entry.spiffe_id.is_member_of(trust_domain):
        raise BadUpdate(f"entry {entry.id} is for {entry.spiffe_id}, outside {trust_domain}")


def _bundle(message: types.Bundle) -> Bundle:
    for authority in message.x509_authorities:
        try:
            x509.load_der_x509_certificate(authority.asn1)
        except ValueError:
            raise BadUpdate(f"a root of {message.trust_domain!r} is no certificate") from None
    return spire.bundle_from_proto(message)


def _key_set(document: bytes) -> bytes:
    if len(document) > MAX_TOKEN_KEYS:
        raise BadUpdate(f"the keys of transaction tokens are more than {MAX_TOKEN_KEYS} bytes")
    msgspec.json.decode(document, type=_KeySet)
    return document


def _contained(message: control.Contained) -> Contained:
    if len(message.spiffe_ids) > MAX_CONTAINED:
        raise BadUpdate(f"more than {MAX_CONTAINED} identities are contained")
    return Contained(message.generation, tuple(sorted(str(SpiffeId.parse(name)) for name in message.spiffe_ids)))


def _canaries(message: control.Canaries) -> Canaries:
    if not _RUN.fullmatch(message.run):
        raise BadUpdate("a verify run is not named by 32 hex digits")
    return Canaries(message.run, message.expires_at)


def _removed(update: control.Update, kind: int) -> set[str]:
    return {name.name for name in update.removals if name.kind == kind}


def _removed_ids(update: control.Update) -> set[SpiffeId]:
    try:
        return {SpiffeId.parse(name) for name in _removed(update, _SIDECAR)}
    except errors.InvalidInput as error:
        raise BadUpdate(f"a sidecar to remove is misnamed: {error}") from None


def _merged_tainted(held: frozenset[bytes], newer: frozenset[bytes] | None, removed: set[str]) -> frozenset[bytes]:
    if newer is not None:
        return newer
    return frozenset() if removed else held


def _merged_keys(held: bytes, newer: bytes | None, removed: set[str]) -> bytes:
    if newer is not None:
        return newer
    return b"" if removed else held


def _merged_version(held: str, update: control.Update, trust_domain: str) -> str:
    """The version of all sidecars that are not told another; it is named by the trust domain."""
    newer = [r.policy_version for r in _versions(update) if r.name.name == trust_domain or not r.name.name]
    if newer:
        return newer[-1]
    return "" if trust_domain in _removed(update, _POLICY_VERSION) else held


def _merged_versions(held: Mapping[SpiffeId, str], update: control.Update, trust_domain: str) -> Mapping[SpiffeId, str]:
    named = {r.name.name: r.policy_version for r in _versions(update) if r.name.name not in {trust_domain, ""}}
    removed = _removed(update, _POLICY_VERSION) - {trust_domain}
    try:
        newer = {SpiffeId.parse(name): version for name, version in named.items()}
        return _merge(held, newer, {SpiffeId.parse(name) for name in removed})
    except errors.InvalidInput as error:
        raise BadUpdate(f"a policy version is misnamed: {error}") from None


def _versions(update: control.Update) -> list[control.Resource]:
    return [r for r in update.upserts if r.WhichOneof("body") == "policy_version"]


def _merged_contained(held: Contained, update: control.Update) -> Contained:
    newer = [r.contained for r in update.upserts if r.WhichOneof("body") == "contained"]
    if newer:
        return _contained(newer[-1])
    return NOBODY if _removed(update, _CONTAINED) else held


def _merged_canaries(held: Canaries, update: control.Update) -> Canaries:
    newer = [r.canaries for r in update.upserts if r.WhichOneof("body") == "canaries"]
    if newer:
        return _canaries(newer[-1])
    return Canaries() if _removed(update, _CANARIES) else held


def _merge(held: Mapping[_K, _V], upserts: Mapping[_K, _V], removals: set[_K]) -> Mapping[_K, _V]:
    if not upserts and not removals:
        return held
    merged = {key: value for key, value in held.items() if key not in removals}
    merged.update(upserts)
    return merged
