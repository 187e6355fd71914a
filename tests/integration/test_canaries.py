"""Canaries at a real Envoy: each answer of the table proved, no request at the application, every drift seen."""

import asyncio
import contextlib
import datetime as dt
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from envoy_mesh import TD, Ca, Mesh, spiffe

from eastwest.agent import examining
from eastwest.agent.held_config import compare, held_config
from eastwest.agent.listening import Listening, family, holders, listening
from eastwest.clock import SystemClock
from eastwest.errors import NotFound, Unavailable
from eastwest.mesh import names
from eastwest.mesh.action import inbound_version
from eastwest.mesh.resources import config_resources, sidecar_secrets
from eastwest.mesh.snapshot import Snapshot
from eastwest.policy.canary import Examination, Plan, Point, canary_of, checks, represented, stranger
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    Rule,
    Sidecar,
    TenantRules,
    TenantSource,
    Verdict,
)
from eastwest.rpc.tls import client_context
from eastwest.server.verification import prober
from eastwest.server.verification.credentials import Credentials, forged
from eastwest.server.verification.diagnosis import diagnose
from eastwest.server.verification.prober import TOO_SLOW, Prober
from eastwest.testing.ports import free_port

CLIENT, OTHER, BILLING = spiffe("client"), spiffe("other"), spiffe("billing")
ALLOW = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="callers-read")
WRONG_TENANT = Rule(verdict=Verdict.DENY, code=DecisionCode.TENANT_NOT_PERMITTED)
INVOICES = OperationRules(
    name="billing:invoices:list",
    match=HttpMatch(method="GET", path="/tenants/{tenant}/invoices"),
    tenant=TenantSource(path="tenant"),
    cells=(Cell(callers=(CLIENT,), tenants=TenantRules(by_tenant={"acme": ALLOW}, otherwise=WRONG_TENANT)),),
)
ADJUST = OperationRules(
    name="billing:adjustments:create",
    match=HttpMatch(method="POST", path="/tenants/{tenant}/adjustments"),
    cells=(Cell(callers=(OTHER,), rule=ALLOW),),
)


def run_of(ca: Ca, sidecar: Sidecar) -> tuple[Plan, Credentials]:
    """A plan for the sidecar's one service, with certificates that the test's own CA makes."""
    (inbound,) = sidecar.inbound
    point = Point(
        service=inbound.service,
        spiffe_id=sidecar.spiffe_id,
        host="127.0.0.1",
        port=inbound.port,
        protocol=inbound.protocol,
        strict=inbound.mode is MtlsMode.STRICT,
        version=inbound_version(inbound),
        checks=checks(sidecar, inbound, TD, ["billing:invoices:list"]),
    )
    names = sorted({check.caller for check in point.checks if check.caller})
    roots = (ca.certificate.public_bytes(Encoding.DER),)
    plan = Plan(run="ab" * 16, trust_domain=TD, roots=roots, canaries=tuple(names), points=(point,))

    def context(*uris, **options):
        made = ca.identity(*uris, **options)
        found = client_context(roots, made.chain, made.key)
        found.set_alpn_protocols(["http/1.1"])
        return found

    nobody = client_context(roots)
    nobody.set_alpn_protocols(["http/1.1"])
    credentials = Credentials(
        canaries={name: context(name) for name in names},
        nobody=nobody,
        foreign=forged(plan, stranger(TD), time.time()),
        elsewhere=forged(plan, "spiffe://else.invalid/x", time.time()),
        expiring=context(stranger(TD), not_after=-dt.timedelta(seconds=1)),
        expired_at=0.0,
    )
    return plan, credentials


@pytest.fixture
async def world(tmp_path):
    ca = Ca()
    mesh = Mesh(tmp_path, {TD: ca.pem})
    app = await mesh.app("billing")
    sidecar = Sidecar(
        spiffe_id=BILLING,
        version="v1",
        known_callers=(BILLING, CLIENT, OTHER),
        inbound=(
            Inbound(
                service="billing",
                address="127.0.0.1",
                port=free_port(),
                protocol="http",
                mode=MtlsMode.STRICT,
                upstream=f"unix:{app.path}",
                operations=(INVOICES, ADJUST),
            ),
        ),
    )
    try:
        workload = await mesh.add(sidecar, ca.identity(BILLING))
        await mesh.settled()
        yield ca, mesh, workload, app
    finally:
        await mesh.close()


async def test_every_answer_is_proved_and_the_application_sees_nothing(world):
    ca, mesh, billing, app = world
    billing.canaries = True
    mesh.publish(billing)
    plan, credentials = run_of(ca, billing.sidecar)
    started = time.monotonic()
    seen = await Prober(plan, credentials, SystemClock()).run()
    assert time.monotonic() - started < 5
    (point,) = plan.points
    assert len(seen) == len(point.checks)
    wrong = [(point.checks[o.check], o) for o in seen if o.happened != point.checks[o.check].expected]
    assert wrong == []
    tried = {(c.operation, c.expected) for c in point.checks if c.kind == "operation"}
    assert {
        ("billing:invoices:list", "ALLOWED"),
        ("billing:invoices:list", "TENANT_NOT_PERMITTED"),
        ("billing:invoices:list", "OPERATION_NOT_PERMITTED"),
        ("billing:adjustments:create", "ALLOWED"),
        ("billing:adjustments:create", "OPERATION_NOT_PERMITTED"),
        ("", "UNLISTED_OPERATION"),
    } == tried
    decided = [o for o in seen if point.checks[o.check].caller]
    assert {(o.version, o.enforced, o.decided) for o in decided} == {(point.version, True, True)}
    assert app.seen == []
    assert represented(billing.sidecar.inbound[0], billing.sidecar.known_callers, TD) == (CLIENT, BILLING, OTHER)


async def test_a_reported_refusal_ends_here_too(world):
    ca, mesh, billing, app = world
    billing.canaries = True
    inbound = msgspec.structs.replace(billing.sidecar.inbound[0], mode=MtlsMode.PERMISSIVE)
    mesh.publish(billing, msgspec.structs.replace(billing.sidecar, version="v2", inbound=(inbound,)))
    await mesh.settled()
    plan, credentials = run_of(ca, billing.sidecar)
    seen = await Prober(plan, credentials, SystemClock()).run()
    (point,) = plan.points
    assert [o for o in seen if o.happened != point.checks[o.check].expected] == []
    answers = [o for o in seen if point.checks[o.check].caller]
    assert {(o.status, o.enforced) for o in answers} == {(204, False)}
    assert app.seen == []


@pytest.mark.parametrize(
    ("answer", "happened"),
    [
        (b"HTTP/1.1 \xb2\xb2\xb2 x\r\n\r\n", "the answer is not HTTP"),
        (b"HTTP/1.1 200 x\r\ncontent-length: \xb9\r\n\r\n", "HTTP 200"),
        (b"HTTP/1.1 200 x\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n", "HTTP 200"),
        (b"", "no answer within 0 s"),
    ],
)
async def test_whatever_listens_there_cannot_break_or_delay_a_run(world, monkeypatch, answer, happened):
    ca, _mesh, billing, _app = world
    monkeypatch.setattr(prober, "SECONDS", 0.3)
    plan, credentials = run_of(ca, billing.sidecar)
    mine = ca.identity(BILLING)
    chain, key = mine.chain, mine.key
    with tempfile.NamedTemporaryFile() as file:
        file.write(chain + key)
        file.flush()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file.name)

    async def rogue(reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer)
        writer.close()

    async with await asyncio.start_server(rogue, "127.0.0.1", 0, ssl=context) as server:
        (point,) = plan.points
        point = msgspec.structs.replace(point, port=server.sockets[0].getsockname()[1])
        started = time.monotonic()
        seen = await Prober(msgspec.structs.replace(plan, points=(point,)), credentials, SystemClock()).run()
    assert time.monotonic() - started < 3
    assert {o.happened for o in seen if point.checks[o.check].caller} <= {happened, TOO_SLOW}
    assert happened in {o.happened for o in seen}
    assert {each.drift for each in diagnose(point, seen, [], {})} <= {"wrong-root", "edited-config", "unreachable"}
    assert diagnose(point, seen, [], {})


async def test_outside_a_run_a_canary_is_nobody(world):
    ca, mesh, billing, app = world
    connection = await mesh.tls(billing.sidecar.inbound[0].port, ca.identity(canary_of(TD, CLIENT)))
    for method, path in (("GET", "/tenants/acme/invoices"), ("POST", "/tenants/acme/adjustments"), ("GET", "/")):
        reply = await connection.ask(method, path, host="billing")
        assert reply.status == 403
        assert "UNKNOWN_CALLER" in reply.headers["x-eastwest-decision"]
    assert app.seen == []


async def test_other_callers_are_not_told_what_decided(world):
    ca, mesh, billing, _app = world
    connection = await mesh.tls(billing.sidecar.inbound[0].port, ca.identity(CLIENT))
    reply = await connection.ask("POST", "/tenants/acme/adjustments", host="billing")
    assert (reply.status, reply.code) == (403, "OPERATION_NOT_PERMITTED")
    assert "x-eastwest-decision" not in reply.headers
    reply = await connection.ask("GET", "/tenants/acme/invoices", host="billing")
    assert reply.status == 200
    assert "x-eastwest-decision" not in reply.headers


async def test_what_an_envoy_holds_is_compared_with_what_it_was_given(world):
    _ca, mesh, billing, _app = world
    await mesh.settled()
    given = Snapshot.of("v1", [*config_resources(billing.sidecar, billing.settings), *secrets_of(mesh, billing)])
    process = billing.process
    dump = await held_config(process.pid, "")  # where its admin socket is, says the file that it was started with
    assert compare(dump, given) == Examination()
    edited = msgspec.structs.replace(
        billing.sidecar.inbound[0], operations=(INVOICES, msgspec.structs.replace(ADJUST, cells=()))
    )
    other = msgspec.structs.replace(billing.sidecar, inbound=(edited,))
    mesh.bundles = {TD: Ca().pem}
    meant = Snapshot.of("v1", [*config_resources(other, billing.settings), *secrets_of(mesh, billing)])
    found = compare(dump, meant)
    assert set(found.differs) >= {names.operations_filter("billing"), names.CALLERS_SECRET}
    assert (found.missing, found.foreign) == ((), ())
    gone = Snapshot.of(
        "v1", [r for r in config_resources(billing.sidecar, billing.settings) if "inbound/" not in r.name]
    )
    assert names.inbound_listener("billing") in compare(dump, gone).foreign
    with pytest.raises(Unavailable, match="cannot be read"):
        compare(b"[]", meant)

    # It was started with another file: with a switch of its own, or without the socket that would tell.
    told = json.loads(dump)
    (layer,) = told["configs"][0]["bootstrap"]["layered_runtime"]["layers"]
    layer["static_layer"]["envoy.reloadable_features.x"] = False
    assert compare(json.dumps(told).encode(), given).foreign == ("runtime layer eastwest (of its own file)",)
    billing.admin.unlink()
    with pytest.raises(NotFound, match="admin socket"):
        await held_config(process.pid, "")


def secrets_of(mesh, workload):
    return sidecar_secrets(workload.sidecar, workload.identity, mesh.bundles).resources()


def test_ports_of_a_process_are_told():
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("0.0.0.0", 0)) as two:
        found = {(each.port, each.is_everywhere) for each in listening(os.getpid())}
        assert {(one.getsockname()[1], False), (two.getsockname()[1], True)} <= found
        assert os.getpid() in holders(f"tcp:127.0.0.1:{one.getsockname()[1]}", os.getpid())
        assert os.getpid() not in holders(f"tcp:127.0.0.2:{one.getsockname()[1]}", os.getpid())


def test_an_upstream_is_meant_at_its_own_address_and_a_child_belongs_to_its_parent():
    inbound = Inbound(
        service="s",
        address="127.0.0.1",
        port=1,
        protocol="http",
        mode=MtlsMode.STRICT,
        upstream="tcp:127.0.0.1:80",
        operations=(),
    )
    meant = {a: examining._is_meant(Listening(a, 80), inbound) for a in ("127.0.0.1", "::1", "10.0.0.5", "0.0.0.0")}
    assert meant == {"127.0.0.1": True, "::1": True, "10.0.0.5": False, "0.0.0.0": False}
    assert not examining._is_meant(Listening("127.0.0.1", 81), inbound)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert {os.getpid(), child.pid} <= set(family([os.getpid()]))
        child.communicate()
