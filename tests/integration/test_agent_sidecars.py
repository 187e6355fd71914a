"""Real sidecars under a real agent: configured by who they are, followed through a change, their decisions reported."""

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from agent_authority import TD, FakeAuthority, running, settings
from envoy_mesh import App, Http

from eastwest.agent.envoy import envoy_binary
from eastwest.api.eastwest.control.v1 import control_pb2 as control
from eastwest.ledger.record import Decision
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    OriginRules,
    Outbound,
    Rule,
    Sidecar,
    TokenRules,
    Verdict,
)
from eastwest.policy.transaction import Token
from eastwest.testing.ports import free_port
from eastwest.testing.tokens import TokenMint

CLIENT, BILLING = "spiffe://saas.example/client", "spiffe://saas.example/billing"
ALLOW = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="callers-read")


@pytest.fixture
def data() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ew-") as directory:
        yield Path(directory) / "d"


@pytest.fixture
async def authority() -> AsyncIterator[FakeAuthority]:
    authority = FakeAuthority()
    await authority.start()
    yield authority
    await authority.stop()


def sidecars(port: int, app: Path, version: str, *callers: str) -> tuple[Sidecar, Sidecar]:
    """A client, and billing whose one operation ``callers`` may do."""
    health = OperationRules(
        name="billing:health:read",
        match=HttpMatch(method="GET", path="/healthz"),
        cells=(Cell(callers=callers, rule=ALLOW),) if callers else (),
    )
    inbound = Inbound(
        service="billing",
        address="127.0.0.1",
        port=port,
        protocol="http",
        mode=MtlsMode.STRICT,
        upstream=f"unix:{app}",
        operations=(health,),
    )
    outbound = Outbound(service="billing", spiffe_id=BILLING, endpoints=(f"127.0.0.1:{port}",), protocol="http")
    known = (BILLING, CLIENT)
    return (
        Sidecar(spiffe_id=CLIENT, version=version, known_callers=known, outbound=(outbound,)),
        Sidecar(spiffe_id=BILLING, version=version, known_callers=known, inbound=(inbound,)),
    )


@asynccontextmanager
async def sidecar(data: Path, name: str) -> AsyncIterator[Path]:
    """`eastwest sidecar run` with an Envoy of its own path; yields its way out."""
    home = data / name
    home.mkdir()
    envoy = home / "envoy"
    try:
        os.link(envoy_binary(), envoy)
    except OSError:
        shutil.copy(envoy_binary(), envoy)
    command = [sys.executable, "-m", "eastwest.cli.main", "sidecar", "run", "--data", str(data)]
    command += ["--egress-socket", str(home / "out.sock"), "--envoy", str(envoy), "--node-id", name]
    with (data / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        yield home / "out.sock"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def acknowledged(authority: FakeAuthority, version: str) -> bool:
    if not authority.acks:
        return False
    found = {status.spiffe_id: status for status in authority.acks[-1].sidecars}
    return found.keys() == {CLIENT, BILLING} and all(
        status.connected and status.acknowledged_version == status.intended_version == version and not status.error
        for status in found.values()
    )


async def test_sidecars_are_told_who_they_are_and_tell_what_they_did(authority: FakeAuthority, data: Path) -> None:
    config = settings(authority, data)
    port = free_port()
    app = App(data / "app.sock")
    await app.start()
    for name in ("client", "billing"):
        authority.put(name, f"unix:path:{data / name / 'envoy'}")
    for each in sidecars(port, app.path, "v1", CLIENT):
        authority.put_sidecar(each)
    async with running(config), sidecar(data, "client") as way_out, sidecar(data, "billing"):
        async with asyncio.timeout(60):
            await authority.until(lambda: acknowledged(authority, "v1"))
        out = await Http.unix(way_out)
        while (reply := await out.ask("GET", "/healthz", host="billing")).status == 503:
            await asyncio.sleep(0.02)  # billing's port opens a moment after its acknowledgement
        assert reply.status == 200

        for each in sidecars(port, app.path, "v2"):
            authority.put_sidecar(each)
        async with asyncio.timeout(20):
            await authority.until(lambda: acknowledged(authority, "v2"))
        refused = await out.ask("GET", "/healthz", host="billing")
        assert refused.status == 403
        assert refused.code == "OPERATION_NOT_PERMITTED"
        async with asyncio.timeout(20):
            await authority.until(lambda: any(d.code is DecisionCode.OPERATION_NOT_PERMITTED for d in rows(authority)))
        await out.close()
    allowed = [d for d in rows(authority) if d.code is DecisionCode.ALLOWED]
    assert {(d.caller, d.service, d.operation, d.policy, d.policy_version) for d in allowed} == {
        (CLIENT, "billing", "billing:health:read", "callers-read", "v1")
    }
    await app.stop()


def with_token(operation: OperationRules) -> OperationRules:
    """The same, where a token is needed that counts once."""
    token = TokenRules(unapproved=OriginRules(otherwise=ALLOW), approved=OriginRules(otherwise=ALLOW))
    needed = Rule(verdict=Verdict.DENY, code=DecisionCode.STEP_UP_REQUIRED, token=token)
    return msgspec.structs.replace(operation, single_use=True, cells=(Cell(callers=(CLIENT,), rule=needed),))


async def test_whether_a_token_was_used_is_asked_of_the_server(authority: FakeAuthority, data: Path) -> None:
    config = settings(authority, data)
    mint = TokenMint("spiffe://saas.example")
    app = App(data / "app.sock")
    await app.start()
    for name in ("client", "billing"):
        authority.put(name, f"unix:path:{data / name / 'envoy'}")
    client, billing = sidecars(free_port(), app.path, "v1", CLIENT)
    for each in (client, billing):
        authority.put_sidecar(each)
    async with running(config), sidecar(data, "client") as way_out, sidecar(data, "billing"):
        async with asyncio.timeout(60):
            await authority.until(lambda: acknowledged(authority, "v1"))
        out = await Http.unix(way_out)
        while (reply := await out.ask("GET", "/healthz", host="billing")).status == 503:
            await asyncio.sleep(0.02)  # billing's port opens a moment after its acknowledgement
        (shown,) = [value for name, value in reply.seen["headers"] if name == "x-forwarded-client-cert"]
        token = Token(
            id="jti-1",
            transaction="t1",
            caller=CLIENT,
            certificate=shown.partition("Hash=")[2].partition(";")[0],
            action="billing:health:read",
            resource="billing",
            origin=CLIENT,
            expires=int(time.time()) + 100,
            approval="a1",
        )
        name = control.ResourceName(kind=control.ResourceName.KIND_TOKEN_KEYS, name=TD.name)
        authority.push(control.Update(upserts=[control.Resource(name=name, token_keys=mint.key_set)]))
        asking = tuple(map(with_token, billing.inbound[0].operations))
        inbound = msgspec.structs.replace(billing.inbound[0], operations=asking)
        authority.put_sidecar(msgspec.structs.replace(client, version="v2"))
        authority.put_sidecar(msgspec.structs.replace(billing, version="v2", inbound=(inbound,)))
        async with asyncio.timeout(20):
            await authority.until(lambda: acknowledged(authority, "v2"))

        async def call(*tokens: Token) -> str:
            headers = [("txn-token", mint.mint(one)) for one in tokens]
            return (await out.ask("GET", "/healthz", *headers, host="billing")).code

        assert await call() == "STEP_UP_REQUIRED"
        assert [await call(token), await call(token)] == ["", "TOKEN_USED"]
        assert authority.token_uses.used == {"jti-1": (token.expires, "a1", "billing:health:read")}
        authority.token_uses.away = True
        assert await call(msgspec.structs.replace(token, id="jti-2")) == "CHECK_UNAVAILABLE"
        authority.token_uses.away = False
        assert await call(msgspec.structs.replace(token, id="jti-3")) == ""
        expected = {DecisionCode.TOKEN_USED, DecisionCode.CHECK_UNAVAILABLE, DecisionCode.STEP_UP_REQUIRED}
        async with asyncio.timeout(20):
            await authority.until(lambda: expected <= {d.code for d in rows(authority)})
        await out.close()
    await app.stop()


def rows(authority: FakeAuthority) -> list[Decision]:
    return [row for body in authority.decisions for row in msgspec.json.decode(body, type=list[Decision])]
