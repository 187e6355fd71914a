"""Who has what: whether a change of trust has reached everybody who would break without it.

A node counts while it may still act: attested, not banned, and its certificate has not ended. What it says of itself
covers its sidecars: its sequence is the lowest of all that it stands for.

Those outside the trust domain cannot confirm: relying parties keep our key set, and federated peers look at our bundle
now and then. They are given time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from eastwest.errors import FailedPrecondition

MAX_NAMED = 5


class NotConfirmed(FailedPrecondition):
    """Somebody would be cut off by what was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """One live node. ``sequence``: it and its sidecars have at least this bundle. ``not_after``: Unix seconds.

    ``stock``: a SPIRE agent, known only by what it fetched and by the certificate it showed, whose issuer is
    ``issuer`` (subject key identifier in hex). ``tainted``: how many SVIDs it says it and its sidecars still hold that
    stem from a tainted authority. ``waiting``: its sidecars that have not acknowledged its newest bundle.
    """

    agent: str
    sequence: int
    not_after: int
    connected: bool = False
    stock: bool = False
    issuer: str = ""
    tainted: int = 0
    waiting: tuple[str, ...] = ()


def require_confirmed(holders: Iterable[Holder], sequence: int, what: str) -> None:
    """Raise ``NotConfirmed``, naming them, where a holder has not confirmed bundle ``sequence``."""
    lacking = [holder for holder in holders if holder.sequence < sequence]
    if lacking:
        raise NotConfirmed(
            f"{what} is in bundle {sequence}, which {_count(lacking)} not confirmed: {_names(lacking)}",
            fix="wait (`eastwest ca status`), ban those that are lost, or give --force, which cuts them off",
        )


def require_published(published: int, wait: int, now: int, what: str) -> None:
    """Raise ``NotConfirmed`` where ``what`` has been published for less than ``wait`` seconds; times: Unix seconds."""
    left = published + wait - now
    if left > 0:
        until = datetime.fromtimestamp(published + wait, UTC)
        raise NotConfirmed(
            f"{what} has been published for {max(0, now - published)} s, and those outside the trust domain may not"
            f" have it before {until:%Y-%m-%d %H:%M:%SZ}",
            fix=f"wait {left} s more (publish_wait), or give --force, which cuts off those that have not looked yet",
        )


def require_released(holders: Iterable[Holder], sequence: int, issuers: Collection[str], what: str) -> None:
    """Raise ``NotConfirmed`` where a holder has not heard of the taint (bundle ``sequence``) or still holds something.

    ``issuers`` are the issuing CAs (hex) of what is tainted: what a stock agent's own certificate may not stem from.
    """
    holding = [
        holder
        for holder in holders
        if holder.sequence < sequence or holder.tainted or (holder.stock and holder.issuer in issuers)
    ]
    if holding:
        raise NotConfirmed(
            f"{_count(holding)} not let go of what stems from {what}: {_names(holding)}",
            fix="wait (`eastwest ca status`), ban those that are lost, or give --force, which cuts them off",
        )


def _count(holders: Collection[Holder]) -> str:
    return "1 live node has" if len(holders) == 1 else f"{len(holders)} live nodes have"


def _names(holders: list[Holder]) -> str:
    named = [_name(holder) for holder in sorted(holders, key=lambda holder: holder.agent)[:MAX_NAMED]]
    more = len(holders) - MAX_NAMED
    return "; ".join(named) + (f"; and {more} more" if more > 0 else "")


def _name(holder: Holder) -> str:
    facts = [f"certificate until {datetime.fromtimestamp(holder.not_after, UTC):%Y-%m-%d %H:%M:%SZ}"]
    if not holder.connected:
        facts.insert(0, "not connected")
    if holder.tainted:
        facts.append(f"holds {holder.tainted} tainted")
    if holder.waiting:
        facts.append(f"sidecars waiting: {', '.join(holder.waiting[:3])}")
    return f"{holder.agent} ({', '.join(facts)})"
