"""A running server keeps its index of the log; `eastwest log search` answers beside it, proven, and after it ended."""

import json
import time

import pytest
from server_process import ServerProcess, eastwest

from eastwest.errors import NotFound
from eastwest.store.log_index import SqliteLogIndex


@pytest.fixture
def server(tmp_path):
    server = ServerProcess(tmp_path / "data")
    server.init()
    toml = server.data / "server/server.toml"
    toml.write_text(f'{toml.read_text()}\n[log]\nmark = "{tmp_path / "mark"}"\nkeep_entries_days = 30\n')
    server.start()
    yield server
    server.kill()


def covered(server):
    try:
        index = SqliteLogIndex.open(server.data / "server/log-index.db", readonly=True)
    except NotFound:
        return 0
    try:
        return index.covered.size if index.covered else 0
    finally:
        index.close()


def search(server, *words):
    done = eastwest("log", "search", "--data", server.data, "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def test_a_running_server_is_searched(server, tmp_path):
    agent = await server.join()
    end = time.monotonic() + 20
    # The log's size is the checkpoint's, within a second of the last entry; the index follows it.
    while covered(server) < search(server)["size"] or not search(server, "--kind", "node.attested")["entries"]:
        assert time.monotonic() < end, "the index does not follow"
    found = search(server, "--kind", "node.attested")
    assert [hit["entry"]["subject"] for hit in found["entries"]] == [str(agent.id)]
    assert search(server, "--subject", agent.id)["entries"]
    assert (tmp_path / "mark").read_bytes() == (server.data / "server/log/checkpoint").read_bytes()
    assert "Minimum index: 0" in (server.data / "server/log/retention").read_text()
    done = eastwest("log", "verify", "--data", server.data)
    assert "the server's database has the same entries" in done.stdout, done.stderr
    server.stop()
    (server.data / "server/log-index.db").unlink()
    assert len(search(server, "--kind", "node.attested")["entries"]) == 1
    # An old copy of the whole data directory: nothing in it can tell, the mark can.
    (tmp_path / "mark").write_bytes(b"shop.example/other\n0\n\n")
    done = eastwest("server", "run", "--data", server.data)
    assert done.returncode == 1
    assert str(tmp_path / "mark") in done.stderr


def test_a_mark_within_the_data_directory_is_refused(tmp_path):
    server = ServerProcess(tmp_path / "data")
    server.init()
    toml = server.data / "server/server.toml"
    toml.write_text(f'{toml.read_text()}\n[log]\nmark = "{server.data / "mark"}"\n')
    done = eastwest("server", "check", "--data", server.data)
    assert done.returncode == 1
    assert "log.mark" in done.stdout + done.stderr
