"""`eastwest node purge`, on a server that has not heard of a node for a long time."""

import json

from server_process import ServerProcess, eastwest

from eastwest.clock import SystemClock
from eastwest.entropy import SystemEntropy
from eastwest.registry.node import Node
from eastwest.registry.registry import Registry
from eastwest.spiffe.id import TrustDomain
from eastwest.store.database import Database
from eastwest.store.registry import SqliteRegistryStore

DAY = 86_400
TD = TrustDomain("td.test")


async def remember(data, *nodes: Node) -> None:
    """Put nodes of long ago into the database of a server that is not running."""
    database = Database.open(data / "server/server.db", trust_domain=TD.name, clock=SystemClock())
    try:
        registry = await Registry.open(TD, SqliteRegistryStore(database), SystemEntropy())
        for node in nodes:
            await registry.nodes.record_attestation(node)
    finally:
        await database.close()


def node(name: str, days: int, **facts: object) -> Node:
    return Node(
        spiffe_id=TD.id(f"/spire/agent/x509pop/{name}"),
        attestation_type="x509pop",
        serial_current="1",
        not_after=int(SystemClock().now().timestamp()) - days * DAY,
        **{"can_reattest": True, **facts},
    )


async def test_a_purge_by_hand_is_recorded_as_one(tmp_path):
    server = ServerProcess(tmp_path / "data")
    server.init()
    await remember(server.data, node("old", 31), node("young", 29), node("first", 31, can_reattest=False))
    server.start()
    try:

        def purge(*words: str) -> list[str]:
            done = eastwest("node", "purge", "--data", server.data, "--json", *words)
            assert done.returncode == 0, done.stderr
            return [name.rpartition("/")[2] for name in json.loads(done.stdout)["nodes"]]

        async def records() -> list[tuple[str, str]]:
            async with server.admin() as admin:
                await admin.flush_log()
            shown = eastwest("log", "show", "--data", server.data, "--json").stdout
            entries = [each["entry"] for each in json.loads(shown)["entries"]]
            return [(e["kind"], e["subject"].rpartition("/")[2]) for e in entries if e["kind"].startswith("node.")]

        assert purge("--dry-run") == ["old"]
        assert await records() == []
        assert purge() == ["old"]
        assert await records() == [("node.purged", "old")]
        assert purge("--every-kind") == ["first"]
        # A moment to come is none: whoever may still act is not forgotten.
        assert purge("--expired-for", "0", "--every-kind") == ["young"]
        assert [kind for kind, _ in await records()] == ["node.purged"] * 3
    finally:
        server.kill()
