"""A service without a proxy against callers with real SVIDs: server, agent and every workload a process of its own."""

import asyncio
import json
import re
import shutil
import ssl
import subprocess
import tempfile
from pathlib import Path

import pytest
from envoy_mesh import Http
from sdk_world import TD, SdkWorld

from eastwest.sdk.httpx import GRANT, TOKEN_TYPE

BILLING = f"{TD}/prod/shop/billing"
WEB = f"{TD}/prod/shop/web"
GUIDE = Path(__file__).parents[2] / "docs/how-to/enforce-in-python.md"
BLOCKS = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADJUST = "/tenants/acme/adjustments"
CLOSED = '@id("closed") @owner("group:shop") @reason("closed")\nforbid (principal, action, resource);'


@pytest.fixture
async def world():
    root = Path(tempfile.mkdtemp(prefix="ews-", dir="/tmp"))  # sockets' paths must stay short
    made = SdkWorld(root)
    try:
        yield made
    finally:
        await made.close()
        shutil.rmtree(root, ignore_errors=True)


async def code(caller, world, method: str, path: str, **more) -> str:
    """The code of a refusal, or the HTTP status."""
    answer = await caller.ask("call", server=BILLING, url=world.url, method=method, path=path, **more)
    if answer.get("code"):
        assert answer["status"] in {400, 403}
        assert answer["body"]["error"]["code"] == answer["code"]
        assert answer["body"]["error"]["message"] != "the call is refused"
    return answer.get("code") or answer.get("status") or answer


async def token(caller, world, operation: str, **more) -> str:
    answer = await caller.ask("token", operation=operation, **more)
    assert "token" in answer, answer
    return answer["token"]


async def test_a_service_without_a_proxy(world):
    await world.start()
    await the_guide(world)
    await world.workload("billing", "sdk_service.py", world.socket, "billing", world.port)
    web, stranger = await world.caller("web"), await world.caller("stranger")
    await who_may_do_what(world, web, stranger)
    await tokens(world, web, stranger)
    await a_change_of_policy(world, web)


async def the_guide(world):
    """The page's own programs."""
    service, caller = (text.replace("9443", str(world.port)) for text in BLOCKS.findall(GUIDE.read_text()))
    for name, text in (("service.py", service), ("caller.py", caller)):
        (world.root / name).write_text(text)
    running = await world.workload("billing", world.root / "service.py", ready="")
    await world.opened()
    await world.workload("web", world.root / "caller.py", ready=f'200 {{"hello":"{WEB}"}}')
    await running.stop()


async def who_may_do_what(world, web, stranger):
    spoofed = [["x-eastwest-caller", BILLING], ["X-EastWest-Foo", "1"], ["x-original-url", "/keys"], ["x-mine", "1"]]
    answer = await web.ask(
        "call", server=BILLING, url=world.url, method="GET", path="/tenants/acme/invoices?a=b", headers=spoofed
    )
    assert answer["status"] == 200, answer
    seen = answer["body"]
    assert (seen["principal"], seen["operation"], seen["tenant"]) == (WEB, "billing:invoices:read", "acme")
    assert (seen["raw_path"], seen["query"]) == ("/tenants/acme/invoices", "a=b")
    handed = dict(seen["headers"])
    assert handed["x-eastwest-caller"] == WEB
    assert handed["x-mine"] == "1"
    assert not {"x-eastwest-foo", "x-original-url"} & handed.keys()

    assert await code(web, world, "GET", "/tenants/globex/invoices") == "TENANT_NOT_PERMITTED"
    assert await code(web, world, "GET", "/nothing") == "UNLISTED_OPERATION"
    assert await code(web, world, "POST", "/keys") == "OPERATION_NOT_PERMITTED"
    assert await code(stranger, world, "GET", "/status") == "OPERATION_NOT_PERMITTED"
    assert await code(web, world, "GET", "/status", headers=[["x_odd", "1"]]) == "REQUEST_REFUSED"

    # Nobody: no certificate, and no header makes one.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    raw = await Http.tcp(world.port, ssl=context, server_hostname="x")
    assert (await raw.ask("GET", "/status", ("x-eastwest-caller", WEB))).code == "MTLS_REQUIRED"
    # What libraries would tidy up before sending.
    for target in ("/status/../keys", "//status", "/%73tatus", "/status/.", "/x/..;/status"):
        reply = await raw.ask("GET", target)
        assert reply.code == "MTLS_REQUIRED", target
    for target in ("/a%2fb", "/a%5cb", "/a%00", "*", "/a#b"):
        assert (await raw.ask("GET", target)).code == "REQUEST_REFUSED", target
        assert await raw.reader.read() == b"", "nothing that follows it is read"
        await raw.close()
        raw = await Http.tcp(world.port, ssl=context, server_hostname="x")
    await raw.close()

    # Whom the client expects is whom it gets, or nothing is sent.
    wrong = await web.ask("call", server=WEB, url=world.url, method="GET", path="/status")
    assert wrong["error"] == "ConnectError"
    assert BILLING in wrong["message"]
    assert await code(web, world, "GET", "/status") == 200

    # All of it is in the ledger.
    rows = await world.decisions(
        lambda rows: {row["code"] for row in rows} >= {"ALLOWED", "MTLS_REQUIRED", "TENANT_NOT_PERMITTED"}
    )
    [row] = [row for row in rows if row["code"] == "TENANT_NOT_PERMITTED"]
    assert (row["caller"], row["tenant"], row["operation"]) == (WEB, "globex", "billing:invoices:read")


async def tokens(world, web, stranger):
    assert await code(web, world, "POST", "/reports") == "STEP_UP_REQUIRED"
    reports = await token(web, world, "billing:reports:make")
    for _ in range(2):
        answer = await web.ask(
            "call", server=BILLING, url=world.url, method="POST", path="/reports", headers=[], token=reports
        )
        assert answer["status"] == 200, answer
        assert answer["body"]["transaction"]
    head, claims, signature = reports.split(".")
    forged = f"{head}.{claims}.{'A' * len(signature)}"
    assert await code(web, world, "POST", "/reports", token=forged) == "TOKEN_INVALID"
    assert await code(web, world, "POST", "/reports", headers=[["txn-token", reports]], token=reports) == (
        "TOKEN_INVALID"
    )
    once = await token(web, world, "billing:adjustments:create", tenant="acme")
    assert await code(web, world, "POST", "/reports", token=once) == "TOKEN_WRONG_ACTION"
    assert await code(web, world, "POST", ADJUST, token=reports) == "TOKEN_WRONG_ACTION"
    assert await code(stranger, world, "POST", "/reports", token=reports) == "OPERATION_NOT_PERMITTED"
    assert await code(web, world, "POST", "/tenants/globex/adjustments", token=once) == "TENANT_NOT_PERMITTED"
    assert await code(web, world, "POST", ADJUST, token=once) == 200
    assert await code(web, world, "POST", ADJUST, token=once) == "TOKEN_USED"
    # Where tokens make no difference nobody looks at one.
    assert await code(web, world, "GET", "/status", token=forged) == 200


async def a_change_of_policy(world, web):
    await world.apply(**{"policies/shop.cedar": CLOSED})
    answer = await web.ask("call_until", status=403, server=BILLING, url=world.url, method="GET", path="/status")
    assert answer["code"] == "FORBIDDEN_BY_POLICY"


async def test_what_goes_on_without_the_agent_and_through_renewals(world):
    await world.start(web="ttl: 24s", billing="ttl: 24s")
    await world.workload("billing", "sdk_service.py", world.socket, "billing", world.port)
    web = await world.caller("web")
    step_up = await token(web, world, "billing:reports:make")
    assert await code(web, world, "POST", "/reports", token=step_up) == 200
    seen = await web.ask("calls_until_renewed", server=BILLING, url=world.url, method="GET", path="/status")
    assert seen.keys() == {"200"}
    # The token was for the certificate of then.
    assert await code(web, world, "POST", "/reports", token=step_up) == "TOKEN_WRONG_KEY"

    once = await token(web, world, "billing:adjustments:create", tenant="acme")
    await world.stop_agent()
    assert await code(web, world, "GET", "/status") == 200
    assert await code(web, world, "POST", "/keys") == "OPERATION_NOT_PERMITTED"
    assert await code(web, world, "POST", ADJUST, token=once) == "CHECK_UNAVAILABLE"
    await world.start_agent()
    # Both may have outlived their SVIDs meanwhile, and get new ones.
    await web.ask("call_until", status=200, server=BILLING, url=world.url, method="GET", path="/status")
    once = await token(web, world, "billing:adjustments:create", tenant="acme")
    assert await code(web, world, "POST", ADJUST, token=once) == 200


async def test_a_caller_behind_a_sidecar_reaches_a_service_without_one(world):
    """HTTP/1.1 to Uvicorn, HTTP/2 to who speaks it, by one and the same kind of cluster."""
    await world.start()
    await world.workload("billing", "sdk_service.py", world.socket, "billing", world.port)
    out = await world.sidecar("web")

    async def curl(url: str, *more: str) -> dict:
        command = ["curl", "-sS", "--max-time", "20", "--unix-socket", str(out), url, *more]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        said, _ = await process.communicate()
        assert process.returncode == 0
        return json.loads(said)

    seen = await curl("http://billing/tenants/acme/invoices?a=b", "-H", "x-mine: 1")
    assert (seen["principal"], seen["operation"], seen["tenant"]) == (WEB, "billing:invoices:read", "acme")
    assert (seen["query"], dict(seen["headers"])["x-mine"]) == ("a=b", "1")
    refused = await curl("http://billing/keys", "-d", "body")
    assert refused["error"]["code"] == "OPERATION_NOT_PERMITTED"
    said = await curl("http://eastwest/token", *token_form("billing:reports:make"))
    assert (await curl("http://billing/reports", "-d", "x", "-H", f"txn-token: {said['access_token']}"))["transaction"]
    # What is refused can be found by the reference that the caller was given.
    [row] = [
        row
        for row in await world.decisions(lambda rows: any(row["code"] == "OPERATION_NOT_PERMITTED" for row in rows))
        if row["code"] == "OPERATION_NOT_PERMITTED"
    ]
    assert row["reference"] == refused["error"]["reference"]

    http = await Http.unix(world.root / "web-admin.sock")
    lines = (await http.ask("GET", "/stats?filter=upstream_cx_http[12]_total")).body.decode().splitlines()
    await http.close()
    totals = {name.removeprefix("cluster."): int(count) for name, count in (line.split(": ") for line in lines)}
    spoken = {name for name, count in totals.items() if count and "agent" not in name}
    assert spoken == {"remote/billing.upstream_cx_http1_total", "remote/eastwest.upstream_cx_http2_total"}, totals


def token_form(operation: str) -> list[str]:
    """Curl's words for asking for a token."""
    fields = {"grant_type": GRANT, "requested_token_type": TOKEN_TYPE, "scope": operation}
    return [word for name, value in fields.items() for word in ("-d", f"{name}={value}")]
