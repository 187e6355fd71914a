"""Issuance profiles: which keys, lifetimes, names, usages and doors a kind of certificate may have.

``ProfileConfig`` is a profile as people write it (``profiles/*.yaml``); ``Profile.from_config`` checks it once, and
nobody checks it again. Four profiles are built in: ``WORKLOAD``, ``AGENT``, ``SERVER`` and
``CANARY``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeVar

import msgspec

from eastwest.errors import InvalidInput, PermissionDenied
from eastwest.pki.signer import KeyAlgorithm
from eastwest.spiffe.id import SpiffeId

BACKDATE = timedelta(seconds=30)
"""How far before its issuance a certificate is valid, for peers whose clocks are a little behind."""

MAX_LIFETIME = 3650 * 86_400
MAX_DNS_NAMES = 32


class Door(enum.StrEnum):
    """The ways a request can come in. ``INTERNAL`` is the authority asking for itself."""

    WORKLOAD_API = "workload-api"
    SPIRE_API = "spire-api"
    ACME = "acme"
    EST = "est"
    KUBERNETES = "kubernetes"
    GATEWAY = "gateway"
    INTERNAL = "internal"


class Usage(enum.StrEnum):
    """What a certificate may be used for in TLS (extended key usage)."""

    SERVER = "server"
    CLIENT = "client"


class Revocation(enum.StrEnum):
    """How trust in a certificate ends before its time."""

    BY_EXPIRY_AND_CONTAINMENT = "by-expiry-and-containment"
    CRL = "crl"


class Scope(enum.Enum):
    """Which SPIFFE IDs a profile may name; the part under ``/spire`` belongs to servers and agents."""

    WORKLOAD = "workload"
    AGENT = "agent"
    SERVER = "server"
    CANARY = "canary"


class LifetimeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``default`` is used when nothing is asked for; ``max`` is the most that may be asked for. Like 90s, 1h, 90d."""

    default: str
    max: str


class NamesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Subject alternative names: one SPIFFE ID always; DNS names that match one of the patterns."""

    spiffe_id: Literal["exactly-one"] = "exactly-one"
    dns: tuple[str, ...] = ()


class ProfileConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A profile as written. ``dns`` patterns: an exact name, ``*.suffix`` (any name below it), or ``*`` (any name)."""

    profile: str
    doors: tuple[str, ...]
    keys: tuple[str, ...]
    lifetime: LifetimeConfig
    environments: tuple[str, ...] = ()
    names: NamesConfig = NamesConfig()
    usage: tuple[str, ...] = ("server", "client")
    revocation: str = "by-expiry-and-containment"


class InvalidProfile(InvalidInput):
    """A profile contradicts itself or names something unknown."""


class ProfileViolation(PermissionDenied):
    """A request asks for what its profile does not allow."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A checked profile. Lifetimes are in seconds; ``environments`` empty means all; ``keys`` in the order written."""

    name: str
    doors: frozenset[Door]
    environments: frozenset[str]
    keys: tuple[KeyAlgorithm, ...]
    default_ttl: int
    max_ttl: int
    dns_patterns: tuple[str, ...]
    usage: frozenset[Usage]
    revocation: Revocation = Revocation.BY_EXPIRY_AND_CONTAINMENT
    scope: Scope = Scope.WORKLOAD

    @classmethod
    def from_config(cls, config: ProfileConfig, *, where: str = "") -> Profile:
        """Check a profile as written; raise ``InvalidProfile`` naming the field and the fix. ``where`` is its place."""
        reader = _Reader(config.profile, where)
        if not _NAME.fullmatch(config.profile):
            raise reader.error("profile", f"{config.profile!r} is not a name", "use a-z 0-9 -, starting with a letter")
        if config.profile in {AGENT.name, SERVER.name, CANARY.name}:
            raise reader.error("profile", f"{config.profile} is built in and cannot be changed", "choose another name")
        default_ttl = reader.duration("lifetime.default", config.lifetime.default)
        max_ttl = reader.duration("lifetime.max", config.lifetime.max)
        if default_ttl > max_ttl:
            raise reader.error(
                "lifetime",
                f"the default {config.lifetime.default} is longer than the maximum {config.lifetime.max}",
                "raise max or lower default",
            )
        return cls(
            name=config.profile,
            doors=reader.members("doors", config.doors, [door for door in Door if door is not Door.INTERNAL]),
            environments=frozenset(config.environments),
            keys=reader.ordered("keys", config.keys, list(KeyAlgorithm)),
            default_ttl=default_ttl,
            max_ttl=max_ttl,
            dns_patterns=tuple(reader.pattern(pattern) for pattern in config.names.dns),
            usage=reader.members("usage", config.usage, list(Usage)),
            revocation=next(iter(reader.members("revocation", [config.revocation], list(Revocation)))),
        )

    @property
    def is_post_quantum(self) -> bool:
        """Whether it certifies only keys that a quantum computer cannot forge."""
        return all(key is KeyAlgorithm.ML_DSA_65 for key in self.keys)

    def check_door(self, door: str) -> None:
        """Raise ``ProfileViolation`` when the profile does not serve this door."""
        if door not in self.doors:
            raise ProfileViolation(
                f"profile {self.name} is not issued through {door}", fix=f"use {', '.join(sorted(self.doors))}"
            )

    def check_environment(self, environment: str) -> None:
        """Raise ``ProfileViolation`` when the profile is not meant for this environment."""
        if self.environments and environment not in self.environments:
            what = f"environment {environment[:80]}" if environment else "identities without an environment"
            raise ProfileViolation(
                f"profile {self.name} is not for {what}",
                fix=f"use {', '.join(sorted(self.environments))}, or add it to the profile's environments",
            )

    def check_id(self, spiffe_id: SpiffeId) -> None:
        """Raise ``ProfileViolation`` when the ID lies outside the part of the name space that the profile serves."""
        if not self._in_scope(spiffe_id):
            raise ProfileViolation(
                f"profile {self.name} may not name {spiffe_id}",
                fix="workloads have a path outside /spire; agents are /spire/agent/..., servers /spire/server",
            )

    def check_dns_names(self, names: Sequence[str]) -> None:
        """Raise when a name is malformed (``InvalidInput``) or matches no pattern (``ProfileViolation``)."""
        if len(names) > MAX_DNS_NAMES:
            raise InvalidInput(f"there are {len(names)} DNS names; at most {MAX_DNS_NAMES} fit in a certificate")
        for name in names:
            check_dns_name(name)
            if not any(covers_dns_name(pattern, name) for pattern in self.dns_patterns):
                allowed = ", ".join(self.dns_patterns) or "none"
                raise ProfileViolation(
                    f"profile {self.name} does not allow the DNS name {name}", fix=f"allowed: {allowed}"
                )

    def ttl(self, requested: int | None) -> int:
        """The lifetime in seconds for a request (None or 0: the default); above the maximum ``ProfileViolation``."""
        if not requested:
            return self.default_ttl
        if requested < 0:
            raise InvalidInput(f"a lifetime of {requested} s is not possible")
        if requested > self.max_ttl:
            raise ProfileViolation(
                f"a lifetime of {requested} s is more than profile {self.name} allows ({self.max_ttl} s)",
                fix=f"ask for {self.max_ttl} s or less",
            )
        return requested

    def _in_scope(self, spiffe_id: SpiffeId) -> bool:
        match self.scope:
            case Scope.WORKLOAD:
                return bool(spiffe_id.path) and not spiffe_id.is_reserved
            case Scope.AGENT:
                return spiffe_id.path.startswith("/spire/agent/")
            case Scope.SERVER:
                return spiffe_id.path == "/spire/server"
            case Scope.CANARY:
                return spiffe_id.path.startswith("/eastwest/canary/")


def parse_duration(text: str) -> int:
    """Seconds of ``45s``, ``30m``, ``1h``, ``90d`` or a sum such as ``1h30m``; raise ``InvalidInput``."""
    if not _DURATION.fullmatch(text):
        raise InvalidInput(f"{text[:40]!r} is not a duration", fix="write a number and s, m, h or d, such as 1h or 90d")
    return sum(int(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(text))


def check_dns_name(name: str) -> None:
    """Raise ``InvalidInput`` unless ``name`` is a lower-case DNS name; the first label may be ``*`` (RFC 6125)."""
    bare = name.removeprefix("*.")
    if len(name) > 253 or not _DNS_NAME.fullmatch(bare):
        raise InvalidInput(
            f"{name[:80]!r} is not a DNS name", fix="use lower-case letters, digits and - in labels of at most 63"
        )
    if bare.rpartition(".")[2].isdigit():
        raise InvalidInput(f"{name[:80]!r} looks like an IP address, not a DNS name")


def covers_dns_name(pattern: str, name: str) -> bool:
    """Whether a DNS pattern (an exact name, ``*.suffix`` for any name below it, ``*`` for any) covers a name."""
    if pattern == "*":
        return True
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) > len(pattern) - 1
    return name == pattern


_Member = TypeVar("_Member", bound=enum.StrEnum)


class _Reader:
    """Turns fields into checked values, and says in each error which field of which profile it was."""

    def __init__(self, profile: str, where: str) -> None:
        self._profile = profile[:80]
        self._where = where

    def error(self, field: str, message: str, fix: str) -> InvalidProfile:
        return InvalidProfile(f"profile {self._profile}, {field}: {message}", fix=fix, where=self._where)

    def duration(self, field: str, text: str) -> int:
        try:
            seconds = parse_duration(text)
        except InvalidInput as error:
            raise self.error(field, error.message, error.fix) from None
        if not 1 <= seconds <= MAX_LIFETIME:
            raise self.error(field, f"{text} is out of bounds", f"use 1s to {MAX_LIFETIME // 86_400}d")
        return seconds

    def members(self, field: str, values: Iterable[str], known: Sequence[_Member]) -> frozenset[_Member]:
        return frozenset(self.ordered(field, values, known))

    def ordered(self, field: str, values: Iterable[str], known: Sequence[_Member]) -> tuple[_Member, ...]:
        by_name = {member.value: member for member in known}
        choices = f"choose from {', '.join(by_name)}"
        found: dict[_Member, None] = {}
        for value in values:
            if value not in by_name:
                raise self.error(field, f"{value[:80]!r} is unknown", choices)
            found[by_name[value]] = None
        if not found:
            raise self.error(field, "nothing is listed", choices)
        return tuple(found)

    def pattern(self, pattern: str) -> str:
        try:
            if pattern != "*":
                check_dns_name(pattern)
        except InvalidInput as error:
            raise self.error("names.dns", error.message, "write a name, *.suffix, or *") from None
        return pattern


_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_DURATION = re.compile(r"(?:[0-9]{1,9}[smhd])+")
_DURATION_PART = re.compile(r"([0-9]+)([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")

# In the order in which our agents prefer them.
_CLASSICAL = (KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.ED25519)

WORKLOAD = Profile(
    name="workload",
    doors=frozenset({Door.WORKLOAD_API, Door.SPIRE_API}),
    environments=frozenset(),
    keys=_CLASSICAL,
    default_ttl=3600,
    max_ttl=4 * 3600,
    dns_patterns=("*",),
    usage=frozenset(Usage),
)
"""What a workload gets when the estate says nothing else."""

AGENT = Profile(
    name="agent",
    doors=frozenset({Door.SPIRE_API, Door.INTERNAL}),
    environments=frozenset(),
    keys=_CLASSICAL,
    default_ttl=3600,
    max_ttl=4 * 3600,
    dns_patterns=(),
    usage=frozenset(Usage),
    scope=Scope.AGENT,
)
"""An agent's own SVID, ``spiffe://TD/spire/agent/...``."""

SERVER = Profile(
    name="server",
    doors=frozenset({Door.INTERNAL}),
    environments=frozenset(),
    keys=_CLASSICAL,
    default_ttl=3600,
    max_ttl=4 * 3600,
    dns_patterns=("*",),
    usage=frozenset(Usage),
    scope=Scope.SERVER,
)
"""The authority's own SVID, ``spiffe://TD/spire/server``."""

CANARY = Profile(
    name="eastwest-canary",
    doors=frozenset({Door.INTERNAL}),
    environments=frozenset(),
    keys=_CLASSICAL,
    default_ttl=300,
    max_ttl=600,
    dns_patterns=(),
    usage=frozenset({Usage.CLIENT}),
    scope=Scope.CANARY,
)
"""Who asks in a verify run, ``spiffe://TD/eastwest/canary/...``: minutes, a client only, and no door leads to it."""
