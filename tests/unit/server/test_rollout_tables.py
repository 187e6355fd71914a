"""Who gets which rules while a change rolls out, and what an agent gets that can do less."""

import msgspec
import pytest

from eastwest.policy.cells import Memory
from eastwest.policy.load import load_estate
from eastwest.policy.rollout import Progress
from eastwest.policy.table import compile_estate
from eastwest.server.tables import Table, Tables, differ
from eastwest.spiffe.id import SpiffeId

AGENT = SpiffeId.parse("spiffe://td.test/spire/agent/a")
ONE, TWO, NEW = (SpiffeId.parse(f"spiffe://td.test/prod/{name}") for name in ("one/web", "two/db", "one/new"))


def estate(*workloads: SpiffeId):
    rows = "".join(
        f"""
  - spiffe_id: {one}
    environment: prod
    domain: {one.path.split("/")[2]}
    owner: group:x
    node: group:machines
    selectors: ["unix:uid:{uid}"]
    profile: workload
"""
        for uid, one in enumerate(workloads)
    )
    text = """
trust_domain: td.test
environments: [{name: prod, kind: vm}]
domains: [{name: one, owners: ["group:x"]}, {name: two, owners: ["group:x"]}]
node_groups: [{name: machines, environment: prod, selectors: ["join_token:group:machines"]}]
rollout: {rings: [{name: first, domains: [one]}]}
"""
    service = f"""
service: db
workload: {TWO}
owner: group:x
domain: two
listen: {{port: 5432, protocol: tcp, mtls: strict}}
upstream: {{unix: /run/db.sock}}
operations: [{{name: "db:sessions:open", match: {{tcp: true}}, sensitivity: read}}]
"""
    files = {"estate.yaml": text, "workloads/all.yaml": f"workloads:{rows}", "services/db.yaml": service}
    return load_estate({name: said.encode() for name, said in files.items()})


@pytest.fixture
async def tables():
    made, memory = Tables(), Memory()
    before, after = (Table(one, compile_estate(one), memory) for one in (estate(ONE, TWO), estate(ONE, TWO, NEW)))
    assert differ(before, after)
    progress = Progress(
        version=after.version, previous=before.version, plan=after.estate.settings.rollout, started=0, since=0
    )
    await made.replace(after, before, progress, ())
    return made, before.version, after.version


async def test_points_that_are_not_reached_keep_the_rules_before(tables):
    made, before, after = tables
    given = {one: made.given(AGENT, one) for one in (ONE, TWO, NEW)}
    assert {one: found.version for one, found in given.items()} == {ONE: after, TWO: before, NEW: after}
    assert str(NEW) not in given[TWO].config.compiled.known_callers
    # An agent that knows one version for all of its sidecars is in the last ring; what is new has nothing to keep.
    last = {one: made.given(AGENT, one, last=True).version for one in (ONE, TWO, NEW)}
    assert last == {ONE: before, TWO: before, NEW: after}
    made.progress = msgspec.structs.replace(made.progress, ring=1)
    assert {made.given(AGENT, one, last=old).version for one in (ONE, TWO, NEW) for old in (True, False)} == {after}


async def test_without_a_rollout_everybody_has_the_newest(tables):
    made, _, after = tables
    await made.replace(made.newest, None, made.progress, ())
    assert {made.given(AGENT, one).version for one in (ONE, TWO, NEW)} == {after}
    assert made.given(AGENT, SpiffeId.parse("spiffe://td.test/nobody")) is None
