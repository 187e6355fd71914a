"""What administrators see of the ledger: all of it, or the rows of services and callers within their limits."""

import msgspec
import pytest

from eastwest.api.eastwest.admin.v1 import admin_pb2 as pb
from eastwest.api.eastwest.mtls.v1 import mtls_pb2
from eastwest.errors import InvalidInput, PermissionDenied
from eastwest.ledger.query import DecisionQuery, Scope
from eastwest.policy.estate import Right
from eastwest.policy.load import load_estate
from eastwest.registry.administrators import Administrator, Grant, full
from eastwest.server.config import LedgerSettings
from eastwest.server.journal import Journal
from eastwest.server.ledger.keeper import Ledger
from eastwest.server.ledger.service import DecisionQueries, scope_of
from eastwest.server.mtls.service import MtlsService
from eastwest.testing import FakeClock
from eastwest.testing.ledgers import decision
from eastwest.testing.log import MemoryLog

TD = "saas.example"


def service(name, domain):
    return f"""
service: {name}
workload: spiffe://{TD}/dev/{domain}/{name}
owner: group:{domain}
domain: {domain}
listen: {{port: 1, protocol: http, mtls: strict}}
upstream: {{unix: /tmp/{name}.sock}}
operations:
  - {{name: "{name}:all:read", match: {{method: GET, path: /all}}, sensitivity: read}}
""".encode()


WORKLOADS = [("shop", "orders"), ("shop", "web"), ("pay", "billing"), ("pay", "jobs")]
ESTATE = load_estate(
    {
        "estate.yaml": f"""
trust_domain: {TD}
environments: [{{name: dev, kind: vm}}]
domains: [{{name: shop, owners: [group:shop]}}, {{name: pay, owners: [group:pay]}}]
node_groups: [{{name: left, environment: dev, selectors: ["join_token:group:left"]}}]
""".encode(),
        "workloads/all.yaml": "".join(
            [
                "workloads:\n",
                *(
                    f"  - {{spiffe_id: spiffe://{TD}/dev/{domain}/{name}, environment: dev, domain: {domain}, "
                    f"owner: group:{domain}, node: group:left, selectors: ['unix:uid:{uid}'], profile: workload}}\n"
                    for uid, (domain, name) in enumerate(WORKLOADS, 1)
                ),
            ]
        ).encode(),
        "services/orders.yaml": service("orders", "shop"),
        "services/billing.yaml": service("billing", "pay"),
    }
)
IDS = {name: f"spiffe://{TD}/dev/{domain}/{name}" for domain, name in WORKLOADS}


def administrator(*grants):
    return Administrator("unix:uid:7", grants)


def limited(**limits):
    return Grant(frozenset({Right.POLICIES}), **limits)


def test_who_has_a_right_without_limits_sees_everything():
    assert scope_of(full("unix:uid:0"), ESTATE) is None
    assert scope_of(administrator(Grant(frozenset({Right.READ}))), ESTATE) is None
    assert (
        scope_of(administrator(limited(domains=frozenset({"pay"})), Grant(frozenset({Right.TOKENS}))), ESTATE) is None
    )


@pytest.mark.parametrize(
    ("limits", "services", "callers"),
    [
        ({"domains": frozenset({"pay"})}, {"billing"}, {"billing", "jobs"}),
        ({"environments": frozenset({"dev"})}, {"billing", "orders"}, set(IDS)),
        ({"environments": frozenset({"prod"})}, set(), set()),
        ({"spiffe_ids": (f"spiffe://{TD}/dev/shop/*",)}, {"orders"}, {"orders", "web"}),
        ({"domains": frozenset({"pay"}), "spiffe_ids": (f"spiffe://{TD}/dev/shop/*",)}, set(), set()),
        ({"nodes": ("group:left",)}, set(), set()),
        ({"dns": ("*.example",)}, set(), set()),
    ],
)
def test_limits_are_of_services_and_callers_within(limits, services, callers):
    scope = scope_of(administrator(limited(**limits)), ESTATE)
    assert set(scope.services) == services
    assert set(scope.callers) == {IDS[name] for name in callers}


def test_several_limited_rights_add_up_and_before_an_estate_nothing_is_seen():
    both = administrator(limited(domains=frozenset({"pay"})), limited(domains=frozenset({"shop"})))
    assert set(scope_of(both, ESTATE).services) == {"billing", "orders"}
    assert scope_of(both, None) == Scope()


class GateFor:
    """Lets one administrator in."""

    def __init__(self, who):
        self._who = who

    async def administrator(self, _call):
        return self._who


class Collected:
    """The caller's end of a stream."""

    def __init__(self):
        self.sent = b""

    async def send(self, reply):
        self.sent += reply.piece


@pytest.fixture
async def ledger(tmp_path):
    clock, log = FakeClock(), MemoryLog()
    made = await Ledger.open(
        tmp_path / "ledger",
        trust_domain=TD,
        settings=LedgerSettings(),
        max_rows=1000,
        log=log,
        journal=Journal(log, clock),
        clock=clock,
    )
    rows = [
        decision(1, service="orders", caller=IDS["web"]),
        decision(2, service="orders", caller=IDS["jobs"]),
        decision(3, service="billing", caller=IDS["web"]),
        decision(4, service="orders", caller=IDS["jobs"], claimed=True, verdict="deny"),
    ]
    await made.add("agent", "s", 1, rows)
    yield made
    await made.close()


async def test_every_question_is_held_to_the_scope_whatever_the_query_says(ledger):
    payer = administrator(limited(domains=frozenset({"pay"})))
    handlers = DecisionQueries(ledger, lambda: ESTATE, GateFor(payer)).handlers()
    wide = msgspec.json.encode(DecisionQuery(scope=Scope(services=("orders",), callers=tuple(IDS.values()))))
    seen = [2, 3]
    for request in (pb.ListDecisionsRequest(query=wide), pb.ListDecisionsRequest()):
        reply = await handlers["ListDecisions"](request, None)
        assert [row["row"] for row in msgspec.json.decode(reply.decisions)] == seen
        assert reply.lost == 0
    reply = await handlers["CountDecisions"](pb.CountDecisionsRequest(query=wide, by="edges"), None)
    assert [(row["caller"], row["service"]) for row in msgspec.json.decode(reply.rows)] == [
        (IDS["jobs"], "orders"),
        (IDS["web"], "billing"),
    ]
    reply = await handlers["CountDecisions"](pb.CountDecisionsRequest(query=wide, by="service"), None)
    assert sum(row["count"] for row in msgspec.json.decode(reply.rows)) == 2
    collected = Collected()
    await handlers["ExportDecisions"](pb.ExportDecisionsRequest(query=wide, format="jsonl"), collected)
    assert [msgspec.json.decode(line)["row"] for line in collected.sent.splitlines()] == seen


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"scpoe": null}', b'{"after": -1}', b"\xff", b" " * 300_000])
async def test_a_malformed_query_is_refused(ledger, raw):
    handlers = DecisionQueries(ledger, lambda: ESTATE, GateFor(full("unix:uid:0"))).handlers()
    with pytest.raises(InvalidInput):
        await handlers["ListDecisions"](pb.ListDecisionsRequest(query=raw), None)


async def test_who_would_break_is_refused_where_it_may_not_be_seen():
    """No answer would read as nobody: `eastwest mtls who-breaks` would exit with 0."""

    class Only:
        """The parts that are asked: the estate in force, who asks, and reports that are never made here."""

        intended = ESTATE
        version = "v"

        async def administrator(self, _call):
            return administrator(limited(domains=frozenset({"shop"})))

        def enter(self, _call):
            raise AssertionError

        def service(self, name):
            return next(one for one in ESTATE.services if one.service == name)

        async def of(self, services, *_window):
            assert [one.service for one in services] == ["orders"]
            services.clear()
            return []

    only = Only()
    mtls = MtlsService(only, only, None, FakeClock(), only)
    with pytest.raises(PermissionDenied, match="billing"):
        await mtls._get_reports(mtls_pb2.GetReportsRequest(service="billing"), None)
    seen = await mtls._get_reports(mtls_pb2.GetReportsRequest(service="orders"), None)
    assert seen.reports == b"[]"
