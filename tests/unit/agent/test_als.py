"""Access log entries as Envoy writes them, and the rows they become."""

from dataclasses import replace
from datetime import UTC, datetime

import msgspec
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2

from eastwest.agent.als import MAX_ENTRIES, AccessLogs, decided, refused_handshake
from eastwest.agent.xds import Principal
from eastwest.errors import InvalidInput
from eastwest.ledger.record import Decision
from eastwest.mesh import names, rbac, tokens
from eastwest.mesh.action import ActionName, InForce
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    OriginRules,
    Rule,
    TenantRules,
    TenantSource,
    TokenRules,
    Verdict,
)

CALLER = "spiffe://td.test/a"
INBOUND = Inbound(
    service="web",
    address="127.0.0.1",
    port=1,
    protocol="http",
    mode=MtlsMode.STRICT,
    upstream="unix:/a",
    operations=(
        OperationRules(
            name="web:items:read",
            match=HttpMatch(method="GET", path="/t/{tenant}/items"),
            tenant=TenantSource(path="tenant"),
        ),
    ),
)
NOW = InForce("web", "aaaaaaaaaaaa", "v2", MtlsMode.STRICT, INBOUND)
BEFORE = InForce("web", "bbbbbbbbbbbb", "v1", MtlsMode.PERMISSIVE, INBOUND)
VERSIONS = {NOW.version: NOW, BEFORE.version: BEFORE}


def entry(*uris: str, status: int = 200, path: str = "/t/acme/items", **metadata: ActionName):
    found = accesslog_pb2.HTTPAccessLogEntry(
        request={"request_method": base_pb2.GET, "path": path, "request_id": "ref"},
        response={"response_code": {"value": status}},
    )
    common = found.common_properties
    common.start_time.FromDatetime(datetime(2026, 11, 22, 10, 0, tzinfo=UTC))
    for uri in uris:
        common.tls_properties.peer_certificate_properties.subject_alt_name.add(uri=uri)
    for key, action in metadata.items():
        common.metadata.filter_metadata[rbac.HTTP_METADATA][key] = action.encode()
    return found


def name(code: DecisionCode, rules: InForce = NOW, operation: str = "web:items:read") -> ActionName:
    return ActionName(code, "p", operation, rules.version)


KNOWN = ActionName(DecisionCode.ALLOWED, version=NOW.version)


def test_the_last_filter_speaks_when_all_allow():
    row = decided(
        entry(
            CALLER,
            callers_enforced_effective_policy_id=KNOWN,
            operations_enforced_effective_policy_id=name(DecisionCode.ALLOWED),
        ),
        NOW,
        VERSIONS.get,
        "n",
    )
    assert row == Decision(
        time=datetime(2026, 11, 22, 10, 0, tzinfo=UTC),
        service="web",
        verdict=Verdict.ALLOW,
        code=DecisionCode.ALLOWED,
        mode=MtlsMode.STRICT,
        enforced=True,
        caller=CALLER,
        operation="web:items:read",
        tenant="acme",
        method="GET",
        policy="p",
        policy_version="v2",
        rules_version=NOW.version,
        node="n",
        reference="ref",
    )


def test_the_first_refusal_speaks_in_shadow_too():
    row = decided(
        entry(
            CALLER,
            plaintext_shadow_effective_policy_id=ActionName(DecisionCode.MTLS_REQUIRED, version=BEFORE.version),
            operations_shadow_effective_policy_id=name(DecisionCode.ALLOWED, BEFORE),
        ),
        NOW,
        VERSIONS.get,
        "n",
    )
    assert row is not None
    assert (row.code, row.enforced, row.mode, row.policy_version) == (
        DecisionCode.MTLS_REQUIRED,
        False,
        MtlsMode.PERMISSIVE,
        "v1",
    )


def brought(row_entry, **claims: str):
    """What the filter that verified a token noted of it."""
    context = {name: claims.pop(name) for name in ("tenant", "approver") if name in claims}
    struct = row_entry.common_properties.metadata.filter_metadata[tokens.METADATA].get_or_create_struct(tokens.PAYLOAD)
    struct.update({"txn": "t1", "sub": CALLER, "jti": "secret", "tctx": context, **claims})
    return row_entry


@pytest.mark.parametrize(
    ("details", "code"),
    [
        ("via_upstream", DecisionCode.ALLOWED),
        ("ext_authz_denied", DecisionCode.TOKEN_USED),
        ("ext_authz_error", DecisionCode.CHECK_UNAVAILABLE),
    ],
)
def test_the_check_of_single_use_has_the_last_word(details, code):
    for once in (True, False):
        action = ActionName(DecisionCode.ALLOWED, "p", "web:items:read", NOW.version, once)
        made = entry(CALLER, operations_enforced_effective_policy_id=action)
        made.response.response_code_details = details
        row = decided(made, NOW, VERSIONS.get, "n")
        assert row is not None
        assert row.code == (code if once else DecisionCode.ALLOWED)
        refused = row.code is not DecisionCode.ALLOWED
        assert (row.verdict, row.policy) == ((Verdict.DENY, "") if refused else (Verdict.ALLOW, "p"))
        assert (row.operation, row.rules_version) == ("web:items:read", NOW.version)


def test_a_row_tells_of_the_token_that_the_decision_looked_at():
    allow = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED)
    with_token = TokenRules(unapproved=OriginRules(otherwise=allow), approved=OriginRules(otherwise=allow))
    looks = Cell(callers=(CALLER,), rule=msgspec.structs.replace(allow, token=with_token))
    by_claim = Cell(callers=(CALLER,), tenants=TenantRules(otherwise=allow))
    other = Cell(callers=("spiffe://td.test/b",), rule=looks.rule)
    allowed, wrong = name(DecisionCode.ALLOWED), name(DecisionCode.TOKEN_WRONG_KEY)
    for cells, source, action, claims, expected in (
        ((looks,), None, allowed, {"approver": "bob"}, ("t1", "bob", "")),
        ((looks,), None, wrong, {"approver": "bob"}, ("t1", "", "")),
        ((looks,), None, allowed, {"approver": "bob", "sub": "spiffe://td.test/b"}, ("", "", "")),
        ((other,), None, allowed, {"approver": "bob"}, ("", "", "")),
        ((Cell(callers=(CALLER,), rule=allow),), None, allowed, {"approver": "bob"}, ("", "", "")),
        ((by_claim,), TenantSource(claim=True), allowed, {"tenant": "acme"}, ("t1", "", "acme")),
        ((by_claim,), TenantSource(claim=True), allowed, {"sub": "spiffe://td.test/b", "tenant": "acme"}, ("", "", "")),
    ):
        operation = msgspec.structs.replace(INBOUND.operations[0], cells=cells, tenant=source)
        rules = replace(NOW, inbound=msgspec.structs.replace(INBOUND, operations=(operation,)))
        made = brought(entry(CALLER, operations_enforced_effective_policy_id=action), **claims)
        row = decided(made, rules, lambda _version, rules=rules: rules, "n")
        assert row is not None
        assert (row.transaction, row.approver, row.tenant) == expected
        assert "secret" not in msgspec.json.encode(row).decode()


def test_a_version_nobody_remembers_is_read_with_the_present_rules():
    action = ActionName(DecisionCode.ALLOWED, "p", "web:items:read", "cccccccccccc")
    row = decided(entry(CALLER, operations_enforced_effective_policy_id=action), NOW, VERSIONS.get, "n")
    assert row is not None
    assert (row.rules_version, row.policy_version, row.tenant) == ("cccccccccccc", "v2", "acme")


@pytest.mark.parametrize(
    ("uris", "code"), [((CALLER,), DecisionCode.UNLISTED_OPERATION), ((), DecisionCode.MTLS_REQUIRED)]
)
def test_a_request_refused_before_any_filter(uris, code):
    malformed = entry(*uris, status=400)
    malformed.response.response_code_details = "path_normalization_failed"
    row = decided(malformed, NOW, VERSIONS.get, "n")
    assert row is not None
    assert (row.code, row.cause, row.enforced) == (code, "path_normalization_failed", True)


def test_no_decision_is_no_row():
    assert decided(entry(CALLER, status=503), NOW, VERSIONS.get, "n") is None
    assert refused_handshake(accesslog_pb2.TCPAccessLogEntry(), NOW, "n") is None


def test_several_names_are_a_claim():
    row = decided(
        entry(CALLER, "spiffe://td.test/b", operations_enforced_effective_policy_id=name(DecisionCode.ALLOWED)),
        NOW,
        VERSIONS.get,
        "n",
    )
    assert row is not None
    assert (row.caller, row.claimed) == (f"{CALLER},spiffe://td.test/b", True)


def test_a_log_of_somebody_elses_service_is_not_believed():
    class Rules:
        def current(self, principal: Principal, service: str) -> InForce | None:
            return NOW if (principal.spiffe_ids, service) == ((CALLER,), "web") else None

        def version(self, version: str) -> InForce | None:
            return VERSIONS.get(version)

    async def identify(_) -> Principal:
        return Principal((CALLER,))

    logs = AccessLogs(identify, Rules(), lambda _: None)
    message = als_pb2.StreamAccessLogsMessage()
    message.http_logs.log_entry.append(
        entry(CALLER, operations_enforced_effective_policy_id=name(DecisionCode.ALLOWED))
    )
    for log, rows in ((names.request_log("web"), 1), (names.request_log("other"), 0), ("nonsense", 0)):
        assert len(list(logs._decisions(message, Principal((CALLER,)), log, "n"))) == rows
    stranger = Principal(("spiffe://td.test/x",))
    assert not list(logs._decisions(message, stranger, names.request_log("web"), "n"))
    assert (logs.counters.entries, logs.counters.foreign) == (4, 3)


def test_rows_survive_json():
    row = decided(
        entry(CALLER, operations_enforced_effective_policy_id=name(DecisionCode.ALLOWED)), NOW, VERSIONS.get, ""
    )
    assert msgspec.json.decode(msgspec.json.encode(row), type=Decision) == row


async def test_a_message_with_more_entries_than_a_proxy_sends_is_refused_unread():
    message = als_pb2.StreamAccessLogsMessage(identifier={"log_name": names.request_log("web")})
    message.http_logs.log_entry.extend([accesslog_pb2.HTTPAccessLogEntry()] * (MAX_ENTRIES + 1))

    class Nothing:
        def current(self, _principal: Principal, _service: str) -> None:
            return None

        def version(self, _version: str) -> None:
            return None

    class OneMessage:
        async def __aiter__(self):
            yield message

    async def identify(_) -> Principal:
        return Principal((CALLER,))

    logs = AccessLogs(identify, Nothing(), lambda _: None)
    with pytest.raises(InvalidInput, match="log entries"):
        await logs._stream(None, OneMessage())
    assert logs.counters.entries == 0


@pytest.mark.parametrize("code", [DecisionCode.ALLOWED, DecisionCode.TENANT_NOT_PERMITTED])
def test_a_call_that_met_both_modes_while_they_were_switched_keeps_its_operation(code):
    row = decided(
        entry(
            CALLER,
            callers_enforced_effective_policy_id=KNOWN,
            operations_shadow_effective_policy_id=name(code, BEFORE),
        ),
        NOW,
        VERSIONS.get,
        "n",
    )
    assert row is not None
    assert (row.code, row.operation, row.tenant, row.enforced) == (code, "web:items:read", "acme", False)


def test_what_was_enforced_speaks_before_what_was_only_reported():
    row = decided(
        entry(
            CALLER,
            plaintext_shadow_effective_policy_id=ActionName(DecisionCode.MTLS_REQUIRED, version=BEFORE.version),
            operations_enforced_effective_policy_id=name(DecisionCode.TENANT_NOT_PERMITTED),
        ),
        NOW,
        VERSIONS.get,
        "n",
    )
    assert row is not None
    assert (row.code, row.enforced) == (DecisionCode.TENANT_NOT_PERMITTED, True)
