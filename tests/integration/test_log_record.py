"""What a real server and a real agent leave in the log: declared kinds only, whole entries, receipts, no secrets."""

import asyncio
import hashlib
import json
import secrets
import shutil
import signal
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path

import jsonschema
import log_entries
import pytest
from agent_workload import ME
from server_process import EASTWEST, eastwest

from eastwest.api.eastwest.log.v1 import log_pb2
from eastwest.api.spire.api.server.entry.v1 import entry_pb2
from eastwest.api.spire.api.server.svid.v1 import svid_pb2
from eastwest.api.spire.api.types import types_pb2
from eastwest.cli.admin import admin_channel
from eastwest.errors import Error, NotFound
from eastwest.log.kinds import KINDS
from eastwest.log.schema import log_schema
from eastwest.rpc.client import method

ENTRY = entry_pb2.DESCRIPTOR.services_by_name["Entry"]
SVID = svid_pb2.DESCRIPTOR.services_by_name["SVID"]
LOG = log_pb2.DESCRIPTOR.services_by_name["Log"]
MARK = "correct-horse-battery-staple"
"""Planted wherever a caller may write something; it must be nowhere in the log."""


async def create(channel, path, parent, **fields):
    made = types_pb2.Entry(
        spiffe_id=types_pb2.SPIFFEID(trust_domain="td.test", path=path),
        parent_id=types_pb2.SPIFFEID(trust_domain="td.test", path=parent),
        selectors=[types_pb2.Selector(type="unix", value=ME.removeprefix("unix:"))],
        **fields,
    )
    reply = await channel.unary(method(ENTRY, "BatchCreateEntry"), entry_pb2.BatchCreateEntryRequest(entries=[made]))
    [result] = reply.results
    assert result.status.code == 0, result.status.message
    return result.entry.id


@asynccontextmanager
async def agent_process(server, data):
    """`eastwest agent run` on ``data``, joined by a token of its own."""
    token = eastwest("token", "create", "--data", server.data).stdout.strip()
    (data / "bundle.pem").write_text(eastwest("bundle", "show", "--data", server.data).stdout)
    (data / "token").write_text(token)
    words = ["agent", "run", "--data", data, "--server", f"127.0.0.1:{server.port}"]
    words += ["--bundle", data / "bundle.pem", "--join-token-file", data / "token"]
    with (data / "agent.err").open("ab") as errors:
        running = await asyncio.create_subprocess_exec(
            *EASTWEST, *map(str, words), stdout=subprocess.PIPE, stderr=errors
        )
    try:
        async with asyncio.timeout(30):
            line = (await running.stdout.readline()).decode()
        assert "agent ready" in line, (data / "agent.err").read_text()
        yield token
    finally:
        if running.returncode is None:
            running.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            await running.communicate()


def entries(data):
    """All entries that the log's files have, by index."""
    shown = eastwest("log", "show", "--data", data, "--limit", 1000, "--wait", "--json")
    assert shown.returncode == 0, shown.stderr
    return [one["entry"] for one in json.loads(shown.stdout)["entries"]]


def raw(data):
    """Every byte of the log's public files."""
    return b"".join(path.read_bytes() for path in sorted((data / "server" / "log").rglob("*")) if path.is_file())


async def settled(probe, seconds=15):
    """What ``probe`` gives once it gives something."""
    async with asyncio.timeout(seconds):
        while not (found := probe()):
            await asyncio.sleep(0.05)
    return found


async def test_receipts_denials_and_no_secrets(server, tmp_path):
    live_token = eastwest("token", "create", "--data", server.data).stdout.strip()
    async with agent_process(server, tmp_path) as spent:
        local = admin_channel(server.data)
        bare = await server.join()
        try:
            await create(local, "/web", f"/spire/agent/join_token/{spent}")
            # Registered before the node has come: the name of its parent is a token that still opens the door.
            await create(local, "/early", f"/spire/agent/join_token/{live_token}")
            other = await create(local, "/other", bare.svid.id.path)
            issued = (await bare.issue(other)).results[0].svid
            await bare.issue(other)
            for _ in range(20):
                refused = (await bare.issue(f"{MARK}-{secrets.token_hex(4)}")).results[0]
                assert refused.status.code != 0
            with pytest.raises(Error):
                await bare.attest(server, f"{MARK}-no-token", bare.roots)
            jwt = await bare.channel.unary(
                method(SVID, "NewJWTSVID"), svid_pb2.NewJWTSVIDRequest(entry_id=other, audience=["x"])
            )

            receipts = tmp_path / "agent" / "receipts"
            [kept] = await settled(lambda: [*receipts.glob("*.receipt.json")] if receipts.is_dir() else [])
            assert kept.stat().st_mode & 0o777 == 0o600
            judge_receipts(server, tmp_path)
            await judge_answers(server, bare, other, issued)
        finally:
            bare.close()
            local.close()
        found = entries(server.data)
        everything = raw(server.data)
        for secret in (live_token, jwt.svid.token, jwt.svid.token.rpartition(".")[2], MARK):
            assert secret.encode() not in everything
        for secret in (live_token, jwt.svid.token):
            for digest in (hashlib.sha256, hashlib.sha1, hashlib.md5):
                assert digest(secret.encode()).hexdigest().encode() not in everything
        for key in (tmp_path / "agent" / "keys").rglob("*"):
            if key.is_file():
                body = "".join(line for line in key.read_text(errors="replace").splitlines() if "-----" not in line)
                assert body.encode() not in everything
        judge_entries(found, other)
    validator = jsonschema.Draft202012Validator(log_schema())
    for entry in found:
        assert [error.message for error in validator.iter_errors(entry)] == [], entry["kind"]
    # The fixture judges what all its tests record in the same way; it must see the same entries.
    assert len(log_entries.recorded(server.data)) >= len(found) > 20
    assert log_entries.problem(json.dumps(found[0] | {"extra": 1}).encode())


def judge_entries(found, entry_id):
    kinds = [entry["kind"] for entry in found]
    assert set(kinds) <= set(KINDS)
    assert "config.loaded" in kinds
    [denied] = [entry for entry in found if entry["kind"] == "issuance.denied"]
    assert (denied["count"], denied["code"], denied["subject"], denied["entry_id"]) == (20, "NOT_FOUND", "", "")
    [refused] = [entry for entry in found if entry["kind"] == "node.attestation_refused"]
    assert refused["addresses"] == ["127.0.0.1"]
    [login] = [entry for entry in found if entry["kind"] == "admin.login"]
    assert login["actor"].startswith("unix:uid:")
    first, second, _ = [e for e in found if e["kind"] == "x509_svid.issued" and e["entry_id"] == entry_id]
    assert second["previous_serial"] == first["serial"]
    assert "previous_serial" not in first
    assert first["request"] != second["request"]
    assert (first["caller_kind"], first["policy_version"]) == ("agent", "")
    assert first["evidence"]["node_attestation"] == "join_token"


def judge_receipts(server, data):
    """The agent's receipt, carried away, holds with the verifier key alone; and only for its own certificate."""
    out = data / "carried"
    listed = eastwest("agent", "receipt", "--data", data, "--out", out, "--json")
    assert listed.returncode == 0, listed.stderr
    [one] = json.loads(listed.stdout)["receipts"]
    entry, proof = one["files"]
    shutil.copy(server.data / "server" / "log.vkey", out)
    words = ["log", "verify-proof", "--entry", entry, "--proof", proof, "--vkey", out / "log.vkey"]
    assert eastwest(*words, "--json").returncode == 0
    changed = Path(entry).read_bytes().replace(b"td.test/web", b"td.test/wab")
    (out / "changed.json").write_bytes(changed)
    refused = eastwest("log", "verify-proof", "--entry", out / "changed.json", *words[4:])
    assert refused.returncode == 1
    assert "is not in the tree" in refused.stderr
    other = server.data / "server" / "ca"
    [certificate, *_] = sorted(other.rglob("*.pem"))
    refused = eastwest(*words, "--certificate", certificate)
    assert refused.returncode == 1
    assert "is not about the certificate" in refused.stderr


async def judge_answers(server, agent, entry_id, issued):
    """A spire-wire agent asks for its own entry, in the moment after issuance; another's it cannot have."""
    sha256 = hashlib.sha256(issued.cert_chain[0]).digest()
    prove = method(LOG, "Prove")
    fresh = (await agent.issue(entry_id)).results[0].svid
    answer = await agent.channel.unary(
        prove, log_pb2.ProveRequest(certificate_sha256=hashlib.sha256(fresh.cert_chain[0]).digest())
    )
    assert json.loads(answer.entry)["entry_id"] == entry_id
    answer = await agent.channel.unary(prove, log_pb2.ProveRequest(certificate_sha256=sha256))
    index = answer.index
    answer = await agent.channel.unary(prove, log_pb2.ProveRequest(index=index))
    assert json.loads(answer.entry)["certificate_sha256"] == sha256.hex()
    with pytest.raises(NotFound):
        await agent.channel.unary(prove, log_pb2.ProveRequest(index=0))
    local = admin_channel(server.data)
    try:
        assert json.loads((await local.unary(prove, log_pb2.ProveRequest(index=0))).entry)["kind"] == "log.opened"
    finally:
        local.close()
