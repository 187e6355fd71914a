"""The formats by name."""

from __future__ import annotations

from collections.abc import Callable, Collection

from eastwest.policy.exports.istio import export_istio
from eastwest.policy.exports.kubernetes import export_cilium, export_kubernetes
from eastwest.policy.exports.linkerd import export_linkerd
from eastwest.policy.exports.model import Exported
from eastwest.policy.exports.rego import export_rego
from eastwest.policy.exports.table import export_table
from eastwest.policy.table import CompiledPolicy

FORMATS: dict[str, Callable[[CompiledPolicy, Collection[str]], Exported]] = {
    "istio": export_istio,
    "linkerd": export_linkerd,
    "kubernetes": export_kubernetes,
    "cilium": export_cilium,
    "rego": export_rego,
    "table": export_table,
}
