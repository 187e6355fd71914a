"""What an edit of the estate loosens that no table shows: who gets an identity, how it is proved, who decides.

Each function compares two versions of one thing and says in a sentence what is wider; nothing where nothing is.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator, Mapping

import msgspec

from eastwest.policy.enforcement import MtlsMode, Recording
from eastwest.policy.estate import (
    Administrator,
    Estate,
    Lifetime,
    NodeGroup,
    Profile,
    ProfileNames,
    Right,
    Rollout,
    Service,
    Settings,
    Workload,
)
from eastwest.policy.forms import duration

BUILT_IN = Profile(
    profile="workload",
    doors=("workload-api", "spire-api"),
    keys=("ec-p256", "ec-p384", "ed25519"),
    lifetime=Lifetime(default="1h", max="4h"),
    names=ProfileNames(dns=("*",)),
)
"""What ``workload`` says where the estate has no profile of this name: ``eastwest.pki.profile.WORKLOAD``."""
_DECIDING = frozenset({Right.EVERYTHING, Right.APPROVALS})


def loosened_identities(before: Estate, after: Estate) -> Iterator[tuple[str, str]]:
    """SPIFFE IDs that others may get than before, or get more easily, with what makes it so."""
    groups = (
        {one.name: one for one in before.settings.node_groups},
        {one.name: one for one in after.settings.node_groups},
    )
    profiles = {one.profile: one for one in before.profiles}, {one.profile: one for one in after.profiles}
    old = {workload.spiffe_id: workload for workload in before.workloads}
    for workload in after.workloads:
        was = old.get(workload.spiffe_id)
        if was is None:
            continue  # a new caller: the table has what it may do
        told = [
            *_workload(was, workload),
            *_group(was.node, groups),
            *_profile(profiles[0].get(was.profile, BUILT_IN), profiles[1].get(workload.profile, BUILT_IN)),
        ]
        if told:
            yield workload.spiffe_id, "; ".join(told)
    wider = [name for name in groups[1] if any(_group(f"group:{name}", groups))]
    for caller in before.registered if wider else ():
        # Where it was registered by API nobody knows here.
        yield caller.spiffe_id, f"other nodes belong to group {', '.join(wider)}, and it may be registered there"
    yield from _federations(before, after)


def _workload(was: Workload, now: Workload) -> Iterator[str]:
    if not set(was.selectors) <= set(now.selectors):
        yield "other processes match its selectors"
    if was.node != now.node:
        yield f"it is given out on {now.node}, not on {was.node}"


def _group(node: str, groups: tuple[Mapping[str, NodeGroup], Mapping[str, NodeGroup]]) -> Iterator[str]:
    name = node.removeprefix("group:")
    old, new = groups[0].get(name), groups[1].get(name)
    if name != node and old and new and not set(old.selectors) <= set(new.selectors):
        yield f"other nodes belong to group {name}"


def _profile(was: Profile, now: Profile) -> Iterator[str]:
    """Profiles by what they say: a workload's may have another name."""
    if not _covers(was.environments, now.environments):
        yield "its profile holds in more environments"
    for field, words in (("doors", "may be asked for at more doors"), ("keys", "certifies more kinds of keys")):
        if not set(getattr(now, field)) <= set(getattr(was, field)):
            yield f"its profile {words}"
    if not set(now.usage) <= set(was.usage):
        yield "its certificates may be used for more"
    for field in ("default", "max"):
        if duration(getattr(now.lifetime, field)) > duration(getattr(was.lifetime, field)):
            yield f"its certificates live longer ({field} {getattr(now.lifetime, field)})"
    if "*" not in was.names.dns and not set(now.names.dns) <= set(was.names.dns):
        yield "its profile allows more DNS names"
    if was.revocation != now.revocation:
        yield f"its certificates are revoked by {now.revocation}"


def _covers(was: Collection[str], now: Collection[str]) -> bool:
    return not was or (bool(now) and set(now) <= set(was))


def _federations(before: Estate, after: Estate) -> Iterator[tuple[str, str]]:
    """Callers of a foreign trust domain whose bundle comes from elsewhere: somebody else may speak in their name."""
    old = {one.trust_domain: one for one in before.settings.federation}
    for one in after.settings.federation:
        was = old.get(one.trust_domain)
        if was is None:
            continue
        facts = [
            (side.endpoint, side.profile, side.endpoint_spiffe_id, side.bundle, estate.bundles.get(side.bundle or ""))
            for side, estate in ((was, before), (one, after))
        ]
        if facts[0] != facts[1]:
            for workload in one.workloads:
                yield workload.spiffe_id, f"the bundle of {one.trust_domain} comes from elsewhere"


def loosened_service(was: Service, now: Service) -> Iterator[tuple[str, str]]:
    """What a service asks less strictly of everybody, as kind and sentence."""
    strict = (was.listen.mtls, now.listen.mtls) == (MtlsMode.STRICT, MtlsMode.PERMISSIVE)
    if strict:
        yield "mode", "strict → permissive: whoever reaches the port may do everything, without a certificate"
    elif was.listen.mtls == now.listen.mtls == MtlsMode.PERMISSIVE and _later(was.listen.until, now.listen.until):
        yield "mode", f"permissive until {now.listen.until or 'further notice'}, not {was.listen.until}"
    elif now.listen.mtls == MtlsMode.PERMISSIVE and was.listen.address != now.listen.address:
        yield "mode", f"permissive, and listens on {now.listen.address}, not on {was.listen.address}"
    if (was.recording, now.recording) == (Recording.REQUIRED, Recording.BEST_EFFORT):
        yield "recording", "recording is no longer required: calls go on that nobody can record"
    if (was.owner, was.domain) != (now.owner, now.domain):
        yield "owner", f"{now.owner} of domain {now.domain} decides about it from now on"
    if was.workload != now.workload:
        yield "answered-by", f"{now.workload} answers in its name"


def _later(was: dt.date | None, now: dt.date | None) -> bool:
    return was is not None and (now is None or now > was)


def loosened_settings(before: Settings, after: Settings) -> Iterator[tuple[str, str]]:
    """What changes who decides about the estate, as kind and sentence. Nothing here belongs to one domain."""
    yield from _administrators(before.administrators, after.administrators)
    members = {one.name: set(one.members) for one in before.groups}
    for group in after.groups:
        if group.name in members and set(group.members) != members[group.name]:
            yield "groups", f"other members of {group.name} decide for it"
        elif group.name not in members:
            yield "groups", f"{group.name} has members, who decide for it"
    for name in sorted(members.keys() - {group.name for group in after.groups}):
        yield "groups", f"{name} has no members any more, so any administrator decides for it"
    owners = {domain.name: domain.owners for domain in before.domains}
    for domain in after.domains:
        if domain.name in owners and owners[domain.name] != domain.owners:
            yield "domains", f"others own domain {domain.name}"
    if before.changes.two_person == "always" and after.changes.two_person != "always":
        yield "changes", "two_person is no longer always"
    if before.rollout is not None and not _is_as_careful(before.rollout, after.rollout):
        yield "rollout", "rollouts are less careful"


def _administrators(before: tuple[Administrator, ...], after: tuple[Administrator, ...]) -> Iterator[tuple[str, str]]:
    old, new = set(map(_row, before)), set(map(_row, after))
    for row in after:
        if _row(row) not in old:
            yield "administrators", f"{row.who} may {', '.join(row.may)}"
    for row in before:
        if _row(row) not in new and _DECIDING & set(row.may):
            yield "administrators", f"{row.who} may no longer {', '.join(row.may)}: others decide alone"


def _row(row: Administrator) -> bytes:
    return msgspec.json.encode(row, order="deterministic")


def _is_as_careful(was: Rollout, now: Rollout | None) -> bool:
    return (
        now is not None
        and now.rings == was.rings
        and duration(now.soak) >= duration(was.soak)
        and (now.advance == "manual" or was.advance == "automatic")
        and (now.brake or not was.brake)
    )
