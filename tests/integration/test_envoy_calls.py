"""Two sidecars, one agent: what a caller gets and what the ledger says, while policy, mode and keys change."""

import asyncio
import json
import time
from datetime import timedelta

import msgspec
import pytest
from envoy_mesh import TD, Ca, Mesh, Workload, spiffe

from eastwest.mesh import names
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    Outbound,
    Rule,
    Sidecar,
    TenantRules,
    TenantSource,
    Verdict,
)
from eastwest.testing.ports import free_port

CLIENT, BILLING = spiffe("client"), spiffe("billing")
ALLOW = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="callers-read")
WRONG_TENANT = Rule(verdict=Verdict.DENY, code=DecisionCode.TENANT_NOT_PERMITTED)
FORBID = Rule(verdict=Verdict.DENY, code=DecisionCode.FORBIDDEN_BY_POLICY, policy="contain|client")
INVOICES = OperationRules(
    name="billing:invoices:list",
    match=HttpMatch(method="GET", path="/tenants/{tenant}/invoices"),
    tenant=TenantSource(path="tenant"),
    cells=(Cell(callers=(CLIENT,), tenants=TenantRules(by_tenant={"acme": ALLOW}, otherwise=WRONG_TENANT)),),
)
HEALTH = OperationRules(
    name="billing:health:read",
    match=HttpMatch(method="GET", path="/healthz"),
    cells=(Cell(callers=(CLIENT,), rule=ALLOW),),
)
ADJUST = OperationRules(
    name="billing:adjustments:create", match=HttpMatch(method="POST", path="/tenants/{tenant}/adjustments")
)


class Pair:
    """A client and billing."""

    def __init__(self, mesh: Mesh, ca: Ca, client: Workload, billing: Workload) -> None:
        self.mesh, self.ca, self.client, self.billing = mesh, ca, client, billing
        self.inbound = billing.sidecar.inbound[0]
        self._version = 1

    async def enforce(self, *operations: OperationRules, mode: MtlsMode = MtlsMode.STRICT) -> None:
        self._version += 1
        inbound = msgspec.structs.replace(self.inbound, operations=operations, mode=mode)
        sidecar = msgspec.structs.replace(self.billing.sidecar, version=f"v{self._version}", inbound=(inbound,))
        self.mesh.publish(self.billing, sidecar)
        await self.mesh.settled(self.billing)


@pytest.fixture
async def pair(tmp_path, request):
    settings = getattr(request, "param", {})
    ca = Ca()
    mesh = Mesh(tmp_path, {TD: ca.pem})
    app = await mesh.app("billing")
    port = free_port()
    billing = Sidecar(
        spiffe_id=BILLING,
        version="v1",
        known_callers=(BILLING, CLIENT),
        inbound=(
            Inbound(
                service="billing",
                address="127.0.0.1",
                port=port,
                protocol="http",
                mode=MtlsMode.STRICT,
                upstream=f"unix:{app.path}",
                operations=(INVOICES, HEALTH, ADJUST),
            ),
        ),
    )
    client = Sidecar(
        spiffe_id=CLIENT,
        version="v1",
        known_callers=(BILLING, CLIENT),
        outbound=(
            Outbound(service="billing", spiffe_id=BILLING, endpoints=(f"127.0.0.1:{port}",), protocol="http"),
            Outbound(service="nobody", spiffe_id=BILLING, endpoints=(f"127.0.0.1:{free_port()}",), protocol="http"),
            Outbound(service="impostor", spiffe_id=spiffe("else"), endpoints=(f"127.0.0.1:{port}",), protocol="http"),
        ),
    )
    try:
        pair = Pair(
            mesh,
            ca,
            await mesh.add(client, ca.identity(CLIENT)),
            await mesh.add(billing, ca.identity(BILLING), **settings),
        )
        await mesh.settled()
        yield pair
    finally:
        await mesh.close()


async def test_each_answer_has_its_code_and_its_row(pair):
    http = await pair.mesh.way_out(pair.client)
    expected = [
        ("GET", "/tenants/acme/invoices", 200, "ALLOWED", "billing:invoices:list", "acme"),
        ("GET", "/tenants/acme/invoices?page=2", 200, "ALLOWED", "billing:invoices:list", "acme"),
        ("GET", "/tenants/globex/invoices", 403, "TENANT_NOT_PERMITTED", "billing:invoices:list", "globex"),
        ("GET", "/healthz", 200, "ALLOWED", "billing:health:read", ""),
        ("POST", "/tenants/acme/adjustments", 403, "OPERATION_NOT_PERMITTED", "billing:adjustments:create", ""),
        ("DELETE", "/tenants/acme/invoices", 403, "UNLISTED_OPERATION", "", ""),
        ("GET", "/healthz/", 403, "UNLISTED_OPERATION", "", ""),
        ("GET", "/healthzz", 403, "UNLISTED_OPERATION", "", ""),
        ("GET", "/Healthz", 403, "UNLISTED_OPERATION", "", ""),
    ]
    for method, path, status, code, operation, tenant in expected:
        reply = await http.ask(method, path, host="billing")
        assert (reply.status, reply.code) == (status, "" if status == 200 else code), path
        reference = reply.headers["x-request-id"]
        row = await pair.mesh.decision(lambda d, r=reference: d.reference == r)
        assert (row.code, row.operation, row.tenant, row.method) == (code, operation, tenant, method)
        assert (row.caller, row.claimed, row.service, row.enforced) == (CLIENT, False, "billing", True)
        assert row.policy == ("callers-read" if code == "ALLOWED" else "")
        assert (row.policy_version, row.mode) == ("v1", MtlsMode.STRICT)
        if status == 403:
            error = json.loads(reply.body)["error"]
            assert error["reference"] == reference
            assert "callers-read" not in reply.body.decode()


async def test_sidecars_agree_on_http2(pair):
    http = await pair.mesh.way_out(pair.client)
    assert (await http.ask("GET", "/healthz", host="billing")).status == 200
    stats = await admin(pair.client, "/stats?filter=remote/billing.upstream_cx_http[12]_total")
    assert "http1_total: 0" in stats
    assert "http2_total: 1" in stats


async def test_hosts_that_name_no_service_or_lead_nowhere(pair):
    for host in ("billing", "billing:80", f"billing.{TD}", f"billing.{TD}:8443"):
        http = await pair.mesh.way_out(pair.client)
        assert (await http.ask("GET", "/healthz", host=host)).status == 200, host
    http = await pair.mesh.way_out(pair.client)
    unknown = await http.ask("GET", "/healthz", host="bill")
    assert (unknown.status, unknown.code) == (404, "UNKNOWN_SERVICE")
    down = await http.ask("GET", "/healthz", host="nobody")
    assert (down.status, down.code) == (503, "UPSTREAM_UNAVAILABLE")
    error = json.loads(down.body)["error"]
    assert "UF" in error["flags"]
    assert "Connection_refused" in error["cause"]
    impostor = await http.ask("GET", "/healthz", host="impostor")
    assert (impostor.status, impostor.code) == (503, "UPSTREAM_UNAVAILABLE")
    assert "SAN_match" in json.loads(impostor.body)["error"]["cause"]


async def test_a_policy_change_is_enforced_on_a_living_connection(pair):
    http = await pair.mesh.way_out(pair.client)
    times = []
    for _ in range(5):
        assert (await http.ask("GET", "/healthz", host="billing")).status == 200
        start = time.monotonic()
        await pair.enforce(msgspec.structs.replace(HEALTH, cells=(Cell(callers=(CLIENT,), rule=FORBID),)))
        times.append(time.monotonic() - start)
        refused = await http.ask("GET", "/healthz", host="billing")
        assert (refused.status, refused.code) == (403, "FORBIDDEN_BY_POLICY")
        await pair.enforce(HEALTH)
    row = await pair.mesh.decision(lambda d: d.code == DecisionCode.FORBIDDEN_BY_POLICY)
    assert row.policy == "contain|client"
    assert pair.mesh.versions[row.rules_version].inbound.operations[0].cells[0].rule == FORBID
    stats = await admin(pair.billing, "/stats?filter=inbound.billing.tls.downstream_cx_(total|destroy)$")
    assert "downstream_cx_total: 1" in stats
    assert "downstream_cx_destroy: 0" in stats
    assert min(times) < 0.5


async def test_modes_switch_without_a_new_connection(pair):
    through = await pair.mesh.way_out(pair.client)
    plain = await pair.mesh.plain(pair.inbound.port)
    adjust = ("POST", "/tenants/acme/adjustments")
    for mode in (MtlsMode.STRICT, MtlsMode.PERMISSIVE, MtlsMode.STRICT, MtlsMode.PERMISSIVE):
        await pair.enforce(INVOICES, HEALTH, ADJUST, mode=mode)
        strict = mode is MtlsMode.STRICT
        answers = [await through.ask(*adjust, host="billing"), await plain.ask("GET", "/healthz")]
        codes = ["OPERATION_NOT_PERMITTED", "MTLS_REQUIRED"]
        for answer, code in zip(answers, codes, strict=True):
            assert (answer.status, answer.code) == ((403, code) if strict else (200, ""))
            reference = answer.headers["x-request-id"]
            row = await pair.mesh.decision(lambda d, r=reference: d.reference == r)
            assert (row.verdict, row.code) == (Verdict.DENY, code)
            assert (row.enforced, row.mode) == (strict, mode)
            assert row.policy_version == pair.billing.sidecar.version
    assert "lds.update_success: 1" in await admin(pair.billing, "/stats?filter=lds.update_success")


async def test_plaintext_callers_have_no_name(pair):
    await pair.enforce(HEALTH, mode=MtlsMode.PERMISSIVE)
    plain = await pair.mesh.plain(pair.inbound.port)
    reply = await plain.ask("GET", "/anything", ("x-eastwest-caller", CLIENT), ("x-forwarded-client-cert", "URI=a"))
    assert reply.status == 200
    assert not {name for name, _ in reply.seen["headers"]} & {"x-eastwest-caller", "x-forwarded-client-cert"}


async def test_rotation_under_load_loses_no_call(pair):
    stop = asyncio.Event()
    answers = []

    async def call(*, fresh: bool) -> None:
        http = await pair.mesh.way_out(pair.client)
        while not stop.is_set():
            if fresh:
                await http.close()
                http = await pair.mesh.way_out(pair.client)
            answers.append((await http.ask("GET", "/healthz", host="billing")).status)

    async with asyncio.TaskGroup() as group:
        for fresh in (False, False, True):
            group.create_task(call(fresh=fresh))
        for _ in range(10):
            for workload, name in ((pair.client, CLIENT), (pair.billing, BILLING)):
                identity = pair.ca.identity(name)
                pair.mesh.publish(workload, identity=identity)
                wanted = secret_version(workload)
                await pair.mesh.until(lambda w=workload, v=wanted: v in {a[2] for a in w.status.session.acked})
        stop.set()
    assert len(answers) > 20
    assert set(answers) == {200}


@pytest.mark.parametrize("pair", [{"max_connection_age": timedelta(milliseconds=300)}], indirect=True)
async def test_connections_age_and_no_call_is_lost(pair):
    through = await pair.mesh.way_out(pair.client)
    end = time.monotonic() + 2
    answers = []
    while time.monotonic() < end:
        answers.append((await through.ask("GET", "/healthz", host="billing")).status)
    assert set(answers) == {200}
    stats = await admin(pair.billing, "/stats?filter=inbound.billing.tls.downstream_cx_total")
    assert int(stats.rpartition(":")[2]) >= 4


async def test_a_port_in_use_is_a_refusal_that_names_the_listener(pair):
    taken = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    inbound = msgspec.structs.replace(pair.inbound, service="second", port=taken.sockets[0].getsockname()[1])
    sidecar = msgspec.structs.replace(pair.billing.sidecar, version="v2", inbound=(pair.inbound, inbound))
    pair.mesh.publish(pair.billing, sidecar)
    await pair.mesh.until(lambda: pair.billing.status.session.refusals)
    (refusal,) = pair.billing.status.session.refusals
    assert refusal.names == ("inbound/second",)
    assert "Address already in use" in refusal.message
    assert pair.billing.status.session.version_acked == "v1"
    http = await pair.mesh.way_out(pair.client)
    assert (await http.ask("GET", "/healthz", host="billing")).status == 200
    taken.close()


async def test_a_refused_resource_is_named_and_the_old_one_stays(pair):
    broken = msgspec.structs.replace(pair.billing.sidecar, version="v9")
    pair.mesh.publish(pair.billing, broken)
    await pair.mesh.settled(pair.billing)
    resources = [r for named in pair.billing.snapshots.value.resources.values() for r in named.values()]
    name = names.operations_filter("billing")
    # A filter config without its type inside: only Envoy can tell that it is wrong.
    bad = msgspec.json.encode({})
    from envoy.config.core.v3 import extension_pb2
    from google.protobuf import any_pb2

    from eastwest.mesh.snapshot import Resource, Snapshot

    message = extension_pb2.TypedExtensionConfig(
        name=name, typed_config=any_pb2.Any(type_url="type.googleapis.com/eastwest.Nothing", value=bad)
    )
    pair.billing.snapshots.set(Snapshot.of("v10", [*resources, Resource.of(name, names.EXTENSION, message)]))
    await pair.mesh.until(lambda: pair.billing.status.session.refusals)
    session = pair.billing.status.session
    (refusal,) = session.refusals
    assert (refusal.names, session.version_sent, session.version_acked) == ((name,), "v10", "v9")
    assert "eastwest.Nothing" in refusal.message
    http = await pair.mesh.way_out(pair.client)
    assert (await http.ask("GET", "/healthz", host="billing")).status == 200
    assert (await http.ask("POST", "/tenants/acme/adjustments", host="billing")).status == 403
    pair.billing.snapshots.set(Snapshot.of("v11", resources))
    await pair.mesh.until(lambda: pair.billing.status.session.version_acked == "v11")
    assert not pair.billing.status.session.refusals


async def test_an_agent_that_goes_away_leaves_enforcement_as_it_was(pair):
    http = await pair.mesh.way_out(pair.client)
    assert (await http.ask("GET", "/healthz", host="billing")).status == 200
    await pair.mesh.stop_agent()
    assert not pair.billing.status.connected
    again = await pair.mesh.way_out(pair.client)
    for connection in (http, again):
        assert (await connection.ask("GET", "/healthz", host="billing")).status == 200
        assert (await connection.ask("POST", "/tenants/acme/adjustments", host="billing")).status == 403
    changed = msgspec.structs.replace(pair.inbound, operations=(INVOICES,))
    sidecar = msgspec.structs.replace(pair.billing.sidecar, version="v2", inbound=(changed,))
    pair.mesh.publish(pair.billing, sidecar)
    await pair.mesh.start_agent()
    await pair.mesh.settled(pair.billing)
    refused = await http.ask("GET", "/healthz", host="billing")
    assert refused.code == "UNLISTED_OPERATION"
    row = await pair.mesh.decision(lambda d: d.reference == refused.headers["x-request-id"])
    assert row.policy_version == "v2"


def secret_version(workload: Workload) -> str:
    return workload.secrets.value.find(workload.identity.spiffe_id).version


async def admin(workload: Workload, path: str) -> str:
    from envoy_mesh import Http

    http = await Http.unix(workload.admin)
    try:
        return (await http.ask("GET", path)).body.decode()
    finally:
        await http.close()
