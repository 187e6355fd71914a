"""Who would break if a service turned strict, by name, and whether the record is enough to say so.

Rows in, a report out. Three things make the evidence thin: a window shorter than twice the period of any caller, a
sensor that was away or lost rows, and a registered caller that was never seen. What a caller is taken to be is told
with a confidence: proven (its certificate verified), process (the kernel's word), claimed (its own word), address.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Protocol

import msgspec

from eastwest.ledger.breaks_text import fix_of
from eastwest.ledger.failure import classify
from eastwest.ledger.sensors import Gap, Span, gaps, recording_since, uptime
from eastwest.policy.enforcement import DecisionCode, Verdict
from eastwest.policy.estate import Sensitivity
from eastwest.policy.failures import FailureClass

DAY = timedelta(days=1)
DEFAULT_PERIOD = DAY
"""What a caller that declares none, and was not seen to call less often, is taken to call within."""
RECENT = timedelta(hours=1)
"""A failure this long ago is over where its caller has called well since, and fails rarely enough."""
PLAINTEXT, OLD_HTTP = "plaintext", "old_http"
_LOW_VERSION = "low_version"  # Envoy's word
SEVERITY = {one.value: rank for rank, one in enumerate(Sensitivity)}
"""Sensitivities from the least (0) to the most."""
_DOOR = frozenset({DecisionCode.MTLS_REQUIRED, DecisionCode.CERTIFICATE_REFUSED, DecisionCode.SERVER_REFUSED})
_Key = tuple[str, str, str, str]  # as whose word, who, why, and where that tells callers apart
_ON_PURPOSE = frozenset({"CALLER_CONTAINED", "IDENTITY_CONTAINED", "TOKEN_CONTAINED"})


class Seen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Rows of the ledger with the same inputs and the same answer, as totals; fields mean what a ``Decision``'s mean.

    ``days``: on which they were; ``requests``: some of the ``METHOD /path`` of those without an operation.
    """

    service: str
    verdict: Verdict
    code: str
    caller: str = ""
    claimed: bool = False
    cause: str = ""
    enforced: bool = True
    operation: str = ""
    tenant: str = ""
    token: bool = False
    origin: str = ""
    approver: str = ""
    mode: str = ""
    peer: str = ""
    source: str = ""
    agent: str = ""
    count: int
    first: datetime
    last: datetime
    days: tuple[date, ...] = ()
    requests: tuple[str, ...] = ()


class Caller(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A registered caller of the service. ``expected``: a rule permits it something there that is not open to all."""

    spiffe_id: str
    owner: str = ""
    period: timedelta | None = None  # declared
    expected: bool = False
    waived: str = ""  # the waiver that excuses that it was not seen


class Rules(Protocol):
    """What the policy in force says, with the service strict."""

    def passes(self, seen: Seen) -> bool | None:
        """Whether calls like these would pass; None where the record cannot say."""
        ...

    def sensitivity(self, seen: Seen) -> str:
        """The most sensitive of the operations that these calls were about; "" where none is known."""
        ...


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The service that is asked about."""

    service: str
    port: int
    mode: str
    owner: str
    trust_domain: str
    callers: Mapping[str, Caller]
    nodes: Mapping[str, str] = {}  # address → the node (agent's SPIFFE ID) that has it, where that is known


class Break(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One caller that strict mode would refuse, or that is refused already (``passes_today`` false)."""

    caller: str  # a SPIFFE ID, or the best name that there is
    service: str
    port: int
    cause: str  # ``plaintext``, ``old_http``, a class of failure, or a decision code in small letters
    calls: int
    calls_per_day: float
    first: datetime
    last: datetime
    owner: str = ""
    risk: str = ""
    fix: str = ""
    confidence: str = "address"
    passes_today: bool = False
    likely: str = ""  # the SPIFFE ID that such a process would be given
    sources: tuple[str, ...] = ()
    node: str = ""


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Why not yet: ``kind`` is stable, ``text`` is for people."""

    kind: str  # breaks, window, sensor, lost, unseen, incomplete
    text: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The answer about one service."""

    service: str
    port: int
    mode: str
    start: datetime
    end: datetime
    breaks: tuple[Break, ...]
    recovered: tuple[Break, ...]
    unseen: tuple[str, ...]
    waived: tuple[str, ...]
    gaps: tuple[Gap, ...]
    uptime: float
    lost: int
    reasons: tuple[Reason, ...]
    plaintext_callers: int
    mtls_callers: int

    @property
    def ready(self) -> bool:
        """Whether strict mode would be boring."""
        return not self.reasons


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What is on record about the service within [``start``, ``end``).

    ``lost``: decisions confessed lost, None where some were and nobody knows how many; ``complete``: whether ``seen``
    is all that there is; ``habits``: those of more than the window, where it is not all that is on record.
    """

    start: datetime
    end: datetime
    seen: Sequence[Seen]
    spans: Sequence[Span]
    lost: int = 0
    lost_unknown: bool = False
    complete: bool = True
    habits: Mapping[str, Collection[date]] = {}


def report(subject: Subject, evidence: Evidence, rules: Rules) -> Report:
    """Judge one service."""
    groups: dict[_Key, list[Seen]] = defaultdict(list)
    proven: dict[str, list[Seen]] = defaultdict(list)
    for one in evidence.seen:
        if one.caller and not one.claimed:
            proven[one.caller].append(one)
        if one.verdict is Verdict.DENY and one.code not in _ON_PURPOSE:
            groups[_key(one)].append(one)
    found: list[Break] = []
    recovered: list[Break] = []
    for key, rows in _folded(groups).items():
        judged = [one for one in rows if one.code in _DOOR or rules.passes(one) is not True]
        made = _break(subject, evidence, key, judged or rows, rules)
        over = not judged or _is_over(made, rows, proven, subject)
        (recovered if over else found).append(made)
    order = sorted(found, key=lambda one: (-SEVERITY.get(one.risk, -1), -one.calls, one.caller, one.cause))
    unseen = [c for c in subject.callers.values() if c.expected and c.spiffe_id not in proven]
    missing = tuple(sorted(c.spiffe_id for c in unseen if not c.waived))
    holes = gaps(evidence.spans, evidence.start, evidence.end)
    allowed = [rows for rows in proven.values() if any(one.verdict is Verdict.ALLOW for one in rows)]
    return Report(
        service=subject.service,
        port=subject.port,
        mode=subject.mode,
        start=evidence.start,
        end=evidence.end,
        breaks=tuple(order),
        recovered=tuple(sorted(recovered, key=lambda one: (one.caller, one.cause))),
        unseen=missing,
        waived=tuple(sorted(c.spiffe_id for c in unseen if c.waived)),
        gaps=tuple(holes),
        uptime=uptime(evidence.spans, holes, evidence.start, evidence.end),
        lost=evidence.lost,
        reasons=tuple(_reasons(subject, evidence, order, missing, holes, proven)),
        plaintext_callers=sum(one.cause == PLAINTEXT for one in order),
        mtls_callers=len(allowed),
    )


def period_of(declared: timedelta | None, days: Iterable[date], end: datetime) -> timedelta:
    """How long until a caller has surely called again: declared, or the longest pause that was seen; a day at least.

    One that was seen on a single day may call as rarely as it has been silent since.
    """
    if declared is not None:
        return declared
    seen = sorted(set(days))
    if not seen:
        return DEFAULT_PERIOD
    longest = _longest_pause(seen) if len(seen) > 1 else end.astimezone(UTC).date() - seen[0]
    return max(DEFAULT_PERIOD, longest)


def habits(rows: Iterable[Seen]) -> dict[str, set[date]]:
    """On which days each caller called: by SPIFFE ID where it proved one, else by what is known of it."""
    found: dict[str, set[date]] = defaultdict(set)
    for one in rows:
        if not one.claimed:
            found[_key(one)[1]].update(one.days)
    return found


def _key(one: Seen) -> _Key:
    """Who, in one word with the kind of word that it is, and why.

    One program at two addresses may be two callers; a registration is one, wherever it calls from.
    """
    cause = cause_of(one)
    if one.caller:
        return ("claimed" if one.claimed else "proven", one.caller, cause, "")
    if one.peer:
        return ("process", one.peer, cause, "" if _likely(one.peer) else one.source)
    return ("address", one.source, cause, "")


def _folded(groups: Mapping[_Key, list[Seen]]) -> dict[_Key, list[Seen]]:
    """One group for a process that was named less well at times: its registration unknown, or its program not found.

    The user alone is taken for a better known process of that user only where there is just one at the same address.
    """
    processes = [key for key in groups if key[0] == "process"]
    registered: dict[tuple[str, str], list[_Key]] = defaultdict(list)  # by cause, and name without the registration
    for key in processes:
        name, _, spiffe_id = key[1].partition(" id:")
        if spiffe_id:
            registered[key[2], name].append(key)
    better: dict[_Key, _Key] = {}
    for key in processes:
        longer = registered.get((key[2], key[1]), [])
        if len(longer) == 1:
            better[key] = longer[0]
    there: dict[tuple[str, str, str], set[_Key]] = defaultdict(set)  # by cause, user and address
    for key in processes:
        if _is_full(key[1]):
            for one in groups[key]:
                there[key[2], _user(key[1]), one.source].add(better.get(key, key))
    for key in processes:
        if key not in better and not _is_full(key[1]):
            near = {each for one in groups[key] for each in there.get((key[2], _user(key[1]), one.source), ())}
            if len(near) == 1:
                better[key] = near.pop()
    folded: dict[_Key, list[Seen]] = {}
    for key, rows in groups.items():
        folded.setdefault(better.get(key, key), []).extend(rows)
    return folded


def _user(peer: str) -> str:
    return peer.partition(" ")[0]


def _is_full(peer: str) -> bool:
    """Whether a name tells more than the user."""
    return any(part.startswith(("exe:", "unit:")) for part in peer.split(" "))


def cause_of(one: Seen) -> str:
    """``plaintext``, the class of an identity that failed, or the code of a rule that refused, in small letters.

    ``old_http``: in HTTP/1.0, which no sidecar takes in any mode.
    """
    if one.cause == _LOW_VERSION:
        return OLD_HTTP
    if one.code == DecisionCode.MTLS_REQUIRED and one.cause in {"", "not_tls"}:
        return PLAINTEXT
    kind = classify(one.code, one.cause)
    if one.code in _DOOR and kind is not None and kind is not FailureClass.POLICY:
        return kind.value
    return one.code.lower()


def _break(subject: Subject, evidence: Evidence, key: _Key, rows: Sequence[Seen], rules: Rules) -> Break:
    confidence, name, cause, _ = key
    likely = _likely(name) if confidence == "process" else ""
    who = subject.callers.get(likely or name)
    calls = sum(one.count for one in rows)
    sources = tuple(sorted({one.source for one in rows if one.source}))[:10]
    risks = [risk for one in rows if (risk := rules.sensitivity(one))]
    days = max((evidence.end - evidence.start) / DAY, 1.0)
    made = Break(
        caller=name or "unknown",
        service=subject.service,
        port=subject.port,
        cause=cause,
        calls=calls,
        calls_per_day=round(calls / days, 2),
        first=min(one.first for one in rows),
        last=max(one.last for one in rows),
        owner=who.owner if who is not None else "",
        risk=max(risks, key=lambda risk: SEVERITY.get(risk, -1), default=""),
        confidence=confidence,
        passes_today=any(not one.enforced for one in rows),
        likely=likely,
        sources=sources,
        node=next((subject.nodes[source] for source in sources if source in subject.nodes), ""),
    )
    return msgspec.structs.replace(made, fix=fix_of(made, subject.trust_domain))


def _likely(peer: str) -> str:
    return next((part.removeprefix("id:") for part in peer.split(" ") if part.startswith("id:")), "")


def _is_over(made: Break, rows: Sequence[Seen], proven: Mapping[str, Sequence[Seen]], subject: Subject) -> bool:
    """Whether the caller has mended itself: it has called well since, and its failures would have come again by now."""
    name = made.likely or made.caller
    since = [one.last for one in proven.get(name, ()) if one.verdict is Verdict.ALLOW]
    if made.confidence == "proven" or not since:
        return False
    last = max(since)
    pause = (made.last - made.first) / max(sum(one.count for one in rows) - 1, 1)
    silence = max(RECENT, 3 * pause)
    if made.passes_today:  # a job of the same name may go on as before, and nobody notices until it is refused
        known = subject.callers.get(name)
        declared = known.period if known is not None and known.period is not None else DEFAULT_PERIOD
        silence = max(silence, 2 * max(declared, _longest_pause(day for one in rows for day in one.days)))
    return last > made.last and last - made.last > silence


def _longest_pause(days: Iterable[date]) -> timedelta:
    return max((later - earlier for earlier, later in pairwise(sorted(set(days)))), default=timedelta())


def _reasons(
    subject: Subject,
    evidence: Evidence,
    breaks: Sequence[Break],
    missing: Sequence[str],
    holes: Sequence[Gap],
    proven: Mapping[str, Sequence[Seen]],
) -> Iterable[Reason]:
    if breaks:
        yield Reason(kind="breaks", text=f"{_counted(len(breaks), 'caller')} would be refused")
    yield from _window(subject, evidence, proven)
    since = recording_since(evidence.spans)
    if since is None:
        yield Reason(kind="sensor", text="no enforcement point of the service has been connected in this time")
    for gap in holes[:20]:
        who = f"sidecar {gap.node} of {gap.agent}" if gap.node else gap.agent or "every sidecar"
        text = f"{who} was away for {_long(gap.length)} from {gap.start:%Y-%m-%d %H:%M}Z"
        yield Reason(kind="sensor", text=text)
    if evidence.lost or evidence.lost_unknown:
        number = f"{evidence.lost} decisions were" if evidence.lost else "decisions, nobody knows how many, were"
        yield Reason(kind="lost", text=f"{number} lost from the record in this time")
    for spiffe_id in missing[:50]:
        yield Reason(kind="unseen", text=f"{spiffe_id} may call it and was never seen")
    if len(missing) > 50:
        yield Reason(kind="unseen", text=f"and {len(missing) - 50} more callers were never seen")
    if not evidence.complete:
        yield Reason(kind="incomplete", text="there are more callers on record than one report tells of")


def _window(subject: Subject, evidence: Evidence, proven: Mapping[str, Sequence[Seen]]) -> Iterable[Reason]:
    """The window that counts begins when recording did."""
    since = recording_since(evidence.spans)
    start = max(evidence.start, since) if since is not None else evidence.start
    window = max(evidence.end - start, timedelta())
    shown = _long(window)
    # Those who do not call are another reason; of those who may not, nobody waits for a call.
    callers = {
        c.spiffe_id: c for c in subject.callers.values() if c.spiffe_id in proven or (c.expected and not c.waived)
    }
    needs = []
    known = evidence.habits or habits(evidence.seen)
    for spiffe_id in {*callers, *proven, *(name for name in known if name in subject.callers)}:
        declared = subject.callers[spiffe_id].period if spiffe_id in subject.callers else None
        needs.append((period_of(declared, known.get(spiffe_id, ()), evidence.end), spiffe_id))
    # Of those without a name a single day tells no period; a pause between two does.
    needs += [(_longest_pause(days), name) for name, days in known.items() if name not in subject.callers]
    longest, who = max(needs, default=(DEFAULT_PERIOD, ""))
    if window >= 2 * longest:
        return
    if longest <= DEFAULT_PERIOD and not any(c.period for c in callers.values()):
        why = "callers that declare no period are taken to call once a day"
    else:
        why = f"{who or 'a caller'} calls every {_long(longest)}"
    yield Reason(kind="window", text=f"{shown} were looked at, and {why}: {_long(2 * longest)} are needed")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _long(time: timedelta) -> str:
    seconds = time.total_seconds()
    for name, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 2 * size or (seconds >= size and seconds % size == 0):
            return _counted(int(seconds // size), name)
    return _counted(int(seconds), "second")
