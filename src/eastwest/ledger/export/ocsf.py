"""OCSF events: a decision is an API Activity (class 6003, category 6), schema version 1.6.0 (schema.ocsf.io).

Profile ``security_control``: ``action_id``, ``disposition_id``, ``policy`` and ``authorizations`` say the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

VERSION = "1.6.0"
CLASS = "api_activity"
PROFILES = ("security_control",)
_CLASS_UID = 6003
_CATEGORY_UID = 6
_OTHER = 99
_ACTIVITIES = {"GET": 2, "HEAD": 2, "OPTIONS": 2, "POST": 1, "PUT": 3, "PATCH": 3, "DELETE": 4}
_ACTIVITY_NAMES = {1: "Create", 2: "Read", 3: "Update", 4: "Delete", _OTHER: "Call"}
_METHODS = frozenset({*_ACTIVITIES, "TRACE", "CONNECT"})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Anything refused whose cause is an identity or a proof, not what it was allowed to do.
_UNAUTHENTICATED = frozenset({"MTLS_REQUIRED", "CERTIFICATE_REFUSED", "UNKNOWN_CALLER"})


def api_activity(row: Mapping[str, Any], product_version: str) -> dict[str, Any]:
    """The OCSF event of one row; ``count`` and ``end_time`` tell where it stands for several calls of a minute."""
    allowed = row.get("verdict") == "allow"
    enforced = bool(row.get("enforced"))
    activity = _ACTIVITIES.get(row.get("method", ""), _OTHER)
    time = _milliseconds(row.get("time", ""))
    count = int(row.get("count") or 1)
    event: dict[str, Any] = {
        "activity_id": activity,
        "activity_name": _ACTIVITY_NAMES[activity],
        "category_uid": _CATEGORY_UID,
        "category_name": "Application Activity",
        "class_uid": _CLASS_UID,
        "class_name": "API Activity",
        "type_uid": _CLASS_UID * 100 + activity,
        "severity_id": _severity(row),
        "time": time,
        "count": count,
        "status_id": 1 if allowed or not enforced else 2,
        "status_code": _text(row, "code"),
        "actor": _actor(row),
        "api": _api(row),
        "src_endpoint": _source(row),
        "dst_endpoint": {"svc_name": _text(row, "service") or "unknown"},
        "metadata": _metadata(row, product_version),
        **_control(row, allowed=allowed, enforced=enforced),
    }
    if count > 1:
        event["start_time"], event["end_time"] = time, time + 60_000
    if _text(row, "method") in _METHODS:
        event["http_request"] = {"http_method": _text(row, "method")}
        if _text(row, "reference"):
            event["http_request"]["uid"] = _text(row, "reference")
    if _text(row, "cause"):
        event["status_detail"] = _text(row, "cause")
    if _text(row, "operation"):
        event["resources"] = [{"name": _text(row, "operation"), "type": "operation"}]
    unmapped = {name: row[name] for name in _UNMAPPED if row.get(name)}
    if unmapped:
        event["unmapped"] = unmapped
    return event


_UNMAPPED = (
    "agent", "approver", "break_glass", "canary", "claimed", "first", "kind", "mode", "node", "origin", "path", "peer",
    "report_code", "report_policy", "rules_version", "sensor", "tenant", "token", "transaction",
)  # fmt: skip


def _control(row: Mapping[str, Any], *, allowed: bool, enforced: bool) -> dict[str, Any]:
    if allowed:
        action, disposition = (1, "Allowed"), (1, "Allowed")
    elif not enforced:
        # Refused by the policy's word alone: reported, and the call went on.
        action, disposition = (3, "Observed"), (15, "Detected")
    elif row.get("code") in _UNAUTHENTICATED:
        action, disposition = (2, "Denied"), (26, "Unauthorized")
    else:
        action, disposition = (2, "Denied"), (2, "Blocked")
    told: dict[str, Any] = {
        "action_id": action[0],
        "action": action[1],
        "disposition_id": disposition[0],
        "disposition": disposition[1],
    }
    authorization: dict[str, Any] = {"decision": "allow" if allowed else "deny"}
    if _text(row, "policy"):
        policy = {"name": _text(row, "policy"), "is_applied": enforced}
        if _text(row, "policy_version"):
            policy["version"] = _text(row, "policy_version")
        authorization["policy"] = policy
        told["policy"] = policy
    told["authorizations"] = [authorization]
    return told


def _severity(row: Mapping[str, Any]) -> int:
    """1 Informational for what was allowed, 3 Medium for a refusal, 4 High for a break-glass call or lost records."""
    if row.get("kind") == "lost" or row.get("break_glass"):
        return 4
    return 1 if row.get("verdict") == "allow" else 3


def _actor(row: Mapping[str, Any]) -> dict[str, Any]:
    caller = _text(row, "caller")
    if not caller:
        return {"app_name": "unidentified"}
    if row.get("claimed"):
        # A name out of a certificate that nobody verified is no user of ours.
        return {"app_name": f"unverified: {caller}"}
    user: dict[str, Any] = {"uid": caller, "name": caller.rpartition("/")[2] or caller, "type_id": 3, "type": "System"}
    domain = caller.removeprefix("spiffe://").partition("/")[0]
    if domain:
        user["domain"] = domain
    return {"user": user}


def _api(row: Mapping[str, Any]) -> dict[str, Any]:
    api: dict[str, Any] = {
        "operation": _text(row, "operation") or _text(row, "method") or "connection",
        "service": {"name": _text(row, "service") or "unknown"},
    }
    if _text(row, "reference"):
        api["request"] = {"uid": _text(row, "reference")}
    return api


def _source(row: Mapping[str, Any]) -> dict[str, Any]:
    if _text(row, "source"):
        return {"ip": _text(row, "source")}
    return {"name": _text(row, "caller") or "unknown"}


def _metadata(row: Mapping[str, Any], product_version: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "version": VERSION,
        "profiles": list(PROFILES),
        "product": {"name": "Eastwest", "vendor_name": "Eastwest", "version": product_version},
        "event_code": _text(row, "code") or _text(row, "kind"),
        "log_name": "decisions",
    }
    if "row" in row:
        metadata["uid"] = str(row["row"])
        metadata["sequence"] = int(row["row"])
    if _text(row, "trace"):
        metadata["correlation_uid"] = _text(row, "trace")
    return metadata


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return "" if value is None else str(value)


def _milliseconds(time: object) -> int:
    moment = time if isinstance(time, datetime) else datetime.fromisoformat(str(time))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1000 + delta.microseconds // 1000
