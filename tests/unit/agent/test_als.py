"""Access log entries as Envoy writes them, and the rows they become."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import msgspec
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest.agent import als_wire
from eastwest.agent.als import MAX_ENTRIES, AccessLogs
from eastwest.agent.entries import decided
from eastwest.agent.handshakes import refused_handshake
from eastwest.agent.shapes import _HeaderTenant
from eastwest.agent.xds import Principal
from eastwest.errors import InvalidInput
from eastwest.ledger.record import MAX_PATH, Decision
from eastwest.ledger.rollup import Rollup
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

CALLER, FOREIGN = "spiffe://td.test/a", "spiffe://td.test/b"
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


class Sent:
    """A stream of messages, as the agent reads them."""

    def __init__(self, *messages) -> None:
        self._messages = messages

    async def __aiter__(self):
        for message in self._messages:
            yield message


def message_of(log: str, *entries):
    message = als_pb2.StreamAccessLogsMessage(identifier={"log_name": log, "node": {"id": "n"}})
    message.http_logs.log_entry.extend(entries)
    return als_wire.Message.FromString(message.SerializeToString())


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


@pytest.mark.parametrize(
    ("emergency", "code", "marked"),
    [
        ({CALLER: ()}, DecisionCode.ALLOWED, True),
        ({CALLER: ("acme",)}, DecisionCode.ALLOWED, True),
        ({CALLER: ("globex",)}, DecisionCode.ALLOWED, False),
        ({FOREIGN: ()}, DecisionCode.ALLOWED, False),
        ({CALLER: ()}, DecisionCode.TENANT_NOT_PERMITTED, False),
    ],
)
def test_what_an_emergency_alone_allows_is_marked(emergency, code, marked):
    operations = (msgspec.structs.replace(INBOUND.operations[0], emergency=emergency),)
    rules = replace(NOW, inbound=msgspec.structs.replace(INBOUND, operations=operations))
    made = entry(
        CALLER,
        callers_enforced_effective_policy_id=KNOWN,
        operations_enforced_effective_policy_id=name(code),
    )
    row = decided(made, rules, {rules.version: rules}.get, "n")
    assert row is not None
    assert (row.code, row.break_glass) == (code, marked)


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
    noted = row_entry.common_properties.metadata.filter_metadata[tokens.NOTED]
    noted.update({"transaction": "t1", "caller": CALLER, "id": "secret", **claims})
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
        ((looks,), None, allowed, {"approver": "bob", "caller": FOREIGN}, ("", "", "")),
        ((other,), None, allowed, {"approver": "bob"}, ("", "", "")),
        ((Cell(callers=(CALLER,), rule=allow),), None, allowed, {"approver": "bob"}, ("", "", "")),
        ((by_claim,), TenantSource(claim=True), allowed, {"tenant": "acme"}, ("t1", "", "acme")),
        ((by_claim,), TenantSource(claim=True), allowed, {"caller": FOREIGN, "tenant": "acme"}, ("", "", "")),
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


async def test_a_log_of_somebody_elses_service_is_not_believed():
    class Rules:
        def current(self, principal: Principal, service: str) -> InForce | None:
            return NOW if (principal.spiffe_ids, service) == ((CALLER,), "web") else None

        def version(self, version: str) -> InForce | None:
            return VERSIONS.get(version)

    async def identify(_) -> Principal:
        return Principal((CALLER,))

    rows: list[Decision] = []
    logs = AccessLogs(identify, Rules(), rows.extend)
    allowed = entry(CALLER, operations_enforced_effective_policy_id=name(DecisionCode.ALLOWED))
    for log in (names.request_log("web"), names.request_log("other"), "nonsense"):
        await logs._stream(None, Sent(message_of(log, allowed)))
        assert len(rows) == 1

    async def stranger(_) -> Principal:
        return Principal(("spiffe://td.test/x",))

    others = AccessLogs(stranger, Rules(), rows.extend)
    await others._stream(None, Sent(message_of(names.request_log("web"), allowed)))
    assert len(rows) == 1
    assert (logs.counters.entries, logs.counters.foreign) == (3, 2)
    assert (others.counters.entries, others.counters.foreign) == (1, 1)


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

    async def identify(_) -> Principal:
        return Principal((CALLER,))

    logs = AccessLogs(identify, Nothing(), lambda _: None)
    with pytest.raises(InvalidInput, match="log entries"):
        await logs._stream(None, Sent(als_wire.Message.FromString(message.SerializeToString())))
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


BY_HEADER = replace(
    NOW,
    version="cccccccccccc",
    inbound=msgspec.structs.replace(
        INBOUND,
        operations=(
            *INBOUND.operations,
            OperationRules(
                name="web:all:list", match=HttpMatch(method="GET", path="/all"), tenant=TenantSource(header="x-tenant")
            ),
            OperationRules(name="web:up:read", match=HttpMatch(method="GET", path="/up")),
        ),
    ),
)


class OneService:
    def current(self, _principal: Principal, _service: str) -> InForce:
        return BY_HEADER

    def version(self, version: str) -> InForce | None:
        return {BY_HEADER.version: BY_HEADER, BEFORE.version: BEFORE}.get(version)

    def outgoing(self, _principal: Principal, _service: str) -> None:
        return None


async def anybody(_) -> Principal:
    return Principal((CALLER,))


def seen(caller, operation, rules, code, tenant, seconds, status):
    path = {"web:items:read": f"/t/{tenant or 'x'}/items?q=1", "web:all:list": "/all", "web:up:read": "/up"}[operation]
    action = ActionName(code, "p", operation, rules.version)
    made = entry(*caller, path=path, status=status, operations_enforced_effective_policy_id=action)
    made.common_properties.start_time.FromDatetime(datetime(2026, 11, 22, 10, 0, tzinfo=UTC) + timedelta(0, seconds))
    if tenant:
        made.request.request_headers["x-other"] = "y"
        made.request.request_headers["x-tenant"] = tenant
    return made


ENTRIES = st.lists(
    st.builds(
        seen,
        st.sampled_from([(CALLER,), ("spiffe://td.test/b",), (CALLER, "spiffe://td.test/b"), ()]),
        st.sampled_from(["web:items:read", "web:all:list", "web:up:read"]),
        st.sampled_from([BY_HEADER, BEFORE]),
        st.sampled_from([DecisionCode.ALLOWED, DecisionCode.ALLOWED, DecisionCode.TENANT_NOT_PERMITTED]),
        st.sampled_from(["", "acme", "globex", "\N{SNOWMAN}" * 60, "x" * 300]),
        st.integers(0, 130),
        st.sampled_from([200, 503, 400]),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ENTRIES, max_size=4))
def test_calls_that_are_counted_by_their_shape_are_the_calls_that_were_made(messages):
    """What is not read again comes out as if each entry had been read on its own."""

    def inputs(row: Decision) -> Decision:
        minute = row.time.replace(second=0, microsecond=0)
        return msgspec.structs.replace(row, time=minute, count=1, reference="", source="", first=False)

    rows: list[Decision] = []
    logs = AccessLogs(anybody, OneService(), rows.extend)
    told = Sent(*(message_of(names.request_log("web"), *entries) for entries in messages))
    with pytest.raises(StopIteration):
        logs._stream(None, told).send(None)
    found: Counter[Decision] = Counter()
    for row in rows:
        found[inputs(row)] += row.count
    each = [decided(entry, BY_HEADER, OneService().version, "n") for entries in messages for entry in entries]
    assert found == Counter(inputs(row) for row in each if row is not None)
    rollup = Rollup()
    for row in rows:
        rollup.add(row)
    assert sum(row.count for row in rollup.take(NOON, everything=True)) == len(each)


NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def test_a_call_of_nothing_that_is_listed_keeps_its_path_and_not_its_query():
    unlisted = ActionName(DecisionCode.UNLISTED_OPERATION, version=NOW.version)
    asked = entry(CALLER, path="/admin?key=secret#x", status=403, operations_enforced_effective_policy_id=unlisted)
    asked.request.request_headers["traceparent"] = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    row = decided(asked, NOW, VERSIONS.get, "n")
    assert row is not None
    assert (row.path, row.trace, row.sensor) == ("/admin", "ab" * 16, "envoy")
    long = entry(CALLER, path="/" + "a" * 5_000, operations_enforced_effective_policy_id=unlisted)
    row = decided(long, NOW, VERSIONS.get, "n")
    assert row is not None
    assert len(row.path) == MAX_PATH
    listed = decided(
        entry(CALLER, operations_enforced_effective_policy_id=name(DecisionCode.ALLOWED)), NOW, VERSIONS.get, "n"
    )
    assert listed is not None
    assert listed.path == ""


@pytest.mark.parametrize("end", [b"", b"\x80", b"\x80\x80\x80"])
def test_a_header_that_ends_too_soon_is_no_tenant(end):
    broken = SimpleNamespace(request=SimpleNamespace(request_headers=[b"\n\x08x-tenant\x12" + end]))
    assert _HeaderTenant("x-tenant")(broken) == ""


@settings(max_examples=300)
@given(st.data())
def test_damaged_messages_are_refused_or_read_and_nothing_else(data):
    """What a workload sends in its sidecar's place: no bytes make the agent stumble, and none are read as more."""
    raw = bytearray(
        message_of("http/stock", entry("spiffe://td.test/a"), entry("spiffe://td.test/b")).SerializeToString()
    )
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        real = als_pb2.StreamAccessLogsMessage.FromString(bytes(raw))
    except DecodeError:
        real = None
    try:
        message = als_wire.Message.FromString(bytes(raw))
        als_wire.identifier(message)
        als_wire.tcp_entries(message)
        read = [als_wire.whole_entry(one) for one in message.http_logs.log_entry]
        for one in message.http_logs.log_entry:
            _HeaderTenant("x-tenant")(one)
    except DecodeError:
        assert real is None
        return
    if real is not None and real.WhichOneof("log_entries") == "http_logs" and not message.tcp_logs:
        assert len(read) == len(real.http_logs.log_entry)
