"""Kubernetes ``NetworkPolicy`` and Cilium's: who may open a connection at all, by labels of pods.

Weaker than everything else here: no identity is proven, no operation looked at. One object for each workload, since
the first policy that selects a pod closes all its other ports.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from eastwest.policy.enforcement import Inbound, MtlsMode, Sidecar
from eastwest.policy.exports.grants import may_ever_call
from eastwest.policy.exports.labels import LABEL, label, object_name, trust_domain
from eastwest.policy.exports.model import Exported, Narrower, chosen, metadata, preamble, yaml_text
from eastwest.policy.table import CompiledPolicy

_WEAKER = (
    "WEAKER than the policy it comes from: labels instead of proven identities, connections instead of operations.",
    f"It counts only as an outer wall. Pods carry the label {LABEL} with their workload.",
)
_FOREIGN = "it is of another trust domain, and pods elsewhere have no labels here"
_OPEN = "permissive, so its port is open to all"
Rules = list[dict[str, Any]]


def export_kubernetes(compiled: CompiledPolicy, services: Collection[str] = ()) -> Exported:
    """NetworkPolicies (networking.k8s.io/v1) for the workloads of the services named, or of all."""

    def spec(workload: str, rules: Rules) -> dict[str, Any]:
        return {
            "podSelector": {"matchLabels": {LABEL: label(workload)}},
            "policyTypes": ["Ingress"],
            "ingress": rules,
        }

    def rule(callers: Sequence[str] | None, port: int) -> dict[str, Any]:
        ports = [{"protocol": "TCP", "port": port}]
        if callers is None:
            return {"ports": ports}
        one_of = {"key": LABEL, "operator": "In", "values": sorted({label(c) for c in callers})}
        return {
            "from": [{"namespaceSelector": {}, "podSelector": {"matchExpressions": [one_of]}}],
            "ports": ports,
        }

    return _export(compiled, services, "kubernetes", "networking.k8s.io/v1", "NetworkPolicy", spec, rule)


def export_cilium(compiled: CompiledPolicy, services: Collection[str] = ()) -> Exported:
    """CiliumNetworkPolicies (cilium.io/v2) for the workloads of the services named, or of all."""

    def spec(workload: str, rules: Rules) -> dict[str, Any]:
        # An empty list would be no policy; a rule from no endpoint closes.
        return {
            "endpointSelector": {"matchLabels": {LABEL: label(workload)}},
            "ingress": rules or [{}],
        }

    def rule(callers: Sequence[str] | None, port: int) -> dict[str, Any]:
        to = [{"ports": [{"port": str(port), "protocol": "TCP"}]}]
        if callers is None:
            return {"fromEntities": ["all"], "toPorts": to}
        expressions = [
            {"key": LABEL, "operator": "In", "values": sorted({label(c) for c in callers})},
            # Without it, only pods of the policy's own namespace would count.
            {"key": "k8s:io.kubernetes.pod.namespace", "operator": "Exists"},
        ]
        return {"fromEndpoints": [{"matchExpressions": expressions}], "toPorts": to}

    return _export(compiled, services, "cilium", "cilium.io/v2", "CiliumNetworkPolicy", spec, rule)


def _export(
    compiled: CompiledPolicy,
    services: Collection[str],
    format_name: str,
    api: str,
    kind: str,
    spec: Callable[[str, Rules], dict[str, Any]],
    rule: Callable[[Sequence[str] | None, int], dict[str, Any]],
) -> Exported:
    documents: list[tuple[Sequence[str], dict[str, Any]]] = []
    narrower: list[Narrower] = []
    comments = preamble(format_name, compiled, *_WEAKER)
    for workload in sorted({sidecar.spiffe_id for sidecar, _ in chosen(compiled, services)}):
        sidecar = compiled.sidecars[workload]
        rules: Rules = []
        left_out: list[Narrower] = []
        told: list[str] = []
        for inbound in sidecar.inbound:
            if inbound.mode is MtlsMode.PERMISSIVE:
                rules.append(rule(None, inbound.port))
                told.append(f"service {inbound.service}: {_OPEN}")
                continue
            callers, foreign = _callers(sidecar, inbound)
            if callers:
                rules.append(rule(callers, inbound.port))
            if foreign:
                left_out.append(Narrower(inbound.service, f"{inbound.service}: port {inbound.port}", foreign, _FOREIGN))
        narrower += left_out
        weaker = {"eastwest/strength": "weaker: labels, not identities; connections, not operations"}
        document = {
            "apiVersion": api,
            "kind": kind,
            "metadata": metadata(object_name(workload), sidecar.version, left_out, **weaker),
            "spec": spec(workload, rules),
        }
        documents.append(([*comments, *told, *(f"narrower: {one}" for one in left_out)], document))
        comments = []
    return Exported({"network-policies.yaml": yaml_text(documents)}, tuple(narrower))


def _callers(sidecar: Sidecar, inbound: Inbound) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Callers of this trust domain that may do anything at the service, and those of others."""
    everybody = sorted({caller for operation in inbound.operations for caller in may_ever_call(operation)})
    here = trust_domain(sidecar.spiffe_id)
    return (
        tuple(caller for caller in everybody if trust_domain(caller) == here),
        tuple(caller for caller in everybody if trust_domain(caller) != here),
    )
