"""A server that makes no transaction tokens says so wherever an estate that demands them comes by."""

import asyncio
import json
import re
import urllib.request

from server_process import eastwest
from token_world import ESTATE, TD, configure

NOBODY = "nobody can call billing:adjustments:create, billing:credits:create, billing:refunds:create"
FIX = "add [tokens] to server.toml and restart the server"


def written(place, **files):
    for name, text in {**ESTATE, **files}.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return place


def test_demands_that_nobody_can_meet(server, tmp_path) -> None:
    estate = written(tmp_path / "estate")
    for command in ("plan", "apply"):
        done = eastwest(command, estate, "--data", server.data)
        assert done.returncode == 0, done.stderr
        [warning] = [line for line in done.stdout.splitlines() if line.startswith("warning: nobody can call")]
        assert NOBODY in warning
        assert re.search(r", [0-9]+ more: transaction tokens are demanded", warning)
        assert FIX in warning
    as_json = json.loads(eastwest("plan", estate, "--data", server.data, "--json").stdout)
    assert any(NOBODY in warning for warning in as_json["registrations"]["warnings"])

    check = json.loads(eastwest("server", "check", "--data", server.data, "--json").stdout)
    [found] = [one for one in check["findings"] if one["what"] == "tokens"]
    assert (found["bad"], found["fix"]) == (True, FIX)
    assert NOBODY in found["state"]
    port = (server.data / "server" / "health.port").read_text().strip()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=20) as ready:
        assert any(NOBODY in warning for warning in json.load(ready)["warnings"])

    for command in (("list",), ("show", "ffff")):
        done = eastwest("approval", *command, "--data", server.data, "--json")
        error = json.loads(done.stderr)["error"]
        told = ("FAILED_PRECONDITION", "this server has no token endpoint", FIX)
        assert (error["code"], error["message"], error["fix"]) == told

    # With them there is nothing to say, nor where nothing is demanded.
    configure(server)
    server.kill()
    server.start()
    assert "nobody can call" not in eastwest("plan", estate, "--data", server.data).stdout
    check = json.loads(eastwest("server", "check", "--data", server.data, "--json").stdout)
    assert not [one for one in check["findings"] if one["bad"]]
    assert eastwest("approval", "list", "--data", server.data).returncode == 0


def test_decisions_that_cannot_be_are_told_apart_from_none(server, tmp_path) -> None:
    assert eastwest("apply", written(tmp_path / "estate"), "--data", server.data).returncode == 0

    def decisions(*words):
        return eastwest("decisions", "--data", server.data, *words)

    wrong = decisions("--code", "STEP_UP_REQUIRD")
    assert wrong.returncode == 1
    assert "did you mean 'STEP_UP_REQUIRED'?" in wrong.stderr
    for words, note in (
        (("--service", "biling"), "note: the estate has no service 'biling' (did you mean 'billing'?)"),
        (("--caller", f"{TD}/prod/shop/webb"), f"(did you mean '{TD}/prod/shop/web'?)"),
    ):
        done = decisions(*words)
        assert done.returncode == 0
        assert note in done.stderr
    assert decisions("--service", "billing", "--caller", f"{TD}/prod/shop/web", "--code", "ALLOWED").stderr == ""


async def test_a_sidecar_that_knows_no_endpoint(tmp_path) -> None:
    """What it answers is said in the words of who asks for a token."""
    body = json.dumps({"error": {"code": "UNKNOWN_SERVICE", "message": "no service of this name can be reached"}})

    async def answer(reader, writer) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
        writer.write(f"HTTP/1.1 404 Not Found\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    serving = await asyncio.start_unix_server(answer, str(tmp_path / "s"))
    async with serving:
        words = ("transaction", "request", "--socket", tmp_path / "s", "--operation", "a:b:c", "--json")
        done = await asyncio.to_thread(eastwest, *words)
    error = json.loads(done.stderr)["error"]
    assert (error["message"], error["fix"]) == ("this server has no token endpoint", FIX)
