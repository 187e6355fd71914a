"""Bookkeeping of one config stream: what it asked for, what it was sent, what it acknowledged or refused.

``DeltaSession`` speaks incremental xDS for all resource types of a stream; ``SecretSession`` speaks the
state-of-the-world form that stock Envoys and SPIRE's users configure for secrets. Both are pure: requests and
snapshots go in, responses come out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from envoy.service.discovery.v3 import discovery_pb2

from eastwest.errors import InvalidInput
from eastwest.mesh import names
from eastwest.mesh.secrets import SecretSet
from eastwest.mesh.snapshot import Named, Resource

MAX_NAMES = 10_000
MAX_NAME_LENGTH = 2_048
MAX_IN_FLIGHT = 4 * MAX_NAMES
"""Responses of one type that may wait for their acknowledgement; Envoy answers each before it takes the next."""
WILDCARD = "*"
_MAX_REFUSAL = 2_000


class TooManyNames(InvalidInput):
    """A stream asks for more names, or longer ones, than any sidecar needs."""


class NeverAcknowledges(InvalidInput):
    """A stream takes responses and does not say what became of them."""


class UnknownSecret(InvalidInput):
    """A stream asks for a secret that this workload has not."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A NACK: the resources that the sidecar would not take, and its reason. It goes on with the ones it had."""

    type_url: str
    names: tuple[str, ...]
    message: str


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """How far a sidecar has come. ``version_acked`` is the newest policy version that it enforces whole."""

    node_id: str
    version_sent: str
    version_acked: str
    acked: tuple[tuple[str, str, str], ...]  # (type URL, name, resource version), sorted
    refusals: tuple[Refusal, ...]  # those still standing, newest last
    secrets_acked: object = None  # marker of the newest snapshot whose every secret in use it has acknowledged
    contained_acked: int = 0  # generation of containments that it enforces


class Resources(Protocol):
    """What a stream may be sent."""

    @property
    def version(self) -> str: ...

    @property
    def marker(self) -> object: ...

    @property
    def contained(self) -> int: ...

    @property
    def requires(self) -> frozenset[str]: ...

    @property
    def instead(self) -> Resources | None: ...

    def of_type(self, type_url: str) -> Named: ...


@dataclass(frozen=True, slots=True)
class _Held:
    """The config of before with the secrets of now: an Envoy that cannot take what is new must not outlive its SVID."""

    config: Resources
    newest: Resources

    @property
    def version(self) -> str:
        return self.config.version

    @property
    def marker(self) -> object:
        return self.newest.marker

    @property
    def contained(self) -> int:
        return self.config.contained

    @property
    def requires(self) -> frozenset[str]:
        return self.config.requires

    @property
    def instead(self) -> Resources | None:
        return None

    def of_type(self, type_url: str) -> Named:
        return (self.newest if type_url == names.SECRET else self.config).of_type(type_url)


@dataclass(slots=True)
class _Subscription:
    """One type of one stream."""

    type_url: str
    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    sent: dict[str, str] = field(default_factory=dict)  # name → version the client has or will have
    acked: dict[str, str] = field(default_factory=dict)
    in_flight: dict[str, dict[str, str]] = field(default_factory=dict)  # nonce → name → version, "" for removal
    refusals: dict[str, Refusal] = field(default_factory=dict)  # by name, until an acknowledgement of that name
    answered: bool = False


class DeltaSession:
    """One incremental stream. Feed it requests and snapshots in the order they come."""

    def __init__(self) -> None:
        self.node_id = ""
        self._types: dict[str, _Subscription] = {}
        self._current: Resources | None = None
        self._extensions: frozenset[str] | None = None  # that the Envoy knows; None before it has said so
        self._lacking: Refusal | None = None
        self._nonce = 0
        self._version_acked = ""
        self._secrets_acked: object = None
        self._contained_acked = 0

    def on_request(self, request: Any) -> list[Any]:
        """Take a ``DeltaDiscoveryRequest``; the responses to send now, often none."""
        if not self.node_id and request.HasField("node"):
            self.node_id = request.node.id[:MAX_NAME_LENGTH]
            self._extensions = frozenset(extension.name for extension in request.node.extensions)
            if self._current is not None:  # it came before anybody had asked
                self._current = self._fitting(self._current, None)
        subscription = self._types.get(request.type_url)
        if subscription is None:
            subscription = self._open(request)
        else:
            _acknowledge(subscription, request)
            _resubscribe(subscription, request)
        self._note_version()
        self._note_secrets()
        return self._respond(subscription)

    def on_snapshot(self, resources: Resources) -> list[Any]:
        """Take the newest snapshot; the responses that bring the sidecar to it, in make-before-break order.

        An Envoy without an extension that the snapshot requires keeps its config, and gets new secrets and
        containments only.
        """
        self._current = self._fitting(resources, self._current)
        ordered = [self._types[url] for url in names.PUSH_ORDER if url in self._types]
        ordered += [sub for url, sub in self._types.items() if url not in names.PUSH_ORDER]
        responses = [response for subscription in ordered for response in self._respond(subscription)]
        self._note_version()
        self._note_secrets()
        return responses

    def status(self) -> SessionStatus:
        """How far this sidecar has come."""
        acked = sorted((url, name, ver) for url, sub in self._types.items() for name, ver in sub.acked.items())
        refusals = dict.fromkeys(refusal for sub in self._types.values() for refusal in sub.refusals.values())
        if self._lacking is not None:
            refusals[self._lacking] = None
        sent = "" if self._current is None else self._current.version
        return SessionStatus(
            self.node_id,
            sent,
            self._version_acked,
            tuple(acked),
            tuple(refusals),
            self._secrets_acked,
            self._contained_acked,
        )

    def _fitting(self, newest: Resources, last: Resources | None) -> Resources | None:
        """What of ``newest`` the Envoy is given, where its ``last`` config is known: all of it, if it can take it."""
        missing = sorted(newest.requires - self._extensions) if self._extensions is not None else []
        if not missing:
            self._lacking = None
            return newest
        message = f"this Envoy lacks {', '.join(missing)}, without which it cannot do report mode: it was given nothing"
        self._lacking = Refusal(names.EXTENSION, tuple(missing), message)
        config = last.config if isinstance(last, _Held) else last
        if newest.instead is not None and (config is None or config.contained != newest.contained):
            config = newest.instead
        return None if config is None else _Held(config, newest)

    def _open(self, request: Any) -> _Subscription:
        if len(self._types) >= len(names.PUSH_ORDER) + 8:
            raise TooManyNames("the stream asks for more types than a sidecar has")
        asked = _checked(request.resource_names_subscribe)
        # A first request without names asks for everything; so does the explicit star.
        subscription = _Subscription(request.type_url, wildcard=not asked or WILDCARD in asked)
        subscription.names.update(asked - {WILDCARD})
        held = dict(request.initial_resource_versions)
        _checked(held)
        subscription.sent.update(held)
        subscription.acked.update(held)
        self._types[request.type_url] = subscription
        return subscription

    def _respond(self, subscription: _Subscription) -> list[Any]:
        if self._current is None:
            return []
        available = self._current.of_type(subscription.type_url)
        wanted = available if subscription.wildcard else subscription.names & available.keys()
        changed = [available[name] for name in sorted(wanted) if subscription.sent.get(name) != available[name].version]
        gone = sorted(name for name in subscription.sent if name not in available)
        if not changed and not gone:
            # An Envoy that starts waits for its first word on clusters, then for that on listeners: there may be none,
            # as there are no clusters for who is contained.
            starts = subscription.wildcard and not (subscription.answered or available or subscription.sent)
            return [self._response(subscription, [], [])] if starts and self._current.version else []
        if subscription.type_url in names.ONE_PER_RESPONSE:
            batches: list[tuple[list[Resource], list[str]]] = [([resource], []) for resource in changed]
            if gone:
                batches.append(([], gone))
        else:
            batches = [(changed, gone)]
        return [self._response(subscription, resources, removed) for resources, removed in batches]

    def _response(self, subscription: _Subscription, resources: list[Resource], removed: list[str]) -> Any:
        if len(subscription.in_flight) >= MAX_IN_FLIGHT:
            raise NeverAcknowledges(f"{MAX_IN_FLIGHT} responses were not acknowledged")
        self._nonce += 1
        subscription.answered = True
        nonce = str(self._nonce)
        response = discovery_pb2.DeltaDiscoveryResponse(
            type_url=subscription.type_url,
            nonce=nonce,
            removed_resources=removed,
            system_version_info="" if self._current is None else self._current.version,
        )
        for resource in resources:
            response.resources.add(name=resource.name, version=resource.version, resource=resource.as_any())
            subscription.sent[resource.name] = resource.version
        for name in removed:
            subscription.sent.pop(name, None)
        subscription.in_flight[nonce] = {
            **{resource.name: resource.version for resource in resources},
            **dict.fromkeys(removed, ""),
        }
        return response

    def _note_version(self) -> None:
        """A version counts as enforced once every resource is acknowledged in it, and the secrets that it is used with.

        Secrets hold whom it trusts. Those that change later, at a renewal, do not take the version back.
        """
        if self._current is None:
            return
        for type_url in names.PUSH_ORDER:
            if type_url == names.SECRET:
                continue
            available = self._current.of_type(type_url)
            subscription = self._types.get(type_url)
            if not available and subscription is None:
                continue
            if subscription is None or subscription.in_flight:
                return
            if any(subscription.acked.get(name) != resource.version for name, resource in available.items()):
                return
        if self._version_acked != self._current.version and not self._secrets_taken(self._current):
            return
        self._version_acked = self._current.version
        self._contained_acked = self._current.contained

    def _note_secrets(self) -> None:
        """Secrets count as taken once every one that is in use is acknowledged as it is now."""
        current = self._current
        if current is None:
            return
        subscription = self._types.get(names.SECRET)
        if subscription is None:
            # Without TLS there is nothing to take; before its first words a sidecar has taken nothing.
            if self._version_acked and self._version_acked == current.version:
                self._secrets_acked = current.marker
            return
        if self._secrets_taken(current):
            self._secrets_acked = current.marker

    def _secrets_taken(self, current: Resources) -> bool:
        subscription = self._types.get(names.SECRET)
        if subscription is None:
            return True
        available = current.of_type(names.SECRET)
        used = available.keys() if subscription.wildcard else subscription.names & available.keys()
        return not subscription.in_flight and all(subscription.acked.get(n) == available[n].version for n in used)


class SecretSession:
    """One state-of-the-world stream for secrets, with SPIRE's names."""

    def __init__(self) -> None:
        self.node_id = ""
        self._asked: tuple[str, ...] | None = None
        self._current: SecretSet | None = None
        self._type_url = names.SECRET
        self._last: tuple[tuple[str, str], ...] | None = None
        self._version = 0
        self._sent_marker: object = None
        self.refusal: Refusal | None = None
        self.secrets_acked: object = None
        """The marker of the newest secrets that were acknowledged, None before the first."""

    def on_request(self, request: Any) -> Any | None:
        """Take a ``DiscoveryRequest``; the response to send now, or None."""
        if not self.node_id and request.HasField("node"):
            self.node_id = request.node.id[:MAX_NAME_LENGTH]
        if self._version and request.response_nonce and request.response_nonce != str(self._version):
            return None
        if request.HasField("error_detail"):
            message = request.error_detail.message[:_MAX_REFUSAL]
            self.refusal = Refusal(names.SECRET, self._asked or (), message)
        elif request.response_nonce:
            self.refusal = None
            self.secrets_acked = self._sent_marker
        asked = tuple(sorted(_checked(request.resource_names)))
        self._type_url = request.type_url or names.SECRET
        if asked != self._asked:
            self._asked = asked
            self._last = None
        return self._respond()

    def on_secrets(self, secrets: SecretSet) -> Any | None:
        """Take the newest secrets; the response to send now, or None where nothing asked for changed."""
        self._current = secrets
        return self._respond()

    def _respond(self) -> Any | None:
        if self._current is None or self._asked is None:
            return None
        found = find_secrets(self._current, self._asked)
        content = tuple((resource.name, resource.version) for resource in found)
        if content == self._last:
            if self.secrets_acked is not None and self.secrets_acked is self._sent_marker:
                # Nothing new for it in what changed.
                self.secrets_acked = self._current.marker
            self._sent_marker = self._current.marker
            return None
        self._last = content
        self._version += 1
        self._sent_marker = self._current.marker
        return secrets_response(found, str(self._version), self._type_url)


def find_secrets(secrets: SecretSet, asked: Iterable[str]) -> list[Resource]:
    """The secrets called ``asked``, all of them where nothing is asked; raises ``UnknownSecret``."""
    found: list[Resource] = []
    for name in tuple(asked) or secrets.all_names():
        resource = secrets.find(name)
        if resource is None:
            raise UnknownSecret(f"this workload has no secret called {name[:200]!r}")
        found.append(resource)
    return found


def secrets_response(found: Iterable[Resource], version: str, type_url: str = names.SECRET) -> Any:
    """A ``DiscoveryResponse`` with ``found``; the nonce is the version."""
    response = discovery_pb2.DiscoveryResponse(version_info=version, nonce=version, type_url=type_url)
    response.resources.extend(resource.as_any() for resource in found)
    return response


def _acknowledge(subscription: _Subscription, request: Any) -> None:
    in_flight = subscription.in_flight.pop(request.response_nonce, None) if request.response_nonce else None
    if in_flight is None:
        return
    if request.HasField("error_detail"):
        message = request.error_detail.message[:_MAX_REFUSAL]
        # A batch is refused as one; the names that the reason mentions are meant, else any may be.
        meant = tuple(sorted(name for name in in_flight if name in message)) or tuple(sorted(in_flight))
        refusal = Refusal(subscription.type_url, meant, message)
        subscription.refusals.update(dict.fromkeys(meant, refusal))
        # The rest of a batch is taken even so.
        in_flight = {name: version for name, version in in_flight.items() if name not in meant}
    for name, version in in_flight.items():
        subscription.refusals.pop(name, None)
        if version:
            subscription.acked[name] = version
        else:
            subscription.acked.pop(name, None)


def _resubscribe(subscription: _Subscription, request: Any) -> None:
    asked = _checked(request.resource_names_subscribe)
    if WILDCARD in asked:
        subscription.wildcard = True
    for name in asked - {WILDCARD}:
        subscription.names.add(name)
        subscription.sent.pop(name, None)  # asking again means: send again
    for name in request.resource_names_unsubscribe:
        if name == WILDCARD:
            subscription.wildcard = False
            continue
        subscription.names.discard(name)
        for held in (subscription.sent, subscription.acked):
            held.pop(name, None)
        subscription.refusals.pop(name, None)
    if len(subscription.names) > MAX_NAMES:
        raise TooManyNames(f"the stream asks for more than {MAX_NAMES} resources of one type")


def _checked(asked: Iterable[str]) -> set[str]:
    found = set(asked)
    if len(found) > MAX_NAMES or any(len(name) > MAX_NAME_LENGTH for name in found):
        raise TooManyNames(f"at most {MAX_NAMES} names of at most {MAX_NAME_LENGTH} characters may be asked for")
    return found
