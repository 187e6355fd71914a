"""Which rows brake, whoever tells of them, and what has to be looked up."""

from datetime import UTC, datetime

import msgspec
import pytest

from eastwest.ledger.record import Decision
from eastwest.policy.cells import Memory
from eastwest.policy.enforcement import DecisionCode, MtlsMode, Verdict
from eastwest.policy.load import load_estate
from eastwest.policy.rollout import Progress
from eastwest.policy.table import compile_estate
from eastwest.server.rollout.brake import Brake
from eastwest.server.tables import Table, Tables
from eastwest.spiffe.id import SpiffeId

AGENT = SpiffeId.parse("spiffe://td.test/spire/agent/a")
WEB, SHOP = "spiffe://td.test/prod/one/web", "spiffe://td.test/prod/one/shop"
ROW = Decision(
    time=datetime.now(UTC),
    service="shop",
    verdict=Verdict.DENY,
    code=DecisionCode.OPERATION_NOT_PERMITTED,
    mode=MtlsMode.STRICT,
    enforced=True,
    caller=WEB,
    operation="shop:items:write",
    method="POST",
    source="192.0.2.1",
)


def files(*may: str, mode: str = "strict", demands: str = "", rollout: str = "{rings: [{name: all, share: 100}]}"):
    rows = "".join(
        f"""
  - {{spiffe_id: {one}, environment: prod, domain: one, owner: "group:x", node: "group:machines",
     selectors: ["unix:uid:{uid}"], profile: workload}}"""
        for uid, one in enumerate((WEB, SHOP))
    )
    until = ", until: 2099-01-01" if mode == "permissive" else ""
    said = {
        "estate.yaml": f"""
trust_domain: td.test
environments: [{{name: prod, kind: vm}}]
domains: [{{name: one, owners: ["group:x"]}}, {{name: two, owners: ["group:x"]}}]
node_groups: [{{name: machines, environment: prod, selectors: ["join_token:group:machines"]}}]
rollout: {rollout}
""",
        "workloads/all.yaml": f"workloads:{rows}\n",
        "services/shop.yaml": f"""
service: shop
workload: {SHOP}
owner: group:x
domain: one
listen: {{port: 8443, protocol: http, mtls: {mode}{until}}}
upstream: {{unix: /run/shop.sock}}
operations:
  - {{name: "shop:items:read", match: {{method: GET, path: /items}}, sensitivity: read}}
  - {{name: "shop:items:write", match: {{method: POST, path: /items}}, sensitivity: read{demands}}}
""",
        "policies/all.cedar": "".join(
            f'@id("{verb}") @owner("group:x") @reason("r")\n'
            f'permit (principal == Workload::"{WEB}", action == Action::"shop:items:{verb}", resource);\n'
            for verb in may
        ),
    }
    return {name: text.encode() for name, text in said.items()}


async def tables(before, after, breaks=()) -> Tables:
    made = Tables()
    old, new = (Table(one, compile_estate(one), Memory()) for one in map(load_estate, (before, after)))
    progress = Progress(
        version=new.version,
        previous=old.version,
        plan=new.estate.settings.rollout,
        started=9e9,
        since=9e9,
        breaks=breaks,
    )
    await made.replace(new, old, progress, ())
    return made


class Record:
    """A ledger that answers with the same rows; counts questions."""

    def __init__(self, *rows) -> None:
        self.rows = [msgspec.to_builtins(row) for row in rows]
        self.asked = []

    async def search(self, query):
        self.asked.append(query)
        return self.rows


def told(made: Tables, row: Decision) -> Decision:
    return msgspec.structs.replace(row, policy_version=made.newest.version)


async def test_only_denials_that_the_new_rules_make_count_whoever_tells_of_them():
    made = await tables(files("read", "write"), files("read"))
    brake = Brake(made, Record().search)
    [suspect] = brake.suspects(AGENT, [told(made, ROW)])
    assert await brake.confirm(suspect)
    forged = msgspec.structs.replace(ROW, operation="shop:items:read", method="GET")
    assert brake.suspects(AGENT, [told(made, forged)]) == []
    accepted = await tables(files("read", "write"), files("read"), ((WEB, "shop", "shop:items:write"),))
    assert Brake(accepted, Record().search).suspects(AGENT, [told(accepted, ROW)]) == []


@pytest.mark.parametrize("worked", [True, False])
async def test_where_the_row_has_too_little_the_record_decides(worked):
    """The new rules forbid what took a token, and do not look whether one came."""
    demands = ", demands: [step-up]"
    made = await tables(files("read", "write", demands=demands), files("read", demands=demands))
    row = msgspec.structs.replace(ROW, code=DecisionCode.OPERATION_NOT_PERMITTED)
    allowed = msgspec.structs.replace(row, verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, token=True)
    record = Record(*([allowed] if worked else []))
    brake = Brake(made, record.search)
    [suspect] = brake.suspects(AGENT, [told(made, row)])
    assert await brake.confirm(suspect) is worked
    assert record.asked[0].verdict == "allow"


async def test_a_flood_of_one_stranger_is_looked_up_once():
    made = await tables(files("read", mode="permissive"), files("read"))
    record = Record()
    brake = Brake(made, record.search)
    plain = msgspec.structs.replace(
        ROW, caller="", operation="", code=DecisionCode.MTLS_REQUIRED, path="/items", peer="uid:33"
    )
    flood = brake.suspects(AGENT, [told(made, plain)] * 50)
    assert [await brake.confirm(one) for one in flood] == [False] * 50
    assert len(record.asked) == 1


async def test_rules_by_which_tokens_are_made_are_those_that_points_have():
    other = "{rings: [{name: first, domains: [two]}]}"
    some = "{rings: [{name: first, share: 50}]}"
    before, after = files("read", "write"), files("read")
    old, new = (compile_estate(load_estate(one)).sidecars[SHOP] for one in (before, after))
    made = await tables(before, files("read", rollout=other))
    holding, beside = made.holding()
    assert (holding[SHOP].inbound, beside) == (old.inbound, {})
    made.progress = msgspec.structs.replace(made.progress, ring=1)
    assert made.holding()[0][SHOP].inbound == new.inbound
    made = await tables(before, files("read", rollout=some))
    holding, beside = made.holding()
    assert (holding[SHOP].inbound, beside[SHOP].inbound) == (new.inbound, old.inbound)
