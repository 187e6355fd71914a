"""A server with an estate, a week of calls that it has on record, and a candidate, as the pages about impact show."""

import tempfile
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from ledger_world import REPORT
from server_process import ServerProcess

from eastwest.api.eastwest.control.v1 import control_pb2 as control
from eastwest.ledger.record import Lost, LostReason
from eastwest.policy.load import load_estate
from eastwest.policy.table import compile_estate
from eastwest.policy.transaction import NoToken
from eastwest.testing.recorded import Question, inbounds, recorded

TD = "shop.example"
BEGIN = datetime(2026, 11, 15, 9, 0, tzinfo=UTC)
DAYS = 8
WEB, ADMIN, JOBS, NOBODY = (f"spiffe://{TD}/dev/{name}" for name in ("shop/web", "shop/admin", "pay/jobs", "shop/old"))


def _workload(uid, name, attributes=""):
    domain = name.partition("/")[0]
    return f"""  - {{spiffe_id: spiffe://{TD}/dev/{name}, environment: dev, domain: {domain}, owner: group:{domain},
     node: group:left, selectors: ["unix:uid:{uid}"], profile: workload{attributes}}}
"""


ESTATE = {
    "estate.yaml": f"""
trust_domain: {TD}
environments: [{{name: dev, kind: vm}}]
domains: [{{name: shop, owners: [group:shop]}}, {{name: pay, owners: [group:pay]}}]
node_groups: [{{name: left, environment: dev, selectors: ["join_token:group:left"]}}]
""",
    "workloads/all.yaml": "workloads:\n"
    + _workload(1, "shop/orders")
    + _workload(2, "shop/web", ", attributes: {tenants: [acme, globex]}")
    + _workload(3, "shop/admin")
    + _workload(4, "pay/billing")
    + _workload(5, "pay/jobs", ", attributes: {tenants: [acme]}"),
    "services/billing.yaml": f"""
service: billing
workload: spiffe://{TD}/dev/pay/billing
owner: group:pay
domain: pay
listen: {{port: 2, protocol: http, mtls: strict}}
upstream: {{unix: /tmp/billing.sock}}
tenant: {{path: tenant}}
operations:
  - name: billing:invoices:list
    match: {{method: GET, path: "/t/{{tenant}}/invoices"}}
    sensitivity: restricted-read
  - name: billing:invoices:create
    match: {{method: POST, path: "/t/{{tenant}}/invoices"}}
    sensitivity: mutate
""",
    "services/orders.yaml": f"""
service: orders
workload: spiffe://{TD}/dev/shop/orders
owner: group:shop
domain: shop
listen: {{port: 1, protocol: http, mtls: strict}}
upstream: {{unix: /tmp/orders.sock}}
operations:
  - {{name: "orders:all:list", match: {{method: GET, path: /orders}}, sensitivity: read}}
  - {{name: "orders:one:cancel", match: {{method: POST, path: "/orders/{{id}}/cancel"}}, sensitivity: control}}
""",
    "policies/pay.cedar": """@id("shop-reads-invoices")
@owner("group:pay")
@reason("the shop shows invoices of the tenants it serves")
permit (principal in Domain::"shop", action == Action::"billing:invoices:list", resource == Service::"billing")
when { principal has tenants && principal.tenants.contains(context.tenant) };

@id("jobs-bill")
@owner("group:pay")
@reason("the nightly jobs write invoices")
permit (principal == Workload::"spiffe://shop.example/dev/pay/jobs", action, resource == Service::"billing");
""",
    "policies/shop.cedar": """@id("anyone-lists-orders")
@owner("group:shop")
@reason("orders are no secret")
permit (principal, action in Action::"read", resource == Service::"orders");

@id("shop-cancels")
@owner("group:shop")
@reason("the shop stops what is not paid")
permit (principal in Domain::"shop", action in Action::"control", resource == Service::"orders");
""",
}
CANDIDATE = ESTATE | {
    "policies/shop.cedar": ESTATE["policies/shop.cedar"].replace(
        "permit (principal, ", 'permit (principal in Domain::"shop", '
    ),
    "policies/pay.cedar": ESTATE["policies/pay.cedar"].replace(
        'action == Action::"billing:invoices:list"',
        'action in [Action::"billing:invoices:list", Action::"billing:invoices:create"]',
    ),
}


def rows():
    """Every day the same calls, and once a caller whom nobody knows."""
    compiled = compile_estate(load_estate({name: text.encode() for name, text in ESTATE.items()}))
    places = inbounds(compiled.sidecars)
    found = []

    def call(day, number, caller, service, method, path, count=1):
        asked = Question(caller, service, method, path, (), NoToken.MISSING, "")
        time = BEGIN + timedelta(days=day, minutes=number)
        row = recorded(places[service][0], asked, time, sensor="envoy", reference=f"d{day}-{number}")
        row = msgspec.structs.replace(row, policy_version=compiled.version)
        full = row.verdict == "deny"
        found.append(row if full else msgspec.structs.replace(row, reference="", count=count))

    for day in range(DAYS):
        call(day, 1, WEB, "orders", "GET", "/orders", 400)
        call(day, 2, JOBS, "orders", "GET", "/orders", 3)
        call(day, 3, WEB, "billing", "GET", "/t/acme/invoices", 50)
        call(day, 4, WEB, "billing", "GET", "/t/globex/invoices", 20)
        call(day, 5, JOBS, "billing", "POST", "/t/acme/invoices", 2)
        if day % 3 == 0:
            call(day, 6, WEB, "billing", "POST", "/t/acme/invoices")
    call(7, 7, WEB, "orders", "POST", "/orders/17/cancel", 2)
    call(7, 8, NOBODY, "orders", "GET", "/orders")
    return found


LOST = Lost(time=BEGIN, until=BEGIN + timedelta(seconds=9), count=2, cause=LostReason.SPOOL_FULL, service="orders")


def write(directory, files):
    """An estate as files."""
    for name, text in files.items():
        path = Path(directory) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@asynccontextmanager
async def serving():
    """A server below a short path with these rows, and the directories ``estate`` and ``candidate`` beside its data."""
    with tempfile.TemporaryDirectory(prefix="ewi-", dir="/tmp") as name:
        place = Path(name)
        server = ServerProcess(place / "data", TD)
        server.init()
        server.start()
        try:
            async with server.admin() as admin:
                await admin.apply_estate({name: text.encode() for name, text in ESTATE.items()})
            write(place / "estate", ESTATE)
            write(place / "candidate", CANDIDATE)
            agent = await server.join(group="left")
            body = msgspec.json.encode([*rows(), LOST])
            await agent.channel.unary(
                REPORT, control.ReportDecisionsRequest(decisions=body, spool="ab" * 16, sequence=1)
            )
            agent.close()
            yield server
        finally:
            server.kill()
