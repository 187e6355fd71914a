"""Transaction tokens by a real server over mTLS: what they say, who gets none, chains, single use, and their keys."""

import asyncio
import json
import os
import signal
import socket
import ssl
import tempfile
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from subprocess import PIPE
from urllib.parse import urlencode

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from server_process import EASTWEST, eastwest
from token_world import (
    BILLING,
    CONSOLE,
    ESTATE,
    LEDGER,
    TD,
    WEB,
    TokenWorld,
    ask_by_http2,
    configure,
    form,
    read_claims,
)

from eastwest import errors
from eastwest.policy.transaction import TYPE, from_claims
from eastwest.rpc.tls import client_context
from eastwest.server.tokens.usage import USES_PER_SECOND
from eastwest.spiffe.id import SpiffeId
from eastwest.testing import TestCA


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One server for the module, started in a loop of its own."""
    world = TokenWorld(tmp_path_factory.mktemp("tokens") / "data")
    try:
        asyncio.run(world.start(rate=1000.0, caller_rate=1000.0))
        yield world
    finally:
        world.close()


@pytest.fixture
async def world(running):
    running.agent.reconnect()
    yield running
    running.agent.channel.close()


async def test_a_token_says_what_it_is_for(world) -> None:
    console = await world.workload(CONSOLE)
    before = int(time.time())
    status, said = console.ask("billing:reports:make")
    assert status == 200
    assert said["token_type"] == "N_A"
    assert said["issued_token_type"] == "urn:ietf:params:oauth:token-type:txn_token"
    assert said["expires_in"] == 120
    token = said["access_token"]
    # By the keys that agents are told, judged by another's library.
    state = await world.state()
    keys = jwt.PyJWKSet.from_json(state.token_keys.decode())
    header = jwt.get_unverified_header(token)
    assert header == {"alg": "RS256", "kid": keys.keys[0].key_id, "typ": TYPE}
    claims = jwt.decode(
        token,
        keys[header["kid"]],
        algorithms=["RS256"],
        issuer=TD,
        audience=TD,
        options={"require": ["iss", "aud", "iat", "exp", "jti", "sub"]},
    )
    assert claims["sub"] == claims["req_wl"] == CONSOLE
    assert claims["scope"] == "billing:reports:make"
    assert before <= claims["iat"] <= time.time()
    assert claims["exp"] == claims["iat"] + 120
    digest = urlsafe_b64encode(bytes.fromhex(console.certificate)).rstrip(b"=").decode()
    assert claims["cnf"] == {"x5t#S256": digest}
    read = from_claims(claims)
    assert (read.resource, read.tenant) == ("billing", "")
    assert (read.origin, read.chain, read.certificate) == (CONSOLE, (CONSOLE,), console.certificate)
    assert said["txn"] == read.transaction
    # Keys of their own: no bundle has them.
    assert not {key.key_id for key in state.bundle.jwt_authorities} & {key.key_id for key in keys.keys}


async def test_a_tenant_is_in_the_token(world) -> None:
    console = await world.workload(CONSOLE)
    assert from_claims(read_claims(console.token("billing:invoices:read", tenant="acme"))).tenant == "acme"
    # Wherever in its path the operation has the tenant.
    assert from_claims(read_claims(console.token("billing:refunds:create", tenant="acme"))).tenant == "acme"


REFUSED = {
    "not permitted": (WEB, "billing:reports:make", {}, 400, "invalid_scope", "OPERATION_NOT_PERMITTED"),
    "other tenant": (WEB, "billing:invoices:read", {"tenant": "x"}, 400, "invalid_scope", "TENANT_NOT_PERMITTED"),
    "unknown operation": (CONSOLE, "billing:nothing:do", {}, 400, "invalid_scope", "UNLISTED_OPERATION"),
    "two operations": (
        CONSOLE,
        "billing:reports:make billing:keys:rotate",
        {},
        400,
        "invalid_scope",
        "INVALID_INPUT",
    ),
    "no operation": (CONSOLE, "", {}, 400, "invalid_scope", "INVALID_INPUT"),
    "no tenant": (CONSOLE, "billing:invoices:read", {}, 400, "invalid_request", "TENANT_MISSING"),
    "needless tenant": (CONSOLE, "billing:reports:make", {"tenant": "a"}, 400, "invalid_request", "INVALID_INPUT"),
    "impossible tenant": (CONSOLE, "billing:invoices:read", {"tenant": "a/b"}, 400, "invalid_request", "INVALID_INPUT"),
    "other audience": (
        CONSOLE,
        "billing:reports:make",
        {"audience": "spiffe://other"},
        400,
        "invalid_target",
        "INVALID_INPUT",
    ),
    "other grant": (
        CONSOLE,
        "billing:reports:make",
        {"grant_type": "client_credentials"},
        400,
        "unsupported_grant_type",
        "INVALID_INPUT",
    ),
    "other kind of token": (
        CONSOLE,
        "billing:reports:make",
        {"requested_token_type": "urn:ietf:params:oauth:token-type:jwt"},
        400,
        "invalid_request",
        "INVALID_INPUT",
    ),
    "unknown detail": (CONSOLE, "billing:reports:make", {"life": "9"}, 400, "invalid_request", "INVALID_INPUT"),
    "nonsense in place of a token": (
        BILLING,
        "ledger:entries:write",
        {"tenant": "acme", "subject_token": "a.b.c"},
        400,
        "invalid_request",
        "TOKEN_INVALID",
    ),
    "another's approval": (
        CONSOLE,
        "billing:credits:create",
        {"tenant": "acme", "approval": "0123456789abcdef"},
        403,
        "access_denied",
        "APPROVAL_REQUIRED",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_could_not_be_allowed_is_not_minted(world, case) -> None:
    caller, operation, more, status, error, code = REFUSED[case]
    workload = await world.workload(caller)
    found, said = workload.ask(operation, **more)
    assert (found, said["error"], said["code"]) == (status, error, code)
    assert said["error_description"]


async def test_requests_of_other_forms_are_refused(world) -> None:
    console = await world.workload(CONSOLE)
    body = urlencode(form("billing:reports:make"))
    twice = '{"tenant": "acme", "tenant": "globex"}'
    for more, status in (
        ({"body": body, "verb": "PUT"}, 405),
        ({"body": None, "verb": "GET"}, 405),
        ({"body": body, "path": "/"}, 404),
        ({"body": body, "kind": "application/json"}, 415),
        ({"body": body + "&x=" + "y" * 40_000}, 413),
        ({"body": body + "&scope=billing:reports:make"}, 400),
        ({"body": body + "&resource=x"}, 400),
        ({"body": body + "".join(f"&a{n}=1" for n in range(20))}, 400),
        ({"body": b"\xff\xfe"}, 400),
        ({"body": urlencode({**form("billing:invoices:read"), "request_details": twice})}, 400),
    ):
        found, said = console.post(**more)
        assert found == status, (more, said)
        assert said["error"] == "invalid_request"


def answered(port, context) -> bool:
    """Whether anything comes back on a connection of this kind."""
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as raw, context.wrap_socket(raw) as sock:
            # TLS 1.3: what the server thinks of a client's certificate comes with the first read.
            sock.sendall(b"POST /token HTTP/1.1\r\nhost: eastwest\r\n\r\n")
            return sock.recv(100) != b""
    except (ssl.SSLError, ConnectionError):
        return False


async def test_only_svids_of_the_trust_domain_get_an_answer(world) -> None:
    console = await world.workload(CONSOLE)
    bare = client_context(console.roots)
    bare.set_alpn_protocols(["http/1.1"])
    foreign = TestCA("td.test", datetime.now(UTC))
    chain, key = foreign.pem(*foreign.svid("/prod/shop/console"))
    stranger = client_context(console.roots, chain, key)
    stranger.set_alpn_protocols(["http/1.1"])
    old = console.tls()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    for context in (bare, stranger, old):
        assert not answered(console.port, context)
    assert answered(console.port, console.tls())


async def test_a_registered_caller_is_needed(world) -> None:
    console = await world.workload(CONSOLE)
    # The node's own certificate is good, and no workload's.
    agent = world.agent
    context = agent._tls
    context.set_alpn_protocols(["http/1.1"])
    try:
        console_tls, console.tls = console.tls, lambda: context
        status, said = console.ask("billing:reports:make")
    finally:
        console.tls = console_tls
        context.set_alpn_protocols(["h2"])
    assert (status, said["error"], said["code"]) == (401, "invalid_client", "UNKNOWN_CALLER")


async def test_a_transaction_goes_on(world) -> None:
    console, billing, ledger = [await world.workload(name) for name in (CONSOLE, BILLING, LEDGER)]
    first = console.token("billing:invoices:read", tenant="acme")
    # By itself billing may not: the policy asks where the transaction began.
    status, said = billing.ask("ledger:entries:write", tenant="acme")
    assert (status, said["error"], said["code"]) == (400, "invalid_scope", "OPERATION_NOT_PERMITTED")
    second = billing.token("ledger:entries:write", tenant="acme", subject_token=first)
    before, after = from_claims(read_claims(first)), from_claims(read_claims(second))
    assert after.transaction == before.transaction
    assert after.id != before.id
    assert (after.origin, after.chain, after.caller) == (CONSOLE, (CONSOLE, BILLING), BILLING)
    assert after.certificate == billing.certificate
    # Only by whom it was made for, and for its tenant.
    for caller, tenant, token, code in (
        (ledger, "acme", first, "TOKEN_WRONG_RESOURCE"),
        (console, "acme", first, "TOKEN_WRONG_RESOURCE"),
        (billing, "acme", second, "TOKEN_WRONG_RESOURCE"),
        (billing, "globex", first, "TOKEN_WRONG_TENANT"),
        (billing, "acme", first[:-8] + "AAAAAAAA", "TOKEN_INVALID"),
    ):
        status, said = caller.ask("ledger:entries:write", tenant=tenant, subject_token=token)
        assert (status, said["code"]) == (400, code)
    kind = {"subject_token_type": "urn:ietf:params:oauth:token-type:jwt"}
    status, said = billing.ask("ledger:entries:write", tenant="acme", subject_token=first, **kind)
    assert (status, said["error"]) == (400, "invalid_request")


async def test_a_transaction_does_not_go_on_from_a_token_that_does_not_count(world) -> None:
    console, billing = await world.workload(CONSOLE), await world.workload(BILLING)
    good = console.token("billing:invoices:read", tenant="acme")
    claims, header = read_claims(good), jwt.get_unverified_header(good)
    [file] = (world.server.data / "server" / "keys").glob("token-*.pem")
    true_key = load_pem_private_key(file.read_bytes(), None)
    own_key = rsa.generate_private_key(65537, 2048)
    now = int(time.time())

    def code(key, **changed) -> str:
        token = jwt.encode({**claims, **changed}, key, "RS256", header)
        status, said = billing.ask("ledger:entries:write", tenant="acme", subject_token=token)
        return "" if status == 200 else said["code"]

    assert code(true_key) == ""
    assert code(own_key) == "TOKEN_INVALID"
    assert code(true_key, iat=now - 200, exp=now - 10) == "TOKEN_EXPIRED"
    assert code(true_key, iss="spiffe://other.test") == "TOKEN_INVALID"
    assert code(true_key, aud="spiffe://other.test") == "TOKEN_INVALID"
    assert code(true_key, exp=now + 3600) == "TOKEN_INVALID"
    assert code(true_key, nbf=now + 60) == "TOKEN_INVALID"
    # Sixteen workloads are enough.
    chain = [CONSOLE] * 16
    assert code(true_key, tctx={**claims["tctx"], "chain": chain}) == "EXHAUSTED"
    # As Envoy does not look at the type, nobody does.
    header = {**header, "typ": "JWT"}
    assert code(true_key) == ""
    header = {**header, "kid": "another"}
    assert code(true_key) == "TOKEN_INVALID"


async def test_many_requests_on_one_http2_connection(world) -> None:
    console = await world.workload(CONSOLE)
    good, bad = urlencode(form("billing:reports:make")), urlencode(form("billing:nothing:do"))
    replies = await asyncio.to_thread(ask_by_http2, console, [good, bad] * 15)
    assert [status for status, _ in replies] == [200, 400] * 15
    assert len({said["access_token"] for status, said in replies if status == 200}) == 15
    [(status, said)] = await asyncio.to_thread(ask_by_http2, console, ["x" * 40_000])
    assert (status, said["code"]) == (413, "EXHAUSTED")


async def test_what_is_minted_is_recorded_and_no_token_is(world) -> None:
    console = await world.workload(CONSOLE)
    token = console.token("billing:invoices:read", tenant="globex")
    claims = read_claims(token)
    entries = await world.recorded("token.minted", "token_key.published")
    [published] = [entry for entry in entries if entry["kind"] == "token_key.published"]
    found = entries[-1]
    assert found["actor"] == found["subject"] == CONSOLE
    assert (found["operation"], found["tenant"], found["transaction"]) == (
        "billing:invoices:read",
        "globex",
        claims["txn"],
    )
    assert found["key_id"] == published["key_id"] == jwt.get_unverified_header(token)["kid"]
    told = json.dumps(entries) + (world.server.data / "server.err").read_text()
    for secret in (token, token.rpartition(".")[2], claims["jti"]):
        assert secret not in told


async def test_a_token_counts_once(world) -> None:
    console = await world.workload(CONSOLE)
    token = console.token("billing:exports:make")
    assert not await world.use(token)
    assert await world.use(token)
    # Also after a crash.
    other = console.token("billing:exports:make")
    assert not await world.use(other)
    world.restart()
    assert await world.use(other)
    assert await world.use(token)
    assert not await world.use(console.token("billing:exports:make"))
    # Ended by the server's clock, or never made: no use.
    assert await world.use(token, token_id="another", expires_at=int(time.time()) - 10)
    with pytest.raises(errors.InvalidInput, match="no token ends more than 300 seconds from now"):
        await world.use(token, expires_at=int(time.time()) + 4000)
    with pytest.raises(errors.InvalidInput):
        await world.use(token, token_id="x" * 200)
    with pytest.raises(errors.PermissionDenied, match="runs no service"):
        await world.use(token, token_id="other", operation="elsewhere:things:do")
    assert await world.use(token, token_id="third", approval_id="0123456789abcdef")
    # Nothing is remembered where tokens do not count once.
    with pytest.raises(errors.PermissionDenied, match="do not count once"):
        await world.use(console.token("billing:reports:make"))


async def test_an_agent_tells_of_no_more_uses_than_its_services_have(world) -> None:
    token = (await world.workload(CONSOLE)).token("billing:exports:make")

    async def burst() -> list[object]:
        ids = (f"flood-{number}" for number in range(int(4 * USES_PER_SECOND)))
        return await asyncio.gather(*(world.use(token, token_id=one) for one in ids), return_exceptions=True)

    answers = await burst()
    assert answers.count(False) >= 2 * USES_PER_SECOND
    assert any(isinstance(one, errors.Exhausted) for one in answers)
    assert all(one is False or isinstance(one, errors.Exhausted) for one in answers)


async def test_agents_of_other_nodes_and_workloads_have_no_say(world) -> None:
    console = await world.workload(CONSOLE)
    token = console.token("billing:exports:make")
    outsider = await world.server.join()
    mine, world.agent = world.agent, outsider
    try:
        with pytest.raises(errors.PermissionDenied, match="runs no service"):
            await world.use(token)
    finally:
        world.agent = mine
        outsider.close()
    with world.administering(console) as channel:
        own, mine.channel = mine.channel, channel
        try:
            with pytest.raises((errors.PermissionDenied, errors.Unauthenticated)):
                await world.use(token)
        finally:
            mine.channel = own
    assert not await world.use(token)


async def test_every_sidecar_knows_where_tokens_are_made(world) -> None:
    state = await world.state()
    port = (world.server.data / "server" / "tokens.port").read_text().strip()
    for spiffe_id in (CONSOLE, BILLING, WEB):
        [found] = [one for one in state.sidecars[SpiffeId.parse(spiffe_id)].outbound if one.service == "eastwest"]
        assert found.spiffe_id == f"{TD}/spire/server"
        assert found.endpoints == (f"127.0.0.1:{port}",)
    named = (
        ESTATE["services/ledger.yaml"].replace("service: ledger", "service: eastwest").replace("ledger:", "eastwest:")
    )
    with pytest.raises(errors.Error, match="the server's own service"):
        await world.apply(**{"services/ledger.yaml": named, "policies/shop.cedar": ""})


async def test_a_key_is_published_before_it_signs_and_survives(tmp_path) -> None:
    world = TokenWorld(tmp_path / "data")
    try:
        await world.start(key_life=4, key_publish=2, rate=1000.0, caller_rate=1000.0)
        console = await world.workload(CONSOLE)
        first = jwt.get_unverified_header(console.token("billing:reports:make"))["kid"]
        told: dict[str, float] = {}
        signing = first
        async with asyncio.timeout(20):
            while signing == first:
                keys = json.loads((await world.state()).token_keys)["keys"]
                for key in keys:
                    told.setdefault(key["kid"], time.monotonic())
                signing = jwt.get_unverified_header(console.token("billing:reports:make"))["kid"]
        # Its verifiers had it a good while before; what the old one signed still counts.
        assert time.monotonic() - told[signing] > 1
        assert first in {key["kid"] for key in json.loads((await world.state()).token_keys)["keys"]}
        world.restart()
        again = jwt.get_unverified_header(console.token("billing:reports:make"))["kid"]
        kids = {key["kid"] for key in json.loads((await world.state()).token_keys)["keys"]}
        assert {first, signing, again} <= kids
        published = [entry["key_id"] for entry in await world.recorded("token_key.published")]
        assert len(published) == len(set(published))
        assert kids <= set(published)
        # Without the table there is no endpoint, and nobody has keys.
        world.server.kill()
        path = world.server.data / "server" / "server.toml"
        path.write_text(path.read_text().partition("[tokens]")[0])
        world.server.start()
        world.agent.reconnect()
        assert (await world.state()).token_keys == b""
        configure(world.server)
    finally:
        world.close()


async def test_the_command_line_shows_what_a_token_says(tmp_path, world) -> None:
    console = await world.workload(CONSOLE)
    token = console.token("billing:invoices:read", tenant="acme")
    file = tmp_path / "token"
    file.write_text(token + "\n")
    done = await asyncio.to_thread(eastwest, "transaction", "show", file, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["caller"], said["tenant"], said["verified"]) == (CONSOLE, "acme", False)
    plain = await asyncio.to_thread(eastwest, "transaction", "show", file)
    for part in token.split("."):
        assert part not in plain.stdout
    bad = await asyncio.to_thread(eastwest, "transaction", "show", "/dev/null")
    assert bad.returncode == 1
    nowhere = await asyncio.to_thread(eastwest, "transaction", "request", "--operation", "a:b:c")
    assert nowhere.returncode == 1
    assert "it is not said where to ask" in nowhere.stderr
    both = ["--socket", "a.sock", "--server", "a:1"]
    twice = await asyncio.to_thread(eastwest, "transaction", "request", "--operation", "a:b:c", *both)
    assert "--socket and --server are both given" in twice.stderr
    wrong = tmp_path / "wrong"
    wrong.write_text("hunter2")
    command = ["request", "--operation", "a:b:c", "--socket", "a.sock", "--subject-token", wrong]
    secret = await asyncio.to_thread(eastwest, "transaction", *command)
    assert (secret.returncode, "what --subject-token names is no token" in secret.stderr) == (1, True)
    assert "hunter2" not in secret.stderr
    away = await asyncio.to_thread(
        eastwest, "transaction", "request", "--operation", "a:b:c", "--socket", tmp_path / "no.sock"
    )
    assert away.returncode == 3


@asynccontextmanager
async def process(log, *words) -> AsyncIterator[None]:
    """A process of ours that says when it is ready, or that it begins."""
    with log.open("ab") as errors:
        running = await asyncio.create_subprocess_exec(*EASTWEST, *map(str, words), stdout=PIPE, stderr=errors)
    try:
        async with asyncio.timeout(60):
            line = await running.stdout.readline()
        assert b"ready" in line, log.read_text()
        yield
    finally:
        running.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            await running.communicate()


async def test_an_application_asks_through_its_sidecar_or_with_its_own_svid() -> None:
    # Unix sockets have short names.
    with tempfile.TemporaryDirectory(prefix="ew-") as short:
        place = Path(short)
        world = TokenWorld(place / "data")
        try:
            console = ESTATE["workloads/all.yaml"].splitlines()[2].replace("unix:uid:1002", f"unix:uid:{os.getuid()}")
            others = [line for line in ESTATE["workloads/all.yaml"].splitlines() if "/console," not in line]
            await world.start({"workloads/all.yaml": "\n".join([*others, console]) + "\n"})
            (place / "bundle.pem").write_text(eastwest("bundle", "show", "--data", world.server.data).stdout)
            (place / "token").write_text(
                eastwest("token", "create", "--data", world.server.data, "--group", "nodes").stdout
            )
            agent = ["agent", "run", "--data", world.server.data, "--server", f"127.0.0.1:{world.server.port}"]
            agent += ["--bundle", place / "bundle.pem", "--join-token-file", place / "token"]
            egress = place / "egress.sock"
            sidecar = ["sidecar", "run", "--data", world.server.data, "--egress-socket", egress]
            async with process(place / "agent.log", *agent), running_sidecar(place / "sidecar.log", egress, *sidecar):
                await check_the_ways_to_ask(world, egress)
        finally:
            world.close()


@asynccontextmanager
async def running_sidecar(log, egress, *words) -> AsyncIterator[None]:
    """An Envoy that has its way out."""
    with log.open("ab") as errors:
        running = await asyncio.create_subprocess_exec(*EASTWEST, *map(str, words), stdout=errors, stderr=errors)
    try:
        async with asyncio.timeout(60):
            while not egress.exists():
                assert running.returncode is None, log.read_text()
                await asyncio.sleep(0.05)
        yield
    finally:
        running.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            await running.wait()


async def check_the_ways_to_ask(world, egress) -> None:
    async def request(*words, code=0):
        done = await asyncio.to_thread(eastwest, "transaction", "request", *words)
        assert done.returncode == code, (done.stdout, done.stderr)
        return done

    port = (world.server.data / "server" / "tokens.port").read_text().strip()
    direct = ["--server", f"127.0.0.1:{port}", "--workload-api", world.server.data / "agent" / "agent.sock"]
    tokens = {}
    for name, way in (("sidecar", ["--socket", egress]), ("direct", direct)):
        found = await request("--operation", "billing:reports:make", *way)
        tokens[name] = from_claims(read_claims(found.stdout.strip()))
        assert (tokens[name].caller, tokens[name].action) == (CONSOLE, "billing:reports:make")
        refused = await request("--operation", "ledger:entries:write", "--tenant", "acme", *way, code=1)
        assert "OPERATION_NOT_PERMITTED" in refused.stderr
        assert not refused.stdout
    # The agent gives an application and its sidecar one SVID: a token that either got serves the other.
    assert tokens["sidecar"].certificate == tokens["direct"].certificate
    wanted = ["--operation", "billing:credits:create", "--tenant", "acme", "--reason", "ticket 1"]
    pending = await request(*wanted, "--socket", egress, "--json", code=1)
    approval = json.loads(pending.stdout)["approval"]
    error = json.loads(pending.stderr)["error"]
    assert (error["code"], error["where"]) == ("APPROVAL_REQUIRED", "")
    assert error["message"] == f"billing:credits:create needs an approval; {approval} waits for a decision"
    assert f"eastwest approval grant {approval} --reason 'why it may be done'" in error["fix"]
    silent = await request(*wanted[:4], "--socket", egress, code=1)
    assert "(give --reason to have it requested)" in silent.stderr
    misspelt = await request("--operation", "billing:report:make", "--socket", egress, "--json", code=1)
    error = json.loads(misspelt.stderr)["error"]
    assert (error["code"], error["fix"]) == ("UNLISTED_OPERATION", "did you mean 'billing:reports:make'?")
    waiting = asyncio.create_task(request(*wanted, "--socket", egress, "--json", "--wait", 30))
    await world.approvals("GrantApproval", id=approval, reason="agreed")
    said = json.loads((await waiting).stdout)
    assert from_claims(read_claims(said["token"])).approval == approval
