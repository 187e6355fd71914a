"""What an estate's files intend, as the registry and the issuer hold it: entries, and profiles."""

from __future__ import annotations

from typing import Any

import msgspec

from eastwest.pki.profile import Profile, ProfileConfig
from eastwest.policy.estate import Estate, Workload
from eastwest.policy.forms import duration
from eastwest.registry.entry import Entry, Origin
from eastwest.registry.groups import group_entries, group_id
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.spiffe.selector import Selector


def registrations(estate: Estate, trust_domain: TrustDomain) -> list[Entry]:
    """The registration entries that an estate intends."""
    entries = []
    for group in estate.settings.node_groups:
        selectors = [Selector.parse(text) for text in group.selectors]
        entries += group_entries(trust_domain, group.name, selectors)
    return entries + [registration(workload, trust_domain) for workload in estate.workloads]


def registration(workload: Workload, trust_domain: TrustDomain) -> Entry:
    """The entry of one workload."""
    group = workload.node.removeprefix("group:")
    parent = group_id(trust_domain, group) if group != workload.node else SpiffeId.parse(workload.node)
    return Entry(
        spiffe_id=SpiffeId.parse(workload.spiffe_id),
        parent_id=parent,
        selectors=frozenset(Selector.parse(text) for text in workload.selectors),
        x509_svid_ttl=int(duration(workload.ttl).total_seconds()) if workload.ttl else 0,
        federates_with=tuple(sorted(map(TrustDomain.parse, workload.federates_with))),
        dns_names=workload.dns_names,
        hint=workload.hint,
        profile=workload.profile,
        owner=workload.owner,
        origin=Origin.ESTATE,
        environment=workload.environment,
        attributes=tuple(sorted(workload.attributes.items())),
    )


def profile_of(profile: Any) -> Profile:
    """An estate's profile as the issuer takes it."""
    return Profile.from_config(msgspec.convert(msgspec.to_builtins(profile), ProfileConfig))
