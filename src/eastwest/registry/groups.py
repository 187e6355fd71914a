"""Node groups: a name for many nodes, kept as node aliases so that one rule serves SPIRE's aliases and ours.

A group ``prod-nodes`` is the SPIFFE ID ``/eastwest/group/prod-nodes``; it is never issued. Workloads of the
group have it as their parent. A node belongs when it has all of the group's selectors, or came in with a
join token that was made for the group by name.
"""

from __future__ import annotations

from collections.abc import Iterable

from eastwest.registry.entry import GROUP_PREFIX, SERVER_PATH, Entry, Origin
from eastwest.spiffe.id import MalformedSpiffeId, SpiffeId, TrustDomain
from eastwest.spiffe.selector import Selector


def group_id(trust_domain: TrustDomain, name: str) -> SpiffeId:
    """The SPIFFE ID that stands for a group; raise ``MalformedSpiffeId`` when the name is no path segment."""
    if "/" in name:
        raise MalformedSpiffeId(f"group name {name[:80]!r} has a slash", fix="write a single word such as prod-nodes")
    return trust_domain.id(GROUP_PREFIX + name)


def group_name(spiffe_id: SpiffeId) -> str:
    """The group that a SPIFFE ID stands for, or ``""``."""
    return spiffe_id.path.removeprefix(GROUP_PREFIX) if spiffe_id.path.startswith(GROUP_PREFIX) else ""


def token_selector(group: str) -> Selector:
    """What a node gets that joined by a token made for ``group``."""
    return Selector("join_token", f"group:{group}")


def group_entries(
    trust_domain: TrustDomain,
    name: str,
    selectors: Iterable[Selector],
    *,
    owner: str = "",
    origin: Origin = Origin.ESTATE,
) -> list[Entry]:
    """The entries that define a group: one for its own selectors, one for join tokens made for it."""
    alternatives = {frozenset(selectors), frozenset({token_selector(name)})} - {frozenset()}
    return [
        Entry(
            spiffe_id=group_id(trust_domain, name),
            parent_id=trust_domain.id(SERVER_PATH),
            selectors=alternative,
            owner=owner,
            origin=origin,
        )
        for alternative in sorted(alternatives, key=sorted)
    ]
