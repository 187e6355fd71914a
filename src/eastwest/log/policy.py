"""The trust policy of a log (C2SP tlog-policy): which logs and witnesses count, and how many are enough.

A file of lines: ``log <vkey> [<url>]``, ``witness <name> <vkey> [<url>]``, ``group <name> all|any|<k> <name>...`` and
exactly one ``quorum <name>|none``. Names mean something within the file only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from eastwest.errors import InvalidInput
from eastwest.log.checkpoint import Checkpoint, open_any_checkpoint
from eastwest.log.note import (
    COSIGNATURES,
    KeyType,
    MalformedNote,
    NoteKey,
    Signature,
    UntrustedNote,
    verified_signatures,
)

MAX_POLICY_BYTES = 1 << 20
MAX_OF_A_KIND = 256
NONE = "none"
_FORBIDDEN = re.compile(rb"[^\x09\x0a\x20-\x7e\x80-\xff]")
_BLANK = re.compile(r"[ \t]+")


class InvalidPolicy(InvalidInput):
    """A text is not a trust policy; ``where`` has the line."""


@dataclass(frozen=True, slots=True)
class KnownLog:
    """A log that the policy accepts."""

    key: NoteKey
    url: str = ""


@dataclass(frozen=True, slots=True)
class Witness:
    """A witness under the name that the policy gives it."""

    name: str
    key: NoteKey
    url: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Met when at least ``threshold`` of ``members`` (witnesses and groups) are."""

    name: str
    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """A checked policy. ``quorum`` is a name, or ``none``."""

    logs: tuple[KnownLog, ...]
    witnesses: Mapping[str, Witness]
    groups: Mapping[str, Group]
    quorum: str

    @classmethod
    def parse(cls, raw: bytes, where: str = "the policy") -> Policy:
        """Read the file; raises ``InvalidPolicy`` with the line at fault."""
        if len(raw) > MAX_POLICY_BYTES:
            raise InvalidPolicy(f"the policy is larger than {MAX_POLICY_BYTES} bytes", where=where)
        if bad := _FORBIDDEN.search(raw):
            at = raw.count(b"\n", 0, bad.start()) + 1
            raise InvalidPolicy("a control character stands there", where=f"{where}:{at}")
        reader = _Reader(where)
        # Beyond ASCII, bytes are opaque; the ones of a file in UTF-8 survive this.
        for number, line in enumerate(raw.decode("utf-8", "surrogateescape").split("\n"), 1):
            reader.line(number, [part for part in _BLANK.split(line) if part])
        return reader.finish()

    def is_met(self, cosigners: Collection[NoteKey]) -> bool:
        """Whether the cosignatures of these keys are enough."""
        return self.quorum == NONE or self._is_met(self.quorum, cosigners)

    def missing(self, cosigners: Collection[NoteKey]) -> list[str]:
        """The names of witnesses that have not signed, sorted; for people."""
        return sorted(name for name, witness in self.witnesses.items() if witness.key not in cosigners)

    def open(self, raw: bytes) -> tuple[Checkpoint, list[Signature]]:
        """A checkpoint of one of the logs and its cosignatures, once the quorum is met.

        Raises ``MalformedNote`` or ``UntrustedNote``. A false signature of any known key spoils it.
        """
        checkpoint = open_any_checkpoint(raw, [log.key for log in self.logs])
        _, signatures = verified_signatures(raw, [witness.key for witness in self.witnesses.values()])
        found = {signature.key for signature in signatures}
        if not self.is_met(found):
            told = ", ".join(self.missing(found))
            raise UntrustedNote(f"too few witnesses have signed the checkpoint of size {checkpoint.size}: not {told}")
        return checkpoint, signatures

    def _is_met(self, name: str, cosigners: Collection[NoteKey]) -> bool:
        if name in self.witnesses:
            return self.witnesses[name].key in cosigners
        group = self.groups[name]
        return sum(self._is_met(member, cosigners) for member in group.members) >= group.threshold


@dataclass
class _Reader:
    """Takes the lines in order."""

    where: str
    number: int = 0
    logs: list[KnownLog] = field(default_factory=list)
    witnesses: dict[str, Witness] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    quorum: str = ""
    members: set[str] = field(default_factory=set)
    publics: dict[str, set[bytes]] = field(default_factory=lambda: {"log": set(), "witness": set()})

    def line(self, number: int, parts: list[str]) -> None:
        """One line, in words."""
        self.number = number
        if not parts or parts[0].startswith("#"):
            return
        match parts:
            case ["log", vkey, *url] if len(url) <= 1:
                self._bound(self.logs)
                allowed = {KeyType.ED25519, KeyType.ML_DSA_44}
                self.logs.append(KnownLog(self._key("log", vkey, allowed), "".join(url)))
            case ["witness", name, vkey, *url] if len(url) <= 1:
                self._bound(self.witnesses)
                self.witnesses[self._new(name)] = Witness(name, self._key("witness", vkey, COSIGNATURES), "".join(url))
            case ["group", name, threshold, *members]:
                self._bound(self.groups)
                self.groups[self._new(name)] = self._group(name, threshold, members)
            case ["quorum", name]:
                if self.quorum:
                    self._refuse("there is a quorum line already")
                if name != NONE and name not in self.witnesses and name not in self.groups:
                    self._refuse(f"{_shown(name)} is no witness or group of an earlier line")
                self.quorum = name
            case _:
                self._refuse(
                    "a line is: log VKEY [URL], witness NAME VKEY [URL], group NAME all|any|K NAME..., quorum NAME"
                )

    def finish(self) -> Policy:
        """The whole."""
        if not self.quorum:
            raise InvalidPolicy("there is no quorum line", where=self.where, fix="quorum NAME, or quorum none")
        return Policy(tuple(self.logs), self.witnesses, self.groups, self.quorum)

    def _group(self, name: str, threshold: str, members: list[str]) -> Group:
        if not members:
            self._refuse(f"the group {_shown(name)} has no members")
        for member in members:
            if member not in self.witnesses and member not in self.groups:
                self._refuse(f"{_shown(member)} is no witness or group of an earlier line")
            if member in self.members:
                self._refuse(f"{_shown(member)} is a member of a group already")
            self.members.add(member)
        needed = {"any": 1, "all": len(members)}.get(threshold)
        if needed is None:
            if not (threshold.isascii() and threshold.isdigit()) or len(threshold) > 4:
                self._refuse("the threshold of a group is all, any or a number")
            needed = int(threshold)
        if not 1 <= needed <= len(members):
            self._refuse(f"the threshold of a group of {len(members)} is 1 to {len(members)}")
        return Group(name, needed, tuple(members))

    def _new(self, name: str) -> str:
        if name == NONE or name in self.witnesses or name in self.groups:
            self._refuse(f"the name {_shown(name)} is taken")
        return name

    def _key(self, kind: str, vkey: str, allowed: Collection[KeyType]) -> NoteKey:
        try:
            key = NoteKey.parse(vkey)
        except (MalformedNote, UnicodeEncodeError) as error:
            self._refuse(error.message if isinstance(error, MalformedNote) else "the name of a key is UTF-8")
        if key.kind not in allowed:
            self._refuse(f"a {kind} has no key of type {key.type_name}")
        if key.public in self.publics[kind]:
            self._refuse(f"another {kind} has this key")
        self.publics[kind].add(key.public)
        return key

    def _bound(self, those: Collection[object]) -> None:
        if len(those) >= MAX_OF_A_KIND:
            self._refuse(f"a policy has at most {MAX_OF_A_KIND} logs, witnesses or groups")

    def _refuse(self, message: str) -> NoReturn:
        raise InvalidPolicy(message, where=f"{self.where}:{self.number}")


def _shown(name: str) -> str:
    return repr(name[:100])
