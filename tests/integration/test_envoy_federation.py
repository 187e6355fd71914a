"""What an Envoy trusts of a foreign trust domain: its callers where a policy admits some, its servers as themselves."""

import ssl

import msgspec
import pytest
from envoy_mesh import TD, Ca, Mesh, spiffe

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
    Verdict,
)
from eastwest.testing.ports import free_port

FAR_TD = "far.test"
CLIENT, SERVICE, FAR = spiffe("client"), spiffe("service"), spiffe("svc", FAR_TD)
ALLOW = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="p")
READ = OperationRules(
    name="svc:pub:read",
    match=HttpMatch(method="GET", path="/pub"),
    cells=(Cell(callers=(CLIENT, FAR), rule=ALLOW),),
)


@pytest.fixture
async def world(tmp_path):
    ca, far = Ca(), Ca(FAR_TD)
    mesh = Mesh(tmp_path, {TD: ca.pem, FAR_TD: far.pem})
    try:
        yield mesh, ca, far
    finally:
        await mesh.close()


def service(spiffe_id: str, port: int, app, **changed) -> Sidecar:
    inbound = Inbound(
        service="svc",
        address="127.0.0.1",
        port=port,
        protocol="http",
        mode=MtlsMode.STRICT,
        upstream=f"unix:{app.path}",
        operations=(READ,),
    )
    fields = {"version": "v1", "known_callers": (CLIENT, FAR, SERVICE), "inbound": (inbound,)} | changed
    return Sidecar(spiffe_id=spiffe_id, **fields)


async def test_a_foreign_caller_gets_in_only_where_its_trust_domain_is_admitted(world):
    mesh, ca, far = world
    app, port = await mesh.app("svc"), free_port()
    closed = service(SERVICE, port, app)
    workload = await mesh.add(closed, ca.identity(SERVICE))
    await mesh.settled()

    async def refused(identity) -> None:
        with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
            await (await mesh.tls(port, identity)).ask("GET", "/pub")

    await refused(far.identity(FAR))
    mesh.publish(workload, msgspec.structs.replace(closed, version="v2", federated_callers=(FAR_TD,)))
    await mesh.settled(workload)
    assert (await (await mesh.tls(port, far.identity(FAR))).ask("GET", "/pub")).status == 200
    # The foreign authority speaks for its own trust domain alone, in whatever order its leaf names us.
    await refused(far.identity(CLIENT))
    await refused(far.identity(CLIENT, FAR))
    both = await (await mesh.tls(port, far.identity(FAR, CLIENT))).ask("GET", "/pub")
    assert (both.status, both.code) == (403, "UNKNOWN_CALLER")
    # And ours does not speak for theirs.
    await refused(ca.identity(FAR))
    # When the admission ends, so does the trust: a new connection is refused at the handshake again.
    mesh.publish(workload, closed)
    await mesh.settled(workload)
    await refused(far.identity(FAR))
    assert (await (await mesh.tls(port, ca.identity(CLIENT))).ask("GET", "/pub")).status == 200


@pytest.mark.parametrize(
    ("expected", "presented", "ours", "status"),
    [
        (FAR, (FAR,), False, 200),
        (FAR, (FAR,), True, 503),  # our own authority cannot stand in for a foreign service
        (SERVICE, (SERVICE,), False, 503),  # nor a foreign one for ours
        (SERVICE, (FAR, SERVICE), False, 503),  # nor with both names
        (FAR, (spiffe("else", FAR_TD),), False, 503),  # nor another foreign workload for the one that is meant
    ],
)
async def test_a_server_proves_its_id_under_its_own_trust_domains_bundle(world, expected, presented, ours, status):
    mesh, ca, far = world
    app, port = await mesh.app("svc"), free_port()
    # The same identity may be known on both sides; what counts is what the client makes of it.
    identity = (ca if ours else far).identity(*presented)
    server = service(presented[0], port, app, federated_callers=(TD, FAR_TD))
    await mesh.add(server, identity)
    far_service = spiffe("other", FAR_TD)
    client = Sidecar(
        spiffe_id=CLIENT,
        version="v1",
        known_callers=(CLIENT,),
        outbound=(
            Outbound(service="svc", spiffe_id=expected, endpoints=(f"127.0.0.1:{port}",), protocol="http"),
            # Brings the foreign bundle to the client whatever is expected, so that only its use is tested.
            Outbound(service="o", spiffe_id=far_service, endpoints=(f"127.0.0.1:{free_port()}",), protocol="http"),
        ),
    )
    way_out = await mesh.add(client, ca.identity(CLIENT))
    await mesh.settled()
    reply = await (await mesh.way_out(way_out)).ask("GET", "/pub")
    assert reply.status == status
    if status != 200:
        assert "CERTIFICATE_VERIFY_FAILED" in reply.body.decode()
        assert not app.seen
