"""Registration on a running server: administrators by entry and by estate, controllers, waiting, explanations."""

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from server_process import EASTWEST, SVID, BareAgent, ServerProcess, eastwest, server_id

from eastwest import errors
from eastwest.api.eastwest.admin.v1 import admin_pb2
from eastwest.api.eastwest.control.v1 import control_pb2
from eastwest.api.spire.api.server.agent.v1 import agent_pb2
from eastwest.api.spire.api.server.entry.v1 import entry_pb2
from eastwest.api.spire.api.server.logger.v1 import logger_pb2
from eastwest.api.spire.api.server.svid.v1 import svid_pb2
from eastwest.api.spire.api.types import types_pb2
from eastwest.cli.admin import AdminClient
from eastwest.pki.chain import dump_chain_pem
from eastwest.pki.csr import make_csr
from eastwest.rpc.client import Channel, method
from eastwest.rpc.tls import client_context, expect_server

ENTRY = entry_pb2.DESCRIPTOR.services_by_name["Entry"]
AGENT = agent_pb2.DESCRIPTOR.services_by_name["Agent"]
CONTROL = control_pb2.DESCRIPTOR.services_by_name["Control"]
LOGGER = logger_pb2.DESCRIPTOR.services_by_name["Logger"]
ESTATE = """
trust_domain: td.test
environments: [{name: prod, kind: vm}, {name: staging, kind: vm}]
domains: [{name: shop, owners: [group:shop]}, {name: base, owners: [group:base]}]
node_groups: [{name: nodes, environment: prod, selectors: ["join_token:group:nodes"]}]
administrators:
"""
WORKLOADS = """
workloads:
  - {spiffe_id: spiffe://td.test/prod/shop/web, environment: prod, domain: shop, owner: group:shop,
     node: group:nodes, selectors: ["unix:uid:1001"], profile: workload}
  - {spiffe_id: spiffe://td.test/prod/base/dns, environment: prod, domain: base, owner: group:base,
     node: group:nodes, selectors: ["unix:uid:1002"], profile: workload}
"""
SERVICE = """
service: web
workload: spiffe://td.test/prod/shop/web
owner: group:shop
domain: shop
listen: {port: 8443, protocol: http, mtls: strict}
upstream: {tcp: "127.0.0.1:8080"}
operations:
  - {name: "web:pages:read", match: {method: GET, path: /pages}, sensitivity: read}
"""
CI = "spiffe://td.test/prod/base/ci"
GROUP = "/eastwest/group/nodes"


def spire_entry(path: str, parent: str, *selectors: str, **fields) -> types_pb2.Entry:
    return types_pb2.Entry(
        spiffe_id=types_pb2.SPIFFEID(trust_domain="td.test", path=path),
        parent_id=types_pb2.SPIFFEID(trust_domain="td.test", path=parent),
        selectors=[
            types_pb2.Selector(type=kind, value=value)
            for kind, _, value in (text.partition(":") for text in selectors or ("unix:uid:1000",))
        ],
        **fields,
    )


async def create(channel: Channel, *entries: types_pb2.Entry) -> list:
    request = entry_pb2.BatchCreateEntryRequest(entries=entries)
    return list((await channel.unary(method(ENTRY, "BatchCreateEntry"), request)).results)


def socket_channel(server: ServerProcess) -> Channel:
    return Channel(path=str(server.data / "server" / "api.sock"))


async def workload_channel(server: ServerProcess, agent: BareAgent, entry_id: str) -> Channel:
    """The agents' port as called by a workload: with an SVID that was issued under one entry."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = make_csr(key, server.trust_domain.id("/any"))
    params = [svid_pb2.NewX509SVIDParams(entry_id=entry_id, csr=csr)]
    reply = await agent.channel.unary(method(SVID, "BatchNewX509SVID"), svid_pb2.BatchNewX509SVIDRequest(params=params))
    assert reply.results[0].status.code == 0, reply.results[0].status.message
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    tls = client_context(agent.roots, dump_chain_pem(reply.results[0].svid.cert_chain), pem)
    return Channel(host="127.0.0.1", port=server.port, tls=tls, check=expect_server(server_id(server)))


def write_estate(folder: Path, *administrators: str, workloads: str = WORKLOADS) -> Path:
    (folder / "workloads").mkdir(parents=True, exist_ok=True)
    rows = "".join(f"  - {row}\n" for row in ('{who: "unix:uid:0", may: [everything]}', *administrators))
    (folder / "estate.yaml").write_text(ESTATE + rows)
    (folder / "workloads" / "all.yaml").write_text(workloads)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.yaml")}


async def test_admin_rights_come_from_the_entry_and_not_from_its_id(server):
    agent = await server.join()
    local = socket_channel(server)
    twins = await create(
        local,
        spire_entry("/boss", agent.id.path, "unix:uid:1", admin=True),
        spire_entry("/boss", agent.id.path, "unix:uid:2"),
    )
    admin_id, plain_id = (result.entry.id for result in twins)
    boss = await workload_channel(server, agent, admin_id)
    twin = await workload_channel(server, agent, plain_id)
    [made] = await create(boss, spire_entry("/made", agent.id.path))
    assert made.status.code == 0
    for name, request in (
        ("BatchCreateEntry", entry_pb2.BatchCreateEntryRequest(entries=[spire_entry("/x", agent.id.path)])),
        ("ListEntries", entry_pb2.ListEntriesRequest()),
        ("SyncAuthorizedEntries", entry_pb2.SyncAuthorizedEntriesRequest()),
    ):
        with pytest.raises(errors.PermissionDenied, match="is no administrator"):
            await twin.unary(method(ENTRY, name), request)
    # Agents administer nothing, and an administrator is no agent.
    with pytest.raises(errors.PermissionDenied, match="not for agents"):
        await agent.channel.unary(method(ENTRY, "ListEntries"), entry_pb2.ListEntriesRequest())
    with pytest.raises(errors.PermissionDenied):
        await boss.unary(method(ENTRY, "GetAuthorizedEntries"), entry_pb2.GetAuthorizedEntriesRequest())
    # The rights survive a restart, and end with the entry's flag.
    server.stop()
    server.start()
    agent.reconnect()
    boss.close()
    local.close()
    local = socket_channel(server)
    boss = await workload_channel(server, agent, admin_id)
    listed = await boss.unary(method(ENTRY, "ListEntries"), entry_pb2.ListEntriesRequest())
    assert {entry.spiffe_id.path for entry in listed.entries} == {"/boss", "/made"}
    change = entry_pb2.BatchUpdateEntryRequest(
        entries=[types_pb2.Entry(id=admin_id, admin=False)], input_mask=types_pb2.EntryMask(admin=True)
    )
    assert (await local.unary(method(ENTRY, "BatchUpdateEntry"), change)).results[0].status.code == 0
    with pytest.raises(errors.PermissionDenied, match="is no administrator"):
        await boss.unary(method(ENTRY, "ListEntries"), entry_pb2.ListEntriesRequest())
    for channel in (boss, twin, local):
        channel.close()
    agent.close()


async def test_a_scoped_administrator_at_every_door(server, tmp_path):
    row = f'{{who: "{CI}", may: [workloads], domains: [shop], environments: [prod]}}'
    folder = write_estate(tmp_path / "estate", row)
    assert eastwest("apply", folder, "--data", server.data).returncode == 0
    agent = await server.join(group="nodes")
    local = socket_channel(server)
    [ci] = await create(local, spire_entry("/prod/base/ci", GROUP, "unix:uid:7"))
    port = await workload_channel(server, agent, ci.entry.id)

    good, bad = await create(port, spire_entry("/prod/shop/new", GROUP), spire_entry("/prod/base/new", GROUP))
    assert good.status.code == 0, good.status.message
    assert bad.status.code == 7
    assert "may not register spiffe://td.test/prod/base/new" in bad.status.message
    assert "it may change workloads of domain shop, environment prod" in bad.status.message
    [own] = await create(port, spire_entry("/prod/shop/boss", GROUP, admin=True))
    assert own.status.code == 7

    admin = AdminClient(port)
    [listed] = await admin.entries(admin_pb2.ListEntriesRequest(managed_by="api:" + CI))
    assert (listed.entry.id, listed.environment) == (good.entry.id, "prod")
    deletion = entry_pb2.BatchDeleteEntryRequest(ids=[ci.entry.id, good.entry.id])
    gone = await port.unary(method(ENTRY, "BatchDeleteEntry"), deletion)
    assert [result.status.code for result in gone.results] == [7, 0]

    for name, request in (
        ("BanAgent", agent_pb2.BanAgentRequest(id=types_pb2.SPIFFEID(trust_domain="td.test", path=agent.id.path))),
        ("CreateJoinToken", agent_pb2.CreateJoinTokenRequest(ttl=60)),
    ):
        with pytest.raises(errors.PermissionDenied, match="it needs the right"):
            await port.unary(method(AGENT, name), request)
    with pytest.raises(errors.PermissionDenied, match="it needs the right tokens"):
        await admin.create_join_token(group="nodes")
    with pytest.raises(errors.PermissionDenied, match="it needs the right mint"):
        csr = make_csr(ec.generate_private_key(ec.SECP256R1()), server.trust_domain.id("/prod/shop/x"))
        await port.unary(method(SVID, "MintX509SVID"), svid_pb2.MintX509SVIDRequest(csr=csr))

    theirs = write_estate(tmp_path / "a", row, workloads=WORKLOADS.replace("uid:1001", "uid:2001"))
    assert (await admin.plan_estate(files_of(theirs))).refusal == ""
    await admin.apply_estate(files_of(theirs))
    for others in (
        write_estate(tmp_path / "b", row, workloads=WORKLOADS.replace("uid:1002", "uid:0")),
        write_estate(tmp_path / "c", row, f'{{who: "{CI}", may: [everything]}}'),
    ):
        told = (await admin.plan_estate(files_of(others))).refusal
        with pytest.raises(errors.PermissionDenied) as caught:
            await admin.apply_estate(files_of(others))
        assert told
        assert str(caught.value) == told
    for channel in (port, local):
        channel.close()
    agent.close()


async def test_estate_api_and_controller_are_told_apart(server, tmp_path):
    row = '{who: "spiffe://td.test/prod/base/ci", may: [workloads], controller: k8s}'
    folder = write_estate(tmp_path / "estate", row)
    assert eastwest("apply", folder, "--data", server.data).returncode == 0
    agent = await server.join(group="nodes")
    local = socket_channel(server)
    [ci] = await create(local, spire_entry("/prod/base/ci", GROUP, "unix:uid:7"))
    controller = await workload_channel(server, agent, ci.entry.id)
    [made] = await create(controller, spire_entry("/prod/shop/pod", GROUP, "k8s:ns:shop"))
    assert made.status.code == 0, made.status.message

    # A controller deletes what it lists and did not make: it is shown its own, and can delete nothing else.
    listed = await controller.unary(method(ENTRY, "ListEntries"), entry_pb2.ListEntriesRequest())
    assert [entry.id for entry in listed.entries] == [made.entry.id]
    everything = await local.unary(method(ENTRY, "ListEntries"), entry_pb2.ListEntriesRequest())
    ids = [entry.id for entry in everything.entries]
    assert len(ids) == 5
    request = entry_pb2.BatchDeleteEntryRequest(ids=[i for i in ids if i != made.entry.id])
    refused = await controller.unary(method(ENTRY, "BatchDeleteEntry"), request)
    assert {result.status.code for result in refused.results} == {7, 9}

    def kept(*filters: str) -> list[str]:
        shown = eastwest("entry", "show", "--data", server.data, "--json", *filters)
        return sorted(entry["managed_by"] for entry in json.loads(shown.stdout)["entries"])

    me = f"api:unix:uid:{os.geteuid()}"
    assert kept() == [me, "controller:k8s", *["estate"] * 3]
    assert kept("--managed-by", "controller") == ["controller:k8s"]
    assert kept("--managed-by", me) == [me]

    smaller = write_estate(
        tmp_path / "smaller", row, workloads=WORKLOADS[: WORKLOADS.index("  - {spiffe_id: spiffe://td.test/prod/base")]
    )
    planned = eastwest("plan", smaller, "--data", server.data)
    assert "registrations: 0 new, 0 changed, 1 deleted" in planned.stdout
    assert f"which apply never touches: 1 by {me}, 1 by controller:k8s" in planned.stdout
    assert eastwest("apply", smaller, "--data", server.data).returncode == 0
    assert kept() == [me, "controller:k8s", *["estate"] * 2]
    theirs = next(e.id for e in everything.entries if e.spiffe_id.path == "/prod/shop/web")
    refused = eastwest("entry", "delete", "--data", server.data, theirs)
    assert refused.returncode == 1
    assert "change the workload there and run eastwest apply" in refused.stderr
    for channel in (controller, local):
        channel.close()
    agent.close()


async def test_names_and_selectors_are_judged_at_every_door(server, tmp_path):
    folder = write_estate(tmp_path / "estate")
    assert eastwest("apply", folder, "--data", server.data).returncode == 0
    local = socket_channel(server)
    cases = [
        (spire_entry("/prod/shpo/x", GROUP), "write spiffe://td.test/prod/shop/x"),
        (spire_entry("/prod/shop/x", GROUP, "unix:udi:1"), "did you mean unix:uid:VALUE?"),
        (spire_entry("/prod/shop/x", GROUP, "unx:uid:1"), "did you mean unix:...?"),
    ]
    for result, (_, told) in zip(await create(local, *(entry for entry, _ in cases)), cases, strict=True):
        assert result.status.code == 3
        assert told in result.status.message
    given = ["--spiffe-id", "spiffe://td.test/prod/shpo/x", "--parent-id", f"spiffe://td.test{GROUP}"]
    refused = eastwest("entry", "create", "--data", server.data, *given, "--selector", "unix:uid:1")
    assert refused.returncode == 1
    assert "does not follow the naming convention" in refused.stderr
    token = agent_pb2.CreateJoinTokenRequest(ttl=60, agent_id=types_pb2.SPIFFEID(trust_domain="td.test", path="/odd"))
    with pytest.raises(errors.InvalidInput, match="does not follow the naming convention"):
        await local.unary(method(AGENT, "CreateJoinToken"), token)
    worse = write_estate(tmp_path / "worse", workloads=WORKLOADS.replace("unix:uid:1001", "unx:uid:1001"))
    applied = eastwest("apply", worse, "--data", server.data)
    assert applied.returncode == 1
    assert "did you mean unix:...?" in applied.stdout + applied.stderr
    local.close()


async def test_dry_run_wait_and_explain_with_an_agent(server, tmp_path):
    async with server.admin() as admin:
        token = await admin.create_join_token()
    bundle = eastwest("bundle", "show", "--data", server.data).stdout
    (tmp_path / "bundle.pem").write_text(bundle)
    home = tmp_path / "node"
    home.mkdir()
    parent = f"spiffe://td.test/spire/agent/join_token/{token.value}"
    command = [*EASTWEST, "agent", "run", "--data", home, "--server", f"127.0.0.1:{server.port}"]
    command += ["--join-token", token.value, "--bundle", tmp_path / "bundle.pem"]
    with (tmp_path / "agent.err").open("wb") as log:
        agent = await asyncio.create_subprocess_exec(*map(str, command), stdout=subprocess.PIPE, stderr=log)
    try:
        async with asyncio.timeout(60):
            assert b"agent ready" in await agent.stdout.readline(), (tmp_path / "agent.err").read_text()
        me = os.geteuid()

        def entry(*words: str, ok: bool = True):
            done = eastwest("entry", *words, "--json")
            assert (done.returncode == 0) == ok, done.stderr
            return json.loads(done.stdout)

        base = ["create", "--data", str(server.data), "--parent-id", parent, "--spiffe-id"]
        tried = entry(*base, "spiffe://td.test/mine", "--selector", f"unix:uid:{me}", "--dry-run", "--wait", "5")
        assert tried["results"][0]["status"] == "would be created"
        assert entry("show", "--data", str(server.data))["entries"] == []
        made = entry(*base, "spiffe://td.test/mine", "--selector", f"unix:uid:{me}", "--hint", "a", "--wait", "20")
        assert made["agents"] == {"acknowledged": [parent], "pending": [], "unknown": []}
        assert made["version"] > tried["version"]
        wrong = ["--selector", f"unix:uid:{me + 1}", "--selector", "k8s:ns:x", "--wait", "20"]
        entry(*base, "spiffe://td.test/other", *wrong)

        # What the agent says was acknowledged is what it serves by now.
        mine = eastwest("agent", "why-no-identity", "--data", home, "--pid", os.getpid(), "--json")
        told = json.loads(mine.stdout)
        assert [match["spiffe_id"] for match in told["matches"]] == ["spiffe://td.test/mine"]
        [near] = told["near"]
        assert near["spiffe_id"] == "spiffe://td.test/other"
        words = {missing["selector"]: missing["words"] for missing in near["missing"]}
        assert words["k8s:ns:x"] == "k8s:ns:x: no attestor of type k8s runs on this agent"
        assert f"the process has unix:uid:{me}" in words[f"unix:uid:{me + 1}"]
        assert f"unix:path:{Path(sys.executable).resolve()}" in told["selectors"]
        plain = eastwest("entry", "explain", "--data", home, "--pid", os.getpid())
        assert "gets spiffe://td.test/mine" in plain.stdout
        nobody = eastwest("entry", "explain", "--data", home, "--pid", 2**22 + 1)
        assert nobody.returncode == 1
        assert "there is no process" in nobody.stderr
        assert (home / "agent" / "admin.sock").stat().st_mode & 0o777 == 0o600

        asked = ["explain", "--data", str(server.data), "--node", parent, "--selector"]
        seen = entry(*asked, f"unix:uid:{me}", "--selector", "unix:gid:0")
        assert [match["spiffe_id"] for match in seen["matches"]] == ["spiffe://td.test/mine"]
        entry_id = made["results"][0]["entry"]["id"]
        changed = entry("update", "--data", str(server.data), entry_id, "--hint", "b", "--wait", "20")
        assert changed["results"][0]["entry"]["revision"] == 1
        gone = entry("delete", "--data", str(server.data), entry_id, "--wait", "20")
        assert gone["agents"]["acknowledged"] == [parent]
        assert (
            json.loads(eastwest("agent", "why-no-identity", "--data", home, "--pid", os.getpid(), "--json").stdout)[
                "matches"
            ]
            == []
        )
    finally:
        if agent.returncode is None:
            agent.terminate()
        async with asyncio.timeout(20):
            await agent.communicate()
    late = entry(*base, "spiffe://td.test/late", "--selector", "unix:uid:1", "--wait", "1")
    assert late["agents"]["unknown"] == [parent]


async def test_a_caller_registered_by_api_is_known_to_policies_at_once(server, tmp_path):
    folder = write_estate(tmp_path / "estate")
    (folder / "services").mkdir()
    (folder / "services" / "web.yaml").write_text(SERVICE)
    assert eastwest("apply", folder, "--data", server.data).returncode == 0
    agent = await server.join(group="nodes")
    async with server.admin() as admin, agent.channel.stream(method(CONTROL, "Subscribe")) as stream:
        await stream.send_message(control_pb2.SubscribeRequest(hello=control_pb2.Hello()))
        before = [resource.sidecar for resource in (await next_update(stream)).upserts if resource.HasField("sidecar")]
        assert before
        assert not any(b"prod/base/job" in data for data in before)
        entry = spire_entry("/prod/base/job", GROUP, "unix:uid:9")
        request = admin_pb2.WriteEntriesRequest(create=[admin_pb2.ManagedEntry(entry=entry, owner="group:base")])
        reply = await admin.write_entries(request)
        assert reply.results[0].status.code == 0, reply.results[0].status.message
        while True:
            after = [
                resource.sidecar for resource in (await next_update(stream)).upserts if resource.HasField("sidecar")
            ]
            if after:
                break
        assert any(b"spiffe://td.test/prod/base/job" in data for data in after)
        await stream.cancel()
    agent.close()


async def test_a_policy_that_fails_for_a_caller_registered_by_api_raises_an_alarm(server, tmp_path):
    folder = write_estate(tmp_path / "estate")
    (folder / "services").mkdir()
    (folder / "services" / "web.yaml").write_text(SERVICE)
    (folder / "policies").mkdir(exist_ok=True)
    (folder / "policies" / "late.cedar").write_text(
        '@id("fails-for-late") @owner("group:shop") @reason("the test")\n'
        "permit (principal, action, resource)\n"
        'when { if principal.owner == "group:late" then 9223372036854775807 + 1 == 0 else true };\n'
    )
    applied = eastwest("apply", folder, "--data", server.data)
    assert applied.returncode == 0, applied.stderr
    port = (server.data / "server" / "health.port").read_text().strip()

    def warnings() -> list[str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=10) as reply:
            return json.load(reply).get("warnings", [])

    assert not warnings()
    async with server.admin() as admin:
        entry = spire_entry("/prod/base/late", GROUP, "unix:uid:9")
        request = admin_pb2.WriteEntriesRequest(create=[admin_pb2.ManagedEntry(entry=entry, owner="group:late")])
        reply = await admin.write_entries(request)
        assert reply.results[0].status.code == 0, reply.results[0].status.message
        async with asyncio.timeout(20):
            while not (told := await asyncio.to_thread(warnings)):
                await asyncio.sleep(0.05)
    assert told[0].startswith("policies/late.cedar:1:1: policy 'fails-for-late' fails when it is asked about")


async def next_update(stream) -> control_pb2.Update:
    async with asyncio.timeout(20):
        return await stream.recv_message()


async def test_the_log_level_changes_while_it_runs(server):
    local = socket_channel(server)

    async def ask(name: str, **fields) -> tuple[int, int]:
        request = {"SetLogLevel": logger_pb2.SetLogLevelRequest, "GetLogger": logger_pb2.GetLoggerRequest}.get(
            name, logger_pb2.ResetLogLevelRequest
        )
        reply = await local.unary(method(LOGGER, name), request(**fields))
        return reply.current_level, reply.launch_level

    info, debug = types_pb2.INFO, types_pb2.DEBUG
    assert await ask("GetLogger") == (info, info)
    assert await ask("SetLogLevel", new_level=debug) == (debug, info)
    assert await ask("ResetLogLevel") == (info, info)
    with pytest.raises(errors.InvalidInput, match="no known log level"):
        await ask("SetLogLevel")
    local.close()
    agent = await server.join()
    with pytest.raises(errors.FailedPrecondition):
        await agent.channel.unary(method(LOGGER, "GetLogger"), logger_pb2.GetLoggerRequest())
    agent.close()
