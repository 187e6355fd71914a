"""Containment at real sidecars: on the way out of who is contained, on the way to it, and for tokens that name it."""

import pytest
from envoy_mesh import TD, Ca, Mesh, Workload, spiffe
from test_envoy_tokens import CLIENT, OTHER, World

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
from eastwest.registry.containment import Contained
from eastwest.testing.ports import free_port

WEB, ONE, TWO = spiffe("web"), spiffe("one"), spiffe("two")
ALLOW = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="p")


async def contain(mesh: Mesh, generation: int, *names: str) -> None:
    """What agents do once they have a new list."""
    mesh.contained = Contained(generation, names)
    for workload in mesh.workloads.values():
        mesh.publish(workload)
    await mesh.until(
        lambda: all(w.status and w.status.session.contained_acked == generation for w in mesh.workloads.values()),
        lambda: str([w.status for w in mesh.workloads.values()]),
    )


@pytest.fixture
async def tokens(tmp_path):
    world = World(tmp_path)
    try:
        await world.start()
        yield world
    finally:
        await world.mesh.close()


async def test_a_token_of_somebody_contained_counts_for_nothing_whoever_brings_it(tokens):
    asked = {
        "caller": tokens.token(),
        "origin": tokens.token(origin=OTHER),
        "approver": tokens.token("wipe", origin=CLIENT, approver=OTHER, approval="a1"),
    }
    unfinished = tokens.mint.mint(tokens.token(origin=OTHER), txn=None)
    assert (await tokens.send("/refund", asked["origin"])).status == 200
    await contain(tokens.mesh, 1, OTHER)
    for claim, path in (("origin", "/refund"), ("approver", "/wipe"), ("origin", "/free")):
        reply = await tokens.send(path, asked[claim])
        assert (reply.status, reply.code) == (403, "TOKEN_CONTAINED"), (claim, path)
        row = await tokens.row(reply)
        assert (row.code, row.caller, row.enforced) == (DecisionCode.TOKEN_CONTAINED, CLIENT, True)
    # Two tokens are none, and one without all its claims is none either, so they name nobody: as everywhere else.
    for none in ((tokens.token(), asked["origin"]), (asked["origin"], tokens.token()), (unfinished,)):
        assert (await tokens.send("/refund", *none)).code == "TOKEN_INVALID", none
        assert (await tokens.send("/free", *none)).status == 200, none
    assert (await tokens.send("/refund", tokens.token())).status == 200, "its own token names nobody else"
    stolen = await tokens.mesh.tls(tokens.port, tokens.ca.identity(OTHER))
    assert (await tokens.send("/refund", tokens.token(), http=stolen)).code == "CALLER_CONTAINED"
    await tokens.enforce(mode=MtlsMode.PERMISSIVE)
    for claim, path in (("origin", "/refund"), ("approver", "/wipe")):
        assert (await tokens.send(path, asked[claim])).code == "TOKEN_CONTAINED", (
            "permissive lets nobody in that is cut off"
        )
    await contain(tokens.mesh, 2, CLIENT)
    free = await tokens.mesh.tls(tokens.port, tokens.ca.identity(spiffe("third")))
    assert (await tokens.send("/free", asked["caller"], http=free)).code == "TOKEN_CONTAINED"
    await contain(tokens.mesh, 3)
    assert (await tokens.send("/refund", asked["origin"])).status == 200


class Way:
    """A web front, and what one of its two services answers on the way out."""

    def __init__(self, mesh: Mesh, web: Workload) -> None:
        self.mesh, self.web = mesh, web

    async def ask(self, service: str) -> tuple[int, str]:
        http = await self.mesh.way_out(self.web)
        reply = await http.ask("GET", "/x", host=service)
        return reply.status, reply.code


@pytest.fixture
async def way(tmp_path):
    ca = Ca()
    mesh = Mesh(tmp_path, {TD: ca.pem})
    operation = OperationRules(
        name="x", match=HttpMatch(method="GET", path="/x"), cells=(Cell(callers=(WEB,), rule=ALLOW),)
    )
    outbound = []
    try:
        for name, spiffe_id in (("one", ONE), ("two", TWO)):
            app, port = await mesh.app(name), free_port()
            inbound = Inbound(
                service=name,
                address="127.0.0.1",
                port=port,
                protocol="http",
                mode=MtlsMode.STRICT,
                upstream=f"unix:{app.path}",
                operations=(operation,),
            )
            sidecar = Sidecar(spiffe_id=spiffe_id, version="v1", known_callers=(WEB,), inbound=(inbound,))
            await mesh.add(sidecar, ca.identity(spiffe_id))
            outbound.append(
                Outbound(service=name, spiffe_id=spiffe_id, endpoints=(f"127.0.0.1:{port}",), protocol="http")
            )
        web = await mesh.add(
            Sidecar(spiffe_id=WEB, version="v1", known_callers=(), outbound=tuple(outbound)), ca.identity(WEB)
        )
        await mesh.settled()
        yield Way(mesh, web)
    finally:
        await mesh.close()


async def test_the_way_out_says_who_is_contained(way):
    assert [await way.ask(name) for name in ("one", "two")] == [(200, "")] * 2
    await contain(way.mesh, 1, ONE)
    assert await way.ask("one") == (403, "IDENTITY_CONTAINED")
    assert await way.ask(f"one.{TD}:443") == (403, "IDENTITY_CONTAINED")
    assert await way.ask("two") == (200, "")
    assert await way.ask("three") == (404, "UNKNOWN_SERVICE")
    await contain(way.mesh, 2, ONE, WEB)
    assert [await way.ask(name) for name in ("one", "two", "three")] == [(403, "CALLER_CONTAINED")] * 3
    await contain(way.mesh, 3)
    assert [await way.ask(name) for name in ("one", "two")] == [(200, "")] * 2
