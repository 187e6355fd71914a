"""From a workload's table to everything its Envoys are told, in one call each for config and for secrets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from envoy.config.core.v3 import extension_pb2

from eastwest.mesh import names, rbac
from eastwest.mesh.action import InForce, inbound_version
from eastwest.mesh.contained import contained_filters
from eastwest.mesh.egress import egress_resources
from eastwest.mesh.inbound import inbound_resources
from eastwest.mesh.matching import pack
from eastwest.mesh.secrets import Identity, SecretSet, trust_domains_of
from eastwest.mesh.settings import Settings
from eastwest.mesh.snapshot import Resource, Snapshot
from eastwest.policy.enforcement import Outbound, Sidecar
from eastwest.registry.containment import NOBODY, Contained
from eastwest.spiffe.id import SpiffeId


def sidecar_snapshot(sidecar: Sidecar, settings: Settings, secrets: SecretSet, token_keys: bytes = b"") -> Snapshot:
    """The complete, checked snapshot of one workload.

    Raises ``DanglingReference`` where a secret is missing (a server's trust domain without a bundle),
    ``UnsupportedRules`` or ``MalformedTemplate`` where the table cannot be expressed.
    """
    snapshot = Snapshot.of(sidecar.version, [*config_resources(sidecar, settings, token_keys), *secrets.resources()])
    snapshot.check()
    return snapshot


def required_extensions(sidecar: Sidecar) -> frozenset[str]:
    """Extensions beyond those that any sidecar has to have: for rules in report mode, the shadow form of HTTP RBAC."""
    report = any(inbound.report and inbound.protocol == "http" for inbound in sidecar.inbound)
    return frozenset({"envoy.filters.http.rbac"}) if report else frozenset()


def verifiable(
    sidecar: Sidecar, bundles: Collection[str], post_quantum: Collection[str] = ()
) -> tuple[Sidecar, tuple[str, ...]]:
    """The part of ``sidecar`` whose servers ``bundles`` (trust domains) can verify, and the services left out.

    ``post_quantum`` are the trust domains of which an ML-DSA-65 root is known. A foreign trust domain whose bundle has
    not come, or is gone, takes away its own services and nothing else.
    """
    own = SpiffeId.parse(sidecar.spiffe_id).trust_domain

    def known(outbound: Outbound) -> bool:
        domain = SpiffeId.parse(outbound.spiffe_id).trust_domain
        if outbound.post_quantum:
            return domain.name in post_quantum
        return domain == own or domain.name in bundles

    lost = tuple(outbound.service for outbound in sidecar.outbound if not known(outbound))
    if not lost:
        return sidecar, ()
    outbound = tuple(one for one in sidecar.outbound if one.service not in lost)
    return msgspec.structs.replace(sidecar, outbound=outbound), lost


def config_resources(
    sidecar: Sidecar,
    settings: Settings,
    token_keys: bytes = b"",
    contained: Contained = NOBODY,
    *,
    canaries: bool = False,
) -> list[Resource]:
    """Everything but secrets. The result depends on nothing else, so it may be kept while secrets rotate.

    ``token_keys``: the JWK set by which transaction tokens are verified; without any, no token counts. ``contained``
    are refused by every service, and reached by none. ``canaries``: those of a verify run count now.
    """
    own = SpiffeId.parse(sidecar.spiffe_id).trust_domain
    found = egress_resources(sidecar.outbound, sidecar.spiffe_id, settings, contained)
    for inbound in sidecar.inbound:
        found += inbound_resources(inbound, sidecar.spiffe_id, settings)
        filters = rbac.filters(inbound, sidecar.known_callers, own.uri, token_keys, canaries=canaries)
        found += filter_resources(contained_filters(inbound, filters, contained, sidecar.spiffe_id))
    return found


def filter_resources(filters: Mapping[str, Any]) -> list[Resource]:
    """The filters of one service: all that a change of policy, mode, containment or keys of tokens replaces."""
    return [
        Resource.of(name, names.EXTENSION, extension_pb2.TypedExtensionConfig(name=name, typed_config=pack(config)))
        for name, config in filters.items()
    ]


def sidecar_secrets(
    sidecar: Sidecar,
    identity: Identity | None,
    bundles: Mapping[str, bytes],
    post_quantum: Mapping[str, bytes] | None = None,
) -> SecretSet:
    """The secrets of one workload: its own identity (None: it may have none), and only the bundles its calls need.

    ``post_quantum`` are the ML-DSA-65 roots of trust domains; they are passed on where something demands them.
    """
    callers = (*trust_domains_of([sidecar.spiffe_id]), *sidecar.federated_callers)
    servers = trust_domains_of(outbound.spiffe_id for outbound in sidecar.outbound)
    needed = {*callers, *servers}
    demanded = any(one.post_quantum for one in sidecar.inbound) or any(one.post_quantum for one in sidecar.outbound)
    quantum_safe = (post_quantum or {}) if demanded else {}
    return SecretSet(
        identities=(identity,) if identity is not None else (),
        trust_domain=SpiffeId.parse(sidecar.spiffe_id).trust_domain.name,
        bundles={name: pem for name, pem in bundles.items() if name in needed},
        callers=callers,
        post_quantum={name: pem for name, pem in quantum_safe.items() if name in needed},
    )


def versions_in_force(sidecar: Sidecar, policy_version: str = "") -> dict[str, InForce]:
    """What each service's version (as decisions carry it) stands for.

    ``policy_version`` is the one in force, of which the sidecar is a part; without it, the sidecar's own is told.
    """
    found: dict[str, InForce] = {}
    for inbound in sidecar.inbound:
        version = inbound_version(inbound)
        found[version] = InForce(inbound.service, version, policy_version or sidecar.version, inbound.mode, inbound)
    return found
