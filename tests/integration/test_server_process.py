"""The authority as a process: its whole life, and the mistakes that people make with it."""

import asyncio
import json
import shutil
import socket
import sqlite3
import stat
import subprocess
import urllib.request
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from cryptography import x509
from server_process import BareAgent, ServerProcess, eastwest, serial

from eastwest import errors
from eastwest.api.spire.api.server.entry.v1 import entry_pb2
from eastwest.api.spire.api.types import types_pb2
from eastwest.cli.admin import AdminClient
from eastwest.log.entry import decode
from eastwest.rpc.client import Channel, method
from eastwest.rpc.tls import certificate_id
from eastwest.store.log_files import LogDirectory

ENTRY = entry_pb2.DESCRIPTOR.services_by_name["Entry"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One running server for the tests that leave it as it is, but for nodes and entries of their own."""
    made = ServerProcess(tmp_path_factory.mktemp("shared") / "data")
    made.init()
    made.start()
    yield made
    made.kill()


async def register(server, agent: BareAgent, path: str, **fields) -> str:
    """Create an entry below an agent; returns its id."""
    entry = types_pb2.Entry(
        spiffe_id=types_pb2.SPIFFEID(trust_domain="td.test", path=path),
        parent_id=types_pb2.SPIFFEID(trust_domain="td.test", path=agent.id.path),
        selectors=[types_pb2.Selector(type="unix", value="uid:1000")],
        **fields,
    )
    channel = Channel(path=str(server.data / "server" / "api.sock"))
    try:
        reply = await channel.unary(
            method(ENTRY, "BatchCreateEntry"), entry_pb2.BatchCreateEntryRequest(entries=[entry])
        )
    finally:
        channel.close()
    assert reply.results[0].status.code == 0, reply.results[0].status.message
    return reply.results[0].entry.id


def logged(server) -> list[dict]:
    """Every published entry of the log, verified by the command line first."""
    done = eastwest("log", "verify", "--data", server.data, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    shown = eastwest("log", "show", "--data", server.data, "--json", "--limit", 100000)
    assert shown.returncode == 0, shown.stderr
    return [item["entry"] for item in json.loads(shown.stdout)["entries"]]


async def test_an_svid_is_issued_recorded_and_verifies(server, tmp_path):
    agent = await server.join()
    entry = await register(server, agent, "/web", dns_names=["web.td.test"], x509_svid_ttl=600)
    reply = await agent.issue(entry, "no-such-entry")
    agent.close()
    good, bad = reply.results
    assert (good.status.code, bad.status.code) == (0, 5)
    leaf = x509.load_der_x509_certificate(good.svid.cert_chain[0])
    assert str(certificate_id(good.svid.cert_chain[0])) == "spiffe://td.test/web"
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert life.total_seconds() == 630
    paths = []
    for name, der in [("leaf", good.svid.cert_chain[0]), ("ca", good.svid.cert_chain[1]), ("root", agent.roots[0])]:
        paths.append(tmp_path / f"{name}.der")
        paths[-1].write_bytes(der)
    pems = [
        subprocess.run(["openssl", "x509", "-inform", "DER", "-in", p], capture_output=True, check=True) for p in paths
    ]
    for path, pem in zip(paths, pems, strict=True):
        path.write_bytes(pem.stdout)
    leaf_path, ca, root = paths
    verified = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", root, "-untrusted", ca, leaf_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    async with server.admin() as admin:
        await admin.flush_log()
    issued = [e for e in logged(server) if e["kind"] == "x509_svid.issued" and e["subject"] == "spiffe://td.test/web"]
    assert len(issued) == 1
    assert issued[0]["entry_id"] == entry


async def test_a_used_or_wrong_token_is_refused(shared):
    agent = await shared.join()
    token = agent.id.path.rsplit("/", 1)[1]
    for bad in (token, "b2c7a1f0-0000-4000-8000-000000000000", "", "\n"):
        with pytest.raises(errors.InvalidInput, match="token"):
            await BareAgent.attest(shared, bad, agent.roots)
    agent.close()


async def test_a_banned_agent_gets_nothing_more(shared):
    agent = await shared.join()
    entry = await register(shared, agent, "/web")
    assert (await agent.issue(entry)).results[0].status.code == 0
    from eastwest.api.spire.api.server.agent.v1 import agent_pb2

    channel = Channel(path=str(shared.data / "server" / "api.sock"))
    ban = agent_pb2.BanAgentRequest(id=types_pb2.SPIFFEID(trust_domain="td.test", path=agent.id.path))
    await channel.unary(method(agent_pb2.DESCRIPTOR.services_by_name["Agent"], "BanAgent"), ban)
    channel.close()
    with pytest.raises(errors.PermissionDenied, match="banned"):
        await agent.issue(entry)
    agent.close()


async def test_administration_is_not_served_to_agents_nor_issuance_to_the_admin_socket(shared):
    agent = await shared.join()
    with pytest.raises(errors.PermissionDenied, match="CountEntries is not for agents"):
        await agent.channel.unary(method(ENTRY, "CountEntries"), entry_pb2.CountEntriesRequest())
    agent.close()
    channel = Channel(path=str(shared.data / "server" / "api.sock"))
    with pytest.raises(errors.PermissionDenied, match="TLS port only"):
        await channel.unary(method(ENTRY, "GetAuthorizedEntries"), entry_pb2.GetAuthorizedEntriesRequest())
    channel.close()


def test_what_is_private_is_private_and_nothing_listens_beyond_loopback(shared):
    for path in [shared.data / "server" / "server.db", *(shared.data / "server" / "keys").iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((shared.data / "server" / "api.sock").stat().st_mode) == 0o600
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=False).stdout
    mine = [line.split()[3] for line in listening.splitlines() if f"pid={shared.process.pid}," in line]
    assert all(address.startswith("127.") for address in mine)


def test_health_readiness_and_metrics(shared):
    port = (shared.data / "server" / "health.port").read_text().strip()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready") as reply:
        assert json.load(reply)["status"] == "ready"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        assert b"eastwest_svids_issued" in reply.read()


def test_init_twice_and_for_another_trust_domain(tmp_path):
    data = tmp_path / "d"
    assert eastwest("server", "init", "--data", data, "--trust-domain", "td.test").returncode == 0
    again = eastwest("server", "init", "--data", data, "--trust-domain", "td.test")
    assert (again.returncode, "already holds a server of td.test" in again.stderr) == (1, True)
    other = eastwest("server", "init", "--data", data, "--trust-domain", "other.test")
    assert (other.returncode, "belongs to the trust domain td.test" in other.stderr) == (1, True)


@pytest.mark.parametrize("name", ["", "UPPER.test", "spiffe://td.test/path", "a b"])
def test_a_malformed_trust_domain_leaves_nothing_behind(tmp_path, name):
    done = eastwest("server", "init", "--data", tmp_path / "d", "--trust-domain", name)
    assert done.returncode != 0
    assert "trust domain" in done.stderr
    assert not (tmp_path / "d").exists()


def test_run_without_init_says_what_to_do(tmp_path):
    done = eastwest("server", "run", "--data", tmp_path / "none")
    assert done.returncode == 1
    assert "server init" in done.stderr


def test_a_port_in_use_and_a_second_server_are_clear_errors(shared, tmp_path):
    second = eastwest("server", "run", "--data", shared.data)
    assert (second.returncode, "another server (pid" in second.stderr) == (1, True)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        other = tmp_path / "other"
        eastwest("server", "init", "--data", other, "--trust-domain", "td.test")
        taken = eastwest("server", "run", "--data", other, "--port", holder.getsockname()[1])
    assert taken.returncode == 1
    assert "Address already in use" in taken.stderr
    assert "another port" in taken.stderr


def test_a_database_of_a_newer_schema_or_another_trust_domain_is_left_alone(server, tmp_path):
    server.stop()
    database = server.data / "server" / "server.db"
    foreign = ServerProcess(tmp_path / "foreign", "other.test")
    foreign.init()
    shutil.copy(database, foreign.data / "server" / "server.db")
    done = eastwest("server", "run", "--data", foreign.data)
    assert (done.returncode, "td.test" in done.stderr) == (1, True)
    with sqlite3.connect(database) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(schema_version)")]
        newest = connection.execute("SELECT * FROM schema_version ORDER BY version DESC").fetchone()
        row = dict(zip(columns, newest, strict=True)) | {"version": 9999}
        marks = ", ".join("?" * len(columns))
        connection.execute(f"INSERT INTO schema_version VALUES ({marks})", list(row.values()))
    connection.close()
    newer = eastwest("server", "run", "--data", server.data)
    assert newer.returncode == 1
    assert "newer" in newer.stderr


@pytest.mark.parametrize("text", ["trust_domain = 5", "not toml", 'trust_domain = "td.test"\nnonsense = 1'])
def test_a_wrong_configuration_names_its_file(tmp_path, text):
    server = ServerProcess(tmp_path / "d")
    server.init()
    (server.data / "server" / "server.toml").write_text(text)
    done = eastwest("server", "run", "--data", server.data)
    assert done.returncode == 1
    assert "server.toml" in done.stderr


def test_server_check_finds_nothing_on_a_good_server_and_names_what_is_wrong(server):
    done = eastwest("server", "check", "--data", server.data)
    assert done.returncode == 0, done.stdout
    server.stop()
    key = next((server.data / "server" / "keys").glob("*.pem"))
    key.chmod(0o644)
    found = eastwest("server", "check", "--data", server.data, "--json")
    assert found.returncode == 1
    bad = [finding for finding in json.loads(found.stdout)["findings"] if finding["bad"]]
    assert any("chmod" in finding["fix"] for finding in bad)


def test_server_check_sees_a_database_that_was_rolled_back_and_a_key_that_is_gone(server):
    server.stop()
    home = server.data / "server"
    old = (home / "server.db").read_bytes()
    assert eastwest("server", "check", "--data", server.data).returncode == 0
    server.start()
    server.stop()
    for name in ("server.db-wal", "server.db-shm"):
        (home / name).unlink(missing_ok=True)
    (home / "server.db").write_bytes(old)
    done = eastwest("server", "check", "--data", server.data)
    assert (done.returncode, "FAIL log: server.db: the database lacks entries from" in done.stdout) == (1, True)
    (home / "log.vkey").unlink()
    done = eastwest("server", "check", "--data", server.data)
    assert (done.returncode, "log.vkey is missing" in done.stdout) == (1, True)


def test_server_check_tries_the_options_of_every_plug_in(server):
    server.stop()
    path = server.data / "server" / "server.toml"
    good = path.read_text()
    for tables, told in (
        ('[node_attestors.x509pop]\nca_bundle="x"', "did you mean 'ca_bundle_path'?"),
        ("[node_attestors.x509pip]", "did you mean 'x509pop'?"),
        ('[node_attestors.x509pop]\nca_bundle_path="/nowhere.pem"', "/nowhere.pem"),
        ("[upstreams.disk]", "upstreams.disk"),
    ):
        upstream = 'upstream = "disk"\n' if "upstreams" in tables else ""
        path.write_text(f"{upstream}{good}\n{tables}\n")
        found = eastwest("server", "check", "--data", server.data)
        assert found.returncode == 1, tables
        assert told in found.stdout
    path.write_text(good)
    assert eastwest("server", "check", "--data", server.data).returncode == 0


def test_a_log_that_disagrees_with_its_checkpoint_stops_the_start(server):
    server.stop()
    with sqlite3.connect(server.data / "server" / "server.db") as connection:
        connection.execute("DELETE FROM log_segment")
    connection.close()
    done = eastwest("server", "run", "--data", server.data)
    assert done.returncode == 1
    assert "lacks entries from 0" in done.stderr
    assert "nothing is signed" in done.stderr


async def test_when_the_disk_is_full_nothing_is_issued_and_service_returns(tmp_path, request):
    server = ServerProcess(tmp_path / "data")
    request.addfinalizer(server.kill)
    server.init()
    server.start()
    agent = await server.join()
    entry = await register(server, agent, "/web")
    server.stop()
    home = server.data / "server"
    limit = max(path.stat().st_size for path in home.glob("server.db*")) + 64 * 1024
    server.start(file_size=limit)
    released = []
    refused = None
    agent.reconnect()
    for _ in range(400):
        try:
            reply = await agent.issue(*[entry] * 20)
        except errors.LogUnavailable as error:
            refused = error
            break
        released += [result.svid.cert_chain[0] for result in reply.results]
    assert refused is not None
    with pytest.raises(errors.LogUnavailable):
        await agent.issue(*[entry] * 20)
    server.kill()
    server.start()
    agent.reconnect()
    assert (await agent.issue(entry)).results[0].status.code == 0
    async with server.admin() as admin:
        await admin.flush_log()
    serials = {e["serial"] for e in logged(server) if e["kind"] == "x509_svid.issued"}
    assert {format(serial(der), "x") for der in released} <= serials or {
        str(serial(der)) for der in released
    } <= serials
    agent.close()
    server.kill()


async def test_after_a_kill_at_any_moment_the_log_verifies_and_holds_every_released_certificate(server):
    agent = await server.join()
    entries = [await register(server, agent, f"/kill/{number}") for number in range(5)]
    released: set[str] = set()

    async def load(batch: int) -> None:
        with suppress(errors.Error):
            while True:
                reply = await agent.issue(*(entries * batch))
                released.update(format(serial(result.svid.cert_chain[0]), "x") for result in reply.results)

    for delay in (0.02, 0.4, 1.1, 0.15, 0.7):
        agent.reconnect()
        tasks = [asyncio.create_task(load(batch)) for batch in (1, 4, 20)]
        # The moment of the kill is what the test varies; nothing is awaited by it.
        await asyncio.sleep(delay)
        server.kill()
        await asyncio.gather(*tasks)
        verified = eastwest("log", "verify", "--data", server.data)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        server.start()
    async with server.admin() as admin:
        await admin.flush_log()
    agent.close()
    assert released
    assert released <= {entry["serial"] for entry in logged(server) if entry["kind"] == "x509_svid.issued"}


async def test_clocks_that_differ_by_more_than_a_minute_are_refused_both_ways(shared):
    from eastwest.api.eastwest.control.v1 import control_pb2

    agent = await shared.join()
    subscribe = method(control_pb2.DESCRIPTOR.services_by_name["Control"], "Subscribe")
    now = datetime.now(UTC).timestamp()
    for offset, word in ((90, "ahead of"), (-90, "behind")):
        hello = control_pb2.Hello(agent_version="t", time_unix_ms=int((now + offset) * 1000))
        with pytest.raises(errors.FailedPrecondition, match=word):
            async with agent.channel.stream(subscribe) as stream:
                await stream.send_message(control_pb2.SubscribeRequest(hello=hello))
                await stream.recv_message()
    agent.close()


async def test_published_entries_are_canonical(shared):
    async with shared.admin() as admin:
        await admin.flush_log()
    assert logged(shared)[0]["kind"] == "log.opened"
    from eastwest.log.tiles import decode_bundle

    directory = LogDirectory(shared.data / "server" / "log")
    bundles = [path for path in directory.paths() if path.startswith("tile/entries/")]
    entries = [entry for path in bundles for entry in decode_bundle(directory.read(path))]
    assert entries
    assert all(decode(entry).kind for entry in entries)


def test_nobody_home_is_exit_code_three(tmp_path):
    done = eastwest("mesh", "status", "--data", tmp_path)
    assert (done.returncode, "no server runs" in done.stderr) == (3, True)
    with pytest.raises(errors.Unavailable):
        AdminClient.connect(tmp_path)


async def test_entries_and_nodes_by_hand(server):
    agent = await server.join()
    made = eastwest(
        "entry", "create", "--data", server.data, "--spiffe-id", "spiffe://td.test/cli", "--parent-id", agent.id,
        "--selector", "unix:uid:7", "--selector", "unix:gid:7", "--ttl", 600,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    entry = made.stdout.strip()
    [shown] = json.loads(eastwest("entry", "show", "--data", server.data, "--json").stdout)["entries"]
    assert (shown["id"], shown["selectors"], shown["x509_svid_ttl"]) == (entry, ["unix:gid:7", "unix:uid:7"], 600)
    again = eastwest(
        "entry", "create", "--data", server.data, "--spiffe-id", "spiffe://td.test/cli", "--parent-id", agent.id,
        "--selector", "unix:gid:7", "--selector", "unix:uid:7",
    )  # fmt: skip
    assert (again.returncode, entry in again.stderr or "similar" in again.stderr.lower()) == (1, True), again.stderr
    bad = eastwest(
        "entry", "create", "--data", server.data, "--spiffe-id", "spiffe://td.test//x", "--parent-id", agent.id,
        "--selector", "unix:gid:7",
    )  # fmt: skip
    assert (bad.returncode, "empty path segment" in bad.stderr) == (1, True)
    assert (await agent.issue(entry)).results[0].status.code == 0
    assert eastwest("entry", "delete", "--data", server.data, entry).returncode == 0
    assert eastwest("entry", "delete", "--data", server.data, entry).returncode == 1
    assert (await agent.issue(entry)).results[0].status.code == 5
    listed = json.loads(eastwest("node", "list", "--data", server.data, "--json").stdout)["nodes"]
    assert [node["id"] for node in listed] == [str(agent.id)]
    assert eastwest("node", "ban", "--data", server.data, agent.id).returncode == 0
    with pytest.raises(errors.PermissionDenied, match="banned"):
        await agent.issue(entry)
    assert eastwest("node", "evict", "--data", server.data, agent.id).returncode == 0
    with pytest.raises(errors.PermissionDenied, match="not attested"):
        await agent.issue(entry)
    agent.close()


async def test_a_join_with_a_bad_key_does_not_use_the_token_up(shared):
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID
    from server_process import AGENT

    from eastwest.api.spire.api.server.agent.v1 import agent_pb2
    from eastwest.rpc.tls import client_context

    async with shared.admin() as admin:
        token = (await admin.create_join_token()).value
        roots = [authority.asn1 for authority in (await admin.bundle()).x509_authorities]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    request = agent_pb2.AttestAgentRequest()
    request.params.data.type = "join_token"
    request.params.data.payload = token.encode()
    request.params.params.csr = csr.public_bytes(Encoding.DER)
    channel = Channel(host="127.0.0.1", port=shared.port, tls=client_context(roots))
    with pytest.raises(errors.InvalidInput, match="RSA"):
        async with channel.stream(method(AGENT, "AttestAgent"), deadline=20) as stream:
            await stream.send_message(request, end=True)
            await stream.recv_message()
    channel.close()
    (await BareAgent.attest(shared, token, roots)).close()


async def test_a_profile_is_issued_only_through_its_doors(server):
    from eastwest.api.eastwest.control.v1 import control_pb2

    files = {
        "estate.yaml": b"""
trust_domain: td.test
environments: [{name: prod, kind: vm}]
domains: [{name: shop, owners: ["group:shop"]}]
node_groups: [{name: nodes, environment: prod, selectors: ["join_token:group:nodes"]}]
""",
        "profiles/workload.yaml": b"""
profile: workload
doors: [workload-api]
environments: [prod]
keys: [ec-p256]
lifetime: {default: 10m, max: 1h}
""",
        "workloads/all.yaml": b"""
workloads:
  - spiffe_id: spiffe://td.test/prod/shop/web
    environment: prod
    domain: shop
    owner: group:shop
    node: group:nodes
    selectors: ["unix:uid:1000"]
    profile: workload
""",
    }
    async with server.admin() as admin:
        await admin.apply_estate(files, "")
    agent = await server.join(group="nodes")
    [entry] = json.loads(
        eastwest(
            "entry", "show", "--data", server.data, "--spiffe-id", "spiffe://td.test/prod/shop/web", "--json"
        ).stdout
    )["entries"]
    refused = (await agent.issue(entry["id"])).results[0].status
    assert (refused.code, "not issued through spire-api" in refused.message) == (7, True)
    subscribe = method(control_pb2.DESCRIPTOR.services_by_name["Control"], "Subscribe")
    async with agent.channel.stream(subscribe) as stream:
        await stream.send_message(control_pb2.SubscribeRequest(hello=control_pb2.Hello(agent_version="t")))
        update = await stream.recv_message()
        assert {name.name.kind for name in update.upserts} >= {control_pb2.ResourceName.KIND_ENTRY}
        [issued] = (await agent.issue(entry["id"])).results
        assert issued.status.code == 0
        await stream.cancel()
    leaf = x509.load_der_x509_certificate(issued.svid.cert_chain[0])
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds() == 630
    agent.close()
