"""Identities that stand for more than one thing: none of these can be limited or contained alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

from eastwest.policy.estate import Service, Workload
from eastwest.policy.lint.finding import Finding, Ground, some

_BROAD = frozenset({"gid", "group", "supplementary_gid", "supplementary_group", "ns", "cluster"})
"""Names of selectors that programs of any kind share."""
_INTERPRETER = re.compile(r"(python|perl|ruby|node|nodejs|java|php|bash|dash|sh|zsh|env|busybox)[0-9.]*")
"""Names of programs that run others' programs: every script of the machine has their path."""
_ANYBODY = frozenset({"unix:uid:0", "unix:user:root", "unix:user:nobody", "unix:user:www-data"})


def shared(ground: Ground) -> Iterator[Finding]:
    """In the files, and in the server's registrations where these are known."""
    yield from _services(ground)
    yield from _selectors(ground)
    yield from _broad(ground)
    yield from _registrations(ground)


def _services(ground: Ground) -> Iterator[Finding]:
    by_workload: dict[str, list[Service]] = {}
    for service in ground.estate.services:
        by_workload.setdefault(service.workload, []).append(service)
    for workload, services in by_workload.items():
        for what in ("domain", "owner"):
            values = sorted({getattr(service, what) for service in services})
            if len(values) > 1:
                names = ", ".join(sorted(service.service for service in services))
                yield ground.finding(
                    "shared-identity",
                    ground.estate.position("workload", workload),
                    f"{workload} answers for {names}, of {what}s {', '.join(values)}",
                    workloads=[workload],
                )
                break


def _selectors(ground: Ground) -> Iterator[Finding]:
    """Of two workloads on the same nodes one has all the selectors of the other, or the same ones."""
    for workloads in _by_node(ground).values():
        by_selectors: dict[frozenset[str], list[Workload]] = {}
        for workload in workloads:
            by_selectors.setdefault(frozenset(workload.selectors), []).append(workload)
        by_one: dict[str, list[frozenset[str]]] = {}
        for selectors in by_selectors:
            for selector in selectors:
                by_one.setdefault(selector, []).append(selectors)
        for fewer, members in by_selectors.items():
            if len(members) > 1:
                names = [member.spiffe_id for member in members]
                yield ground.finding(
                    "overlapping-selectors",
                    ground.estate.position("workload", names[1]),
                    f"{some(names)} have the same selectors on the same nodes: one process is all of them",
                    workloads=names,
                )
            more = {s for one in fewer for s in by_one[one] if s > fewer}
            others = sorted(m.spiffe_id for s in more for m in by_selectors[s])
            if others:
                yield ground.finding(
                    "overlapping-selectors",
                    ground.estate.position("workload", members[0].spiffe_id),
                    f"a process that is {some(others)} is {members[0].spiffe_id} too: it has all its selectors",
                    workloads=[members[0].spiffe_id, *others],
                )


def _by_node(ground: Ground) -> dict[str, list[Workload]]:
    """Workloads that one node may run: those of a group with fewer selectors are on the nodes of one with more too."""
    groups = {f"group:{group.name}": frozenset(group.selectors) for group in ground.estate.settings.node_groups}
    found: dict[str, list[Workload]] = {}
    for workload in ground.estate.workloads:
        found.setdefault(workload.node, []).append(workload)
    here = {node: groups[node] for node in found if node in groups}
    return {
        node: [
            workload
            for other, workloads in found.items()
            if other == node or (node in here and other in here and here[other] < here[node])
            for workload in workloads
        ]
        for node in found
    }


def _broad(ground: Ground) -> Iterator[Finding]:
    for workload in ground.estate.workloads:
        if all(_is_broad(selector) for selector in workload.selectors):
            yield ground.finding(
                "broad-selectors",
                ground.estate.position("workload", workload.spiffe_id),
                f"{workload.spiffe_id} is given to every process with {', '.join(workload.selectors)}",
                workloads=[workload.spiffe_id],
            )


def _is_broad(selector: str) -> bool:
    kind = selector.split(":")[1]
    if kind == "path":
        return _INTERPRETER.fullmatch(selector.rpartition("/")[2]) is not None
    return selector in _ANYBODY or kind in _BROAD


def _registrations(ground: Ground) -> Iterator[Finding]:
    """One SPIFFE ID that a server gives to processes of several kinds."""
    by_id: dict[str, dict[frozenset[str], set[str]]] = {}
    for entry in ground.registrations:
        kinds = by_id.setdefault(entry.spiffe_id, {})
        kinds.setdefault(frozenset(entry.selectors), set()).add(entry.managed_by)
    for spiffe_id, kinds in sorted(by_id.items()):
        if len(kinds) > 1:
            whose = ", ".join(sorted(set().union(*kinds.values())))
            yield ground.finding(
                "shared-identity",
                ground.estate.position("workload", spiffe_id),
                f"the server gives {spiffe_id} to {len(kinds)} kinds of processes: "
                f"{some(' and '.join(sorted(selectors)) for selectors in kinds)} (registered by {whose})",
                workloads=[spiffe_id],
            )
