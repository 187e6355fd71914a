"""A server with a ledger of fixed rows, as the pages about it show."""

import json
import sqlite3
import tempfile
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from server_process import ServerProcess

from eastwest.api.eastwest.control.v1 import control_pb2 as control
from eastwest.ledger.record import Decision, Lost, LostReason
from eastwest.policy.enforcement import DecisionCode, MtlsMode, Verdict
from eastwest.rpc.client import method

TD = "shop.example"
REPORT = method(control.DESCRIPTOR.services_by_name["Control"], "ReportDecisions")
BEGIN = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
WEB, JOBS, RIVAL = (f"spiffe://{TD}/dev/{name}" for name in ("shop/web", "pay/jobs", "shop/rival"))


def _service(name, domain, port):
    return f"""
service: {name}
workload: spiffe://{TD}/dev/{domain}/{name}
owner: group:{domain}
domain: {domain}
listen: {{port: {port}, protocol: http, mtls: strict}}
upstream: {{unix: /tmp/{name}.sock}}
operations:
  - {{name: "{name}:all:read", match: {{method: GET, path: /all}}, sensitivity: read}}
"""


ESTATE = {
    "estate.yaml": f"""
trust_domain: {TD}
environments: [{{name: dev, kind: vm}}]
domains: [{{name: shop, owners: [group:shop]}}, {{name: pay, owners: [group:pay]}}]
node_groups: [{{name: left, environment: dev, selectors: ["join_token:group:left"]}}]
""",
    "workloads/all.yaml": "workloads:\n"
    + "".join(
        f"""  - {{spiffe_id: spiffe://{TD}/dev/{domain}/{name}, environment: dev, domain: {domain},
     owner: group:{domain}, node: group:left, selectors: ["unix:uid:{uid}"], profile: workload}}
"""
        for uid, (domain, name) in enumerate(
            [("shop", "orders"), ("shop", "web"), ("pay", "billing"), ("pay", "jobs")], 1
        )
    ),
    "services/orders.yaml": _service("orders", "shop", 1),
    "services/billing.yaml": _service("billing", "pay", 2),
}


def call(second, caller, service, count=1, **fields):
    """A call that was allowed, unless the fields say otherwise."""
    code = fields.pop("code", "ALLOWED")
    return Decision(
        time=BEGIN + timedelta(seconds=second),
        service=service,
        caller=caller,
        operation=fields.pop("operation", f"{service}:all:read"),
        method=fields.pop("method", "GET"),
        verdict=Verdict.ALLOW if code == "ALLOWED" else Verdict.DENY,
        code=DecisionCode(code),
        mode=MtlsMode.STRICT,
        enforced=True,
        count=count,
        **fields,
    )


ROWS = (
    call(0, WEB, "orders", 412, policy="orders-read"),
    call(0, JOBS, "orders", 3, policy="orders-read"),
    call(60, WEB, "orders", 388, policy="orders-read"),
    call(60, JOBS, "billing", 20, policy="billing-jobs"),
    call(61, WEB, "billing", code="OPERATION_NOT_PERMITTED", reference="9c1f", first=True),
    call(75, WEB, "billing", code="OPERATION_NOT_PERMITTED", reference="9c20"),
    call(80, RIVAL, "orders", code="CERTIFICATE_REFUSED", cause="expired", claimed=True, operation="", method=""),
    Lost(time=BEGIN, until=BEGIN + timedelta(seconds=9), count=2, cause=LostReason.SPOOL_FULL),
)


@asynccontextmanager
async def serving(settings: str = ""):
    """A server below a short path with these rows reported, nothing sealed unless settings say so."""
    with tempfile.TemporaryDirectory(prefix="ewl-", dir="/tmp") as name:
        server = ServerProcess(Path(name) / "data", TD)
        server.init()
        config = server.data / "server" / "server.toml"
        config.write_text(config.read_text() + settings)
        server.start()
        try:
            async with server.admin() as admin:
                await admin.apply_estate({name: text.encode() for name, text in ESTATE.items()})
            yield server
        finally:
            server.kill()


async def report(server, *rows):
    """Let a node's agent tell the server of these rows."""
    agent = await server.join(group="left")
    body = msgspec.json.encode(rows)
    await agent.channel.unary(REPORT, control.ReportDecisionsRequest(decisions=body, spool="ab" * 16, sequence=1))
    agent.close()


def all_sealed(server):
    """Whether every row is in a segment that the log has."""
    with closing(sqlite3.connect(f"file:{server.data}/server/ledger/hot.db?mode=ro", uri=True)) as connection:
        [waiting] = connection.execute("SELECT COUNT(*) FROM decisions").fetchone()
        [last] = connection.execute("SELECT COALESCE(MAX(last), 0) FROM segments WHERE state = 'sealed'").fetchone()
    return not waiting and last == len(ROWS)


def told(done):
    """The JSON that a command printed."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
