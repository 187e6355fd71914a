"""Agents whose node has been taken over, and strangers: what they tell harms nobody's records but their own."""

import asyncio
import itertools
import json
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest
from server_process import AGENT, SVID, eastwest, server_id

from eastwest import errors
from eastwest.api.eastwest.control.v1 import control_pb2 as control
from eastwest.rpc.client import Channel, method
from eastwest.rpc.tls import client_context, expect_server
from eastwest.server.control import MAX_ACK

CONTROL = control.DESCRIPTOR.services_by_name["Control"]
REPORT = method(CONTROL, "ReportDecisions")
SUBSCRIBE = method(CONTROL, "Subscribe")
HELLO = control.SubscribeRequest(hello=control.Hello(agent_version="rival"))
ESTATE = {
    "estate.yaml": """
trust_domain: td.test
environments: [{name: dev, kind: vm}]
domains: [{name: shop, owners: [group:shop]}]
node_groups:
  - {name: left, environment: dev, selectors: ["join_token:group:left"]}
  - {name: right, environment: dev, selectors: ["join_token:group:right"]}
""",
    "workloads/all.yaml": """
workloads:
  - {spiffe_id: spiffe://td.test/dev/shop/orders, environment: dev, domain: shop, owner: group:shop,
     node: group:left, selectors: ["unix:uid:1"], profile: workload}
  - {spiffe_id: spiffe://td.test/dev/shop/stock, environment: dev, domain: shop, owner: group:shop,
     node: group:right, selectors: ["unix:uid:2"], profile: workload}
""",
    **{
        f"services/{name}.yaml": f"""
service: {name}
workload: spiffe://td.test/dev/shop/{name}
owner: group:shop
domain: shop
listen: {{port: {port}, protocol: http, mtls: strict}}
upstream: {{unix: /tmp/{name}.sock}}
operations:
  - {{name: "{name}:all:read", match: {{method: GET, path: /all}}, sensitivity: read}}
"""
        for name, port in (("orders", 1), ("stock", 2))
    },
}
ROW = {
    "kind": "decision",
    "time": "2026-11-22T10:00:00Z",
    "service": "orders",
    "verdict": "allow",
    "code": "ALLOWED",
    "mode": "strict",
    "enforced": True,
    "caller": "spiffe://td.test/dev/shop/stock",
}


async def applied(server):
    async with server.admin() as admin:
        await admin.apply_estate({name: text.encode() for name, text in ESTATE.items()})
    return await server.join(group="left")


SPOOL = "ab" * 16
_sequence = itertools.count(1)


async def report(agent, *rows, spool: str = SPOOL, sequence: int = 0) -> int:
    body = b"[" + b",".join(row if isinstance(row, bytes) else msgspec.json.encode(row) for row in rows) + b"]"
    sequence = sequence or next(_sequence)
    request = control.ReportDecisionsRequest(decisions=body, spool=spool, sequence=sequence)
    return (await agent.channel.unary(REPORT, request)).sequence


LOST = {"kind": "lost", "time": "2026-11-22T10:00:00Z", "until": "2026-11-22T10:01:00Z", "cause": "disk"}


async def test_decisions_of_services_that_run_elsewhere_are_not_believed(server):
    agent = await applied(server)
    await report(agent, ROW, ROW | {"service": "stock"}, ROW | {"service": "nowhere"})
    async with server.admin() as admin:
        found, lost = await admin.decisions()
        rows = [row for row in found if row.get("kind") != "lost"]
        assert [(row["service"], row["agent"]) for row in rows] == [("orders", str(agent.id))]
        assert lost == 2
        # What a service did until it was removed may be told afterwards, by the agent that ran it.
        kept = {n: t.encode() for n, t in ESTATE.items() if n != "services/orders.yaml"}
        await admin.apply_estate(kept)
        await report(agent, ROW)
        assert len([row for row in (await admin.decisions())[0] if row.get("kind") != "lost"]) == 2
    agent.close()


async def test_a_batch_that_comes_again_is_stored_once(server):
    agent = await applied(server)
    assert await report(agent, ROW, ROW, sequence=3, spool="cd" * 16) == 3
    assert await report(agent, ROW, ROW, sequence=3, spool="cd" * 16) == 3
    assert await report(agent, ROW, sequence=2, spool="cd" * 16) == 3
    assert await report(agent, ROW, sequence=1, spool="ef" * 16) == 1
    async with server.admin() as admin:
        assert len((await admin.decisions())[0]) == 3
    for spool, sequence in (("", 1), ("x" * 32, 1), ("AB" * 16, 1), ("cd" * 16, 1 << 63)):
        with pytest.raises(errors.InvalidInput):
            await report(agent, ROW, spool=spool, sequence=sequence)
    agent.close()


@pytest.mark.parametrize(
    "row",
    [
        b'{"kind":"decision","service":"orders"}',
        msgspec.json.encode(ROW | {"verdict": "perhaps"}),
        msgspec.json.encode(ROW | {"enforced": "yes"}),
        msgspec.json.encode(ROW | {"tenant": {"a": 1}}),
        msgspec.json.encode(ROW | {"tenant": "x" * 20_000}),
        msgspec.json.encode(ROW | {"count": -5}),
        msgspec.json.encode(ROW)[:-1] + b',"tenant":"\xff\xfe"}',
        msgspec.json.encode(ROW)[:-1] + b',"more":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    ],
)
async def test_a_row_that_is_no_decision_never_gets_into_the_ledger(server, row):
    agent = await applied(server)
    with pytest.raises(errors.InvalidInput):
        await report(agent, ROW, row)
    await report(agent, ROW | {"unheard_of": 1})
    shown = eastwest("decisions", "--data", server.data, "--json")
    assert shown.returncode == 0, shown.stderr
    (kept,) = json.loads(shown.stdout)["decisions"]
    assert kept["service"] == "orders"
    assert "unheard_of" not in kept
    agent.close()


async def test_a_loss_beyond_counting_leaves_the_ledger_readable(server):
    agent = await applied(server)
    for lost in ((1 << 63) - 1, (1 << 64) - 1, -1):
        with pytest.raises(errors.InvalidInput):
            await report(agent, ROW, LOST | {"count": lost})
    for _ in range(3):
        await report(agent, ROW, LOST | {"count": 1 << 32})
    shown = eastwest("decisions", "--data", server.data, "--json")
    assert shown.returncode == 0, shown.stderr
    told = json.loads(shown.stdout)
    assert len([row for row in told["decisions"] if row.get("kind") != "lost"]) == 3
    assert told["lost"] == 3 << 32
    agent.close()


async def test_a_stranger_is_refused_before_its_request_is_read(server):
    """The parts of a message cost many times its bytes, so a certificate is asked for before it is taken."""
    agent = await server.join()
    stranger = Channel(
        host="127.0.0.1", port=server.port, tls=client_context(agent.roots), check=expect_server(server_id(server))
    )
    for service, name in ((SVID, "BatchNewX509SVID"), (AGENT, "RenewAgent"), (CONTROL, "ReportDecisions")):
        with pytest.raises(errors.Unauthenticated):
            async with stranger.stream(method(service, name), deadline=10) as call:
                await call.send_request()
                await call.recv_message()
                await call.recv_trailing_metadata()
    stranger.close()
    agent.close()


async def test_a_report_that_is_too_large_ends_the_subscription_with_its_reason(server):
    """An agent that took such an end for a good one would come back with the same report, or fall over it."""
    agent = await server.join()
    flood = control.SubscribeRequest(ack=control.Ack(sidecars=[control.SidecarStatus(error="e" * MAX_ACK)]))
    with pytest.raises(errors.Exhausted, match=f"at most {MAX_ACK}"):
        async with agent.channel.stream(SUBSCRIBE, deadline=20) as stream:
            await stream.send_message(HELLO)
            assert (await stream.recv_message()).full
            await stream.send_message(flood)
            assert await stream.recv_message() is None
            with suppress(errors.Error):
                await stream.recv_trailing_metadata()
    agent.close()


@asynccontextmanager
async def whole_agent(server, tmp_path):
    """A whole agent of ours as a process, and a channel that shows the same certificate."""
    async with server.admin() as admin:
        token = (await admin.create_join_token()).value
        roots = [authority.asn1 for authority in (await admin.bundle()).x509_authorities]
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(eastwest("bundle", "show", "--data", server.data).stdout)
    place = tmp_path / "node"
    words = ["agent", "run", "--data", place, "--server", f"127.0.0.1:{server.port}", "--bundle", bundle]
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "eastwest.cli.main", *map(str, words), "--join-token", token),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(60):
            assert b"agent ready" in await running.stdout.readline()
        chain = (place / "agent" / "svid.pem").read_bytes()
        for key in (place / "agent" / "keys").iterdir():
            with suppress(ssl.SSLError):
                tls = client_context(roots, chain, key.read_bytes())
                break
        rival = Channel(host="127.0.0.1", port=server.port, tls=tls, check=expect_server(server_id(server)))
        yield running, rival
        rival.close()
    finally:
        if running.returncode is None:
            running.terminate()
        async with asyncio.timeout(20):
            await running.communicate()


async def test_an_agent_outlives_a_rival_with_its_certificate(server, tmp_path):
    async with whole_agent(server, tmp_path) as (agent, rival):
        for _ in range(2):
            with pytest.raises(errors.Unavailable, match="another subscription of spiffe://"):
                async with rival.stream(SUBSCRIBE, deadline=30) as stream:
                    await stream.send_message(HELLO)
                    while await stream.recv_message() is not None:
                        pass
                    await stream.recv_trailing_metadata()
        # It has come back each time.
        assert agent.returncode is None
        async with server.admin() as admin:
            assert (await admin.status()).agents_connected == 1
