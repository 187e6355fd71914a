"""Labels of pods by SPIFFE ID: the one convention that exports for Kubernetes follow.

A pod of the workload ``spiffe://TRUST-DOMAIN/prod/commerce/billing`` carries the label ``eastwest/workload:
prod.commerce.billing``. Slashes become dots, dots ``_d`` and underscores ``__``, so that different IDs have
different labels; what does not fit a label (63 characters) is a hash. A label proves nothing: whoever may make pods
may claim any.
"""

from __future__ import annotations

import hashlib
import re

LABEL = "eastwest/workload"
_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


def label(spiffe_id: str) -> str:
    """The value of the label for a workload."""
    path = _path(spiffe_id)
    text = path.replace("_", "__").replace(".", "_d").replace("/", ".")
    return text if _VALUE.fullmatch(text) else f"h-{_hash(path)}"


def object_name(spiffe_id: str) -> str:
    """A name for a Kubernetes object about a workload."""
    text = _path(spiffe_id).replace("/", "-").lower()
    plain = re.sub(r"[^a-z0-9-]+", "-", text).strip("-")
    return f"eastwest-{plain[:40].strip('-')}-{_hash(_path(spiffe_id))[:8]}"


def trust_domain(spiffe_id: str) -> str:
    """The trust domain of a checked SPIFFE ID."""
    return spiffe_id.removeprefix("spiffe://").partition("/")[0]


def _path(spiffe_id: str) -> str:
    return spiffe_id.removeprefix("spiffe://").partition("/")[2]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
