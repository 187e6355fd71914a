"""The log over HTTP: types, caching, compression, and nothing but the log."""

import asyncio
import gzip
import re

import httpx
import pytest
from witness_world import ORIGIN, listening

from eastwest.errors import InvalidInput, Unavailable
from eastwest.log.note import NoteKey
from eastwest.log.verify import verify_log
from eastwest.server.config import LogSettings, ServerConfig, ServerFile, ServerPaths
from eastwest.server.log.serving import log_app, parse_place
from eastwest.testing.log import MemoryFiles, TestSigner, build_files

KEY = NoteKey.of(ORIGIN, TestSigner())
ENTRIES = [f'{{"number":{i},"text":"{"same " * 20}"}}'.encode() for i in range(700)]
FILES = build_files(ENTRIES, ORIGIN, TestSigner())


@pytest.fixture
async def client():
    files = MemoryFiles(FILES)
    files["checkpoint.witnessed"] = files["checkpoint"]
    async with (
        listening(log_app(files, {"log.vkey": KEY.vkey})) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as made,
    ):
        made.files = files
        yield made


async def test_every_file_is_served_as_it_is(client):
    fetched = MemoryFiles()
    for path in FILES:
        answer = await client.get(f"/{path}")
        assert answer.status_code == 200, path
        fetched[path] = answer.content
    assert fetched == FILES
    assert verify_log(fetched, KEY, fetched).ok


async def test_types_and_caching(client):
    head = await client.get("/checkpoint")
    assert (head.headers["content-type"], head.headers["cache-control"]) == ("text/plain; charset=utf-8", "no-cache")
    for path, caching in (
        ("tile/0/001", "public, max-age=31536000, immutable"),
        ("tile/entries/001", "public, max-age=31536000, immutable"),
        ("tile/0/002.p/188", "public, max-age=600, immutable"),
        ("tile/entries/002.p/188", "public, max-age=600, immutable"),
    ):
        answer = await client.get(f"/{path}")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["cache-control"] == caching
        assert answer.headers["x-content-type-options"] == "nosniff"
    gone = await client.get("/tile/0/009")
    assert (gone.status_code, gone.headers["cache-control"]) == (404, "no-cache"), "it may be there tomorrow"
    assert (await client.get("/log.vkey")).text == f"{KEY.vkey}\n"
    assert (await client.get("/checkpoint.witnessed")).content == FILES["checkpoint"]


async def test_head_has_the_headers_and_nothing_else_is_allowed(client):
    whole, short = await client.get("/tile/0/001"), await client.head("/tile/0/001")
    assert short.content == b""
    assert short.headers["content-length"] == str(len(whole.content))
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert (await client.request(method, "/checkpoint")).status_code == 405


@pytest.mark.parametrize(
    ("accepted", "zipped"),
    [
        ("gzip", True),
        ("br, gzip;q=0.5", True),
        ("*", True),
        ("gzip;q=0", False),
        ("identity", False),
        ("gzip;q=x", False),
    ],
)
async def test_bundles_are_compressed_for_who_accepts_it(client, accepted, zipped):
    for _ in range(2):  # the second is kept from the first
        request = client.build_request("GET", "/tile/entries/000", headers={"accept-encoding": accepted})
        answer = await client.send(request, stream=True)
        raw = b"".join([chunk async for chunk in answer.aiter_raw()])
        assert (answer.headers.get("content-encoding") == "gzip") is zipped
        assert answer.headers["vary"] == "accept-encoding"
        assert (gzip.decompress(raw) if zipped else raw) == FILES["tile/entries/000"]
        assert len(raw) < len(FILES["tile/entries/000"]) / 3 or not zipped
    client.files["tile/entries/000"] = changed = FILES["tile/entries/001"]
    assert (await client.get("/tile/entries/000", headers={"accept-encoding": "gzip"})).content == changed
    tile = await client.get("/tile/0/000", headers={"accept-encoding": accepted})
    assert "content-encoding" not in tile.headers, "hashes do not compress"


@pytest.mark.parametrize(
    "place",
    [
        "0/000/", "/0/000", "00/000", "64/000", "-1/000", "0/00", "0/0000", "0/x000/001", "0/x001", "0/001/002",
        "0/abc",
        "0/000.p/0", "0/000.p/256", "0/000.p/01", "0/000.p/", "0/000.p", "entries", "entries/../0/000", "0/../../keys",
        "0/000\n", "0/\u0660\u0660\u0660",
        "data/000", "0/000.p/1/2", "entries/x1/000", "0/x999/x999/x999/x999/x999/x999/x999/999",
    ],
)  # fmt: skip
def test_what_is_no_place_of_a_tile_is_never_looked_for(place):
    assert parse_place(place) is None


def test_places_of_tiles():
    assert parse_place("0/x001/x234/067") == ("tile/0/x001/x234/067", True, False)
    assert parse_place("63/000.p/255") == ("tile/63/000.p/255", False, False)
    assert parse_place("entries/999") == ("tile/entries/999", True, True)


async def test_nothing_beside_the_log_can_be_had(client):
    client.files["secret"] = b"x"
    client.files["tile/0/.new"] = b"x"
    inside = ["/secret", "/tile/../secret", "/tile/0/..%2f..%2fsecret", "/tile/0/.new", "/%2e%2e/secret"]
    for path in [*inside, "/", "/tile/", "/checkpoint/", "//checkpoint", "/log.ml-dsa-44.vkey"]:
        answer = await client.get(path)
        assert answer.status_code == 404, path
        assert "location" not in answer.headers


async def test_readers_that_do_not_read_cost_a_bounded_amount_and_only_for_as_long_as_they_stay(client, monkeypatch):
    whole = 5 << 20  # more than what two sockets hold of it for us
    client.files["tile/entries/000"] = bytes(whole)
    monkeypatch.setattr("eastwest.server.log.serving.BYTES_AT_ONCE", 3 * whole)
    async with listening(log_app(client.files, {})) as url:
        slow = [await asyncio.open_connection("127.0.0.1", httpx.URL(url).port, limit=1024) for _ in range(3)]
        for reader, writer in slow:
            writer.write(b"GET /tile/entries/000 HTTP/1.1\r\nhost: x\r\n\r\n")
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        async with httpx.AsyncClient(base_url=url, trust_env=False, headers={"accept-encoding": "identity"}) as other:
            refused = await other.get("/tile/entries/000")
            assert (refused.status_code, refused.headers["cache-control"]) == (503, "no-store")
            assert (await other.get("/checkpoint")).status_code == 200
            for _, writer in slow:
                writer.transport.abort()
            async with asyncio.timeout(5):
                while (answer := await other.get("/tile/entries/000")).status_code == 503:
                    pass
            assert answer.content == bytes(whole)


async def test_a_line_feed_in_a_path_changes_nothing_of_what_is_meant(client):
    client.files["checkpoint.witnessed"] = b"another"
    for path in ("checkpoint", "log.vkey"):
        plain, odd = await client.get(f"/{path}"), await client.get(f"/{path}%0a")
        assert odd.status_code == 404 or odd.content == plain.content


async def test_a_disk_that_fails_is_no_missing_file(client):
    def fail(path):
        raise Unavailable(f"{path} cannot be read")

    client.files.read = fail
    for path in ("/checkpoint", "/tile/0/000"):
        answer = await client.get(path)
        assert (answer.status_code, answer.headers["cache-control"]) == (503, "no-store")
        assert not re.search(r"cannot be read:|/", answer.text)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"port": 0, "address": "0.0.0.0"}, "not of this machine alone"),
        ({"port": 0, "certificate": "c"}, "belong together"),
        ({"witness_fail_closed_after": 400}, "need log.witness_policy"),
        ({"witness_policy": "p", "witness_fail_closed_after": 10}, "less than log.witness_stale_after"),
        ({"witness_policy": "p", "witness_interval": 1000}, "more than log.witness_stale_after"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path, settings, told):
    file = ServerFile(trust_domain="td.test", log=LogSettings(**settings))
    with pytest.raises(InvalidInput, match=told):
        ServerConfig.checked(ServerPaths(tmp_path), file)
