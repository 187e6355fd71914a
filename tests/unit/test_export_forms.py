"""Rows of the ledger as OCSF events and OTLP records, judged by the formats' own schemas."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from eastwest.ledger.export import clickhouse, ocsf, otlp
from eastwest.policy.enforcement import DecisionCode

_texts = st.text(max_size=40)
_ids = st.sampled_from(["", "spiffe://shop.example/web", "spiffe://shop.example/billing"])
_rows = st.fixed_dictionaries(
    {
        "row": st.integers(1, 2**53),
        "time": st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1)).map(lambda t: t.isoformat() + "Z"),  # noqa: DTZ001 - the Z follows
        "service": _texts,
        "verdict": st.sampled_from(["allow", "deny"]),
        "code": st.sampled_from([str(code) for code in DecisionCode]),
        "mode": st.sampled_from(["strict", "permissive"]),
        "enforced": st.booleans(),
    },
    optional={
        "kind": st.sampled_from(["decision", "lost"]),
        "agent": _ids,
        "caller": _ids,
        "claimed": st.booleans(),
        "operation": _texts,
        "method": st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "BREW", ""]),
        "path": _texts,
        "tenant": _texts,
        "policy": _texts,
        "policy_version": _texts,
        "count": st.integers(1, 2**40),
        "reference": _texts,
        "cause": _texts,
        "source": st.sampled_from(["", "10.0.0.7", "2001:db8::1"]),
        "transaction": _texts,
        "origin": _ids,
        "approver": _texts,
        "trace": st.sampled_from(["", "4bf92f3577b34da6a3ce929d0e0e4736"]),
        "first": st.booleans(),
        "break_glass": st.booleans(),
        "report_code": st.sampled_from(["", *(str(code) for code in DecisionCode)]),
        "report_policy": _texts,
        "peer": _texts,
        "canary": st.booleans(),
    },
)


@lru_cache
def _validator() -> jsonschema.Draft202012Validator:
    schemas = OcsfJsonSchemaEmbedded(get_ocsf_schema(version=ocsf.VERSION))
    schema = schemas.get_class_schema(ocsf.CLASS, profiles=list(ocsf.PROFILES))
    return jsonschema.Draft202012Validator(schema)


@given(_rows)
def test_every_row_is_a_valid_ocsf_event(row: dict[str, Any]) -> None:
    event = ocsf.api_activity(row, "0.1.0")
    assert [error.message for error in _validator().iter_errors(event)] == []
    assert (event["action_id"] == 1) == (row["verdict"] == "allow")
    assert event["count"] == row.get("count", 1)


def test_the_schema_refuses_what_is_no_event() -> None:
    event = ocsf.api_activity(_row(), "0.1.0")
    assert not list(_validator().iter_errors(event))
    assert list(_validator().iter_errors({**event, "class_uid": 1}))
    assert list(_validator().iter_errors({name: value for name, value in event.items() if name != "actor"}))


@pytest.mark.parametrize(
    ("change", "action", "disposition"),
    [
        ({}, 2, 2),
        ({"verdict": "allow", "code": "ALLOWED"}, 1, 1),
        ({"enforced": False, "mode": "permissive"}, 3, 15),
        ({"code": "MTLS_REQUIRED", "caller": ""}, 2, 26),
    ],
)
def test_the_verdict_is_told_as_action_and_disposition(change: dict[str, Any], action: int, disposition: int) -> None:
    event = ocsf.api_activity({**_row(), **change}, "0.1.0")
    assert (event["action_id"], event["disposition_id"]) == (action, disposition)


def test_a_name_that_nobody_verified_is_no_user() -> None:
    event = ocsf.api_activity({**_row(), "claimed": True}, "0.1.0")
    assert "user" not in event["actor"]
    assert event["actor"]["app_name"] == "unverified: spiffe://shop.example/web"


@given(_rows)
def test_an_otlp_record_keeps_all_there_is(row: dict[str, Any]) -> None:
    now = datetime(2026, 11, 22, tzinfo=UTC)
    request = otlp.export_request([row], trust_domain="shop.example", version="0.1.0", observed=now)
    (record,) = request.resource_logs[0].scope_logs[0].log_records
    attributes = {pair.key: pair.value for pair in record.attributes}
    for name, value in row.items():
        if name in ("time", "trace") or value == "":
            continue
        key = {"method": "http.request.method", "source": "client.address"}.get(name, f"eastwest.{name}")
        told = attributes[key]
        assert getattr(told, told.WhichOneof("value") or "string_value") == value
    assert record.trace_id.hex() == row.get("trace", "")
    assert datetime.fromtimestamp(record.time_unix_nano // 10**9, UTC) == datetime.fromisoformat(row["time"]).replace(
        microsecond=0
    )


def test_clickhouse_has_a_column_for_every_field_of_a_decision() -> None:
    from eastwest.ledger.record import Decision

    assert set(Decision.__struct_fields__) - set(clickhouse.COLUMNS) == set()


def _row() -> dict[str, Any]:
    return {
        "row": 7,
        "agent": "spiffe://shop.example/spire/agent/join_token/x",
        "kind": "decision",
        "time": "2026-11-22T10:00:00Z",
        "caller": "spiffe://shop.example/web",
        "service": "billing",
        "operation": "billing:invoice:read",
        "method": "GET",
        "tenant": "acme",
        "verdict": "deny",
        "code": "TENANT_NOT_PERMITTED",
        "mode": "strict",
        "enforced": True,
        "policy": "commerce-read",
        "policy_version": "abc",
        "reference": "f00d",
        "source": "10.0.0.7",
        "count": 1,
    }
