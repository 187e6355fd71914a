"""The ledger of a running server: rows sealed while it runs, asked over the admin socket and from files alone."""

import asyncio
import csv
import io
import json
import os
import shutil
import signal
from pathlib import Path

import duckdb
import ledger_world as world
import pytest
from server_process import EASTWEST, eastwest

from eastwest.ledger.query import DecisionQuery

SETTINGS = "\n[ledger]\nseal_interval = 0.2\nseal_rows = 3\n"
CALLS = sum(row.count for row in world.ROWS[:-1])


@pytest.fixture(scope="module")
def server():
    """One server for all: nothing here changes what is stored."""
    loop = asyncio.new_event_loop()
    context = world.serving(SETTINGS)
    running = loop.run_until_complete(context.__aenter__())

    async def fill():
        await world.report(running, *world.ROWS)
        # The last of it is sealed, and a checkpoint covers its entry.
        async with asyncio.timeout(30), running.admin() as admin:
            while not world.all_sealed(running):
                await asyncio.sleep(0.05)
            await admin.flush_log()

    loop.run_until_complete(fill())
    yield running
    loop.run_until_complete(context.__aexit__(None, None, None))
    loop.close()


@pytest.fixture(scope="module")
def copied(server, tmp_path_factory):
    """Segments, log and key alone, as they would be carried to another machine."""
    place = tmp_path_factory.mktemp("copy")
    for name in ("ledger", "log"):
        shutil.copytree(server.data / "server" / name, place / name, ignore=shutil.ignore_patterns("hot.db*", "tmp"))
    shutil.copy(server.data / "server" / "log.vkey", place)
    return place


def sources(server, copied):
    return (("--data", server.data), ("--ledger", copied / "ledger"))


def test_the_same_answers_from_the_server_and_from_its_files(server, copied):
    for words in (
        ("search", "--service", "billing", "--verdict", "deny"),
        ("search", "--class", "expired"),
        ("search", "--after", 4, "--kind", "lost"),
        ("search", "--from", "2026-11-22T10:01:00Z", "--to", "2026-11-22T10:01:10Z"),
        ("top", "--by", "code", "--verdict", "deny"),
        ("edges",),
    ):
        online, offline = (
            world.told(eastwest("decisions", *words, *where, "--json")) for where in sources(server, copied)
        )
        for each in (online, offline):
            for row in each.get("decisions", ()):
                row.pop("agent")
        assert online == offline
        assert online["lost"] == 2
        assert any(online[name] for name in ("decisions", "top", "edges") if name in online), words


def test_without_a_word_it_searches_as_it_always_did(server):
    plain = world.told(eastwest("decisions", "--data", server.data, "--service", "orders", "--json"))
    assert [row["row"] for row in plain["decisions"]] == [1, 2, 3, 7]
    shown = eastwest("decisions", "--data", server.data, "--verdict", "deny")
    assert "claims spiffe://shop.example/dev/shop/rival" in shown.stdout
    assert "2 decisions were lost by agents and are not shown" in shown.stdout
    note = eastwest("decisions", "--data", server.data, "--service", "order")
    assert "did you mean 'orders'" in note.stderr


def test_every_format_of_an_export_has_every_row(server, copied, tmp_path):
    for number, where in enumerate(sources(server, copied)):
        made = {}
        for form in ("csv", "json", "jsonl", "parquet"):
            made[form] = tmp_path / f"{number}.{form}"
            done = eastwest("decisions", "export", *where, "--format", form, "--out", made[form])
            assert done.returncode == 0, done.stderr
            assert made[form].stat().st_mode & 0o777 == 0o600
        as_json = json.loads(made["json"].read_text())
        assert as_json == [json.loads(line) for line in made["jsonl"].read_text().splitlines()]
        assert [row["row"] for row in as_json] == list(range(1, 9))
        assert sum(row["count"] for row in as_json if row["kind"] == "decision") == CALLS
        as_csv = list(csv.DictReader(io.StringIO(made["csv"].read_text())))
        assert [row["caller"] for row in as_csv] == [row["caller"] for row in as_json]
        with duckdb.connect() as connection:
            found = connection.execute("SELECT SUM(count) FROM read_parquet(?)", [str(made["parquet"])]).fetchall()
        assert found == [(CALLS + 2,)]
    out = eastwest("decisions", "export", "--data", server.data, "--service", "billing")
    assert len(out.stdout.splitlines()) == 3


async def test_a_follower_sees_what_comes(server):
    process = await asyncio.create_subprocess_exec(
        *map(str, (*EASTWEST, "decisions", "-f", "--json", "--data", server.data, "--after", "6")),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        assert json.loads(await process.stdout.readline())["row"] == 7
    process.terminate()
    await process.wait()


def test_verification_finds_what_was_done_to_a_copy(copied, tmp_path):
    place = tmp_path / "copy"
    shutil.copytree(copied, place)
    words = (
        "decisions",
        "verify",
        "--ledger",
        place / "ledger",
        "--log-dir",
        place / "log",
        "--vkey",
        place / "log.vkey",
    )
    whole = world.told(eastwest(*words, "--json"))
    assert (whole["ok"], whole["sealed"], whole["rows"], whole["decisions"], whole["lost"]) == (True, 3, 8, CALLS, 2)

    victim = sorted((place / "ledger").rglob("*.parquet"))[1]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    done = eastwest(*words)
    name = victim.relative_to(place / "ledger")
    assert (done.returncode, done.stdout) == (1, f"{name}: was changed: its SHA-256 is not the one in the log\n")
    victim.unlink()
    assert f"{name}: is missing" in eastwest(*words).stdout

    bundle = max((place / "log" / "tile" / "entries" / "000.p").iterdir(), key=lambda path: int(path.name))
    raw = bytearray(bundle.read_bytes())
    raw[-2] ^= 1
    bundle.write_bytes(raw)
    done = eastwest(*words)
    assert done.returncode == 1
    assert "was changed" in done.stderr


def test_what_makes_no_sense_is_refused_with_what_would(server):
    for words, status, expected in (
        (("search", "--code", "ALOWED"), 1, "ALLOWED"),
        (("top", "--by", "servce"), 1, "service"),
        (("search", "--from", "yesterday"), 2, "2026-11-22T10:00:00Z"),
        (("search", "--class", "expire"), 1, "expired"),
        (("export", "--format", "xml"), 1, "parquet"),
    ):
        done = eastwest("decisions", *words, "--data", server.data)
        assert done.returncode == status, words
        assert expected in done.stderr
    assert "--ledger DIR" in eastwest("decisions", "top").stderr


async def test_a_reader_that_dies_is_replaced(server):
    async with server.admin() as admin:
        before, _ = await admin.ledger_rows(DecisionQuery(limit=2))
        workers = workers_of(server.process.pid)
        assert workers
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        after, _ = await admin.ledger_rows(DecisionQuery(limit=2))
    assert before == after


def workers_of(pid):
    """Processes that the server started to work on its ledger."""
    children = [int(each) for path in Path(f"/proc/{pid}/task").glob("*/children") for each in path.read_text().split()]
    return [each for each in children if b"ledger_worker" in Path(f"/proc/{each}/cmdline").read_bytes()]
