"""TCP services: the same callers' map decides per connection, before the service sees or says a byte."""

import asyncio

import msgspec
import pytest
from envoy_mesh import TD, Ca, Mesh, spiffe

from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    Inbound,
    MtlsMode,
    OperationRules,
    Outbound,
    Rule,
    Sidecar,
    TcpMatch,
    Verdict,
)
from eastwest.testing.ports import free_port

CLIENT, DB, OTHER = spiffe("client"), spiffe("db"), spiffe("other")
ALLOW = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="sessions")


class Database:
    """Greets, then echoes: a server that speaks first."""

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(b"hello ")
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    def stop(self) -> None:
        self._server.close()


@pytest.fixture
async def world(tmp_path):
    ca, mesh, database, port = Ca(), Mesh(tmp_path, {}), Database(), free_port()
    mesh.bundles[TD] = ca.pem
    await database.start()
    operation = OperationRules(name="db:sessions:open", match=TcpMatch(), cells=(Cell(callers=(CLIENT,), rule=ALLOW),))
    inbound = Inbound(
        service="db",
        address="127.0.0.1",
        port=port,
        protocol="tcp",
        mode=MtlsMode.STRICT,
        upstream=f"tcp:127.0.0.1:{database.port}",
        operations=(operation,),
    )
    known = (CLIENT, DB, OTHER)
    outbound = Outbound(service="db", spiffe_id=DB, endpoints=(f"127.0.0.1:{port}",), protocol="tcp")
    try:
        server = await mesh.add(
            Sidecar(spiffe_id=DB, version="v1", known_callers=known, inbound=(inbound,)), ca.identity(DB)
        )
        client = await mesh.add(
            Sidecar(spiffe_id=CLIENT, version="v1", known_callers=known, outbound=(outbound,)), ca.identity(CLIENT)
        )
        await mesh.settled()
        yield mesh, ca, database, server, client, port
    finally:
        await mesh.close()
        database.stop()


async def exchange(connection, *, say: bytes = b"select") -> bytes:
    connection.writer.write(say)
    return await asyncio.wait_for(connection.reader.read(100), 10)


async def test_a_permitted_caller_gets_through_its_own_sidecar(world):
    mesh, ca, database, _, client, port = world
    from envoy_mesh import Http

    connection = mesh._keep(await Http.unix(f"{client.settings.tcp_egress_directory}/db.sock"))
    assert (await exchange(connection)).startswith(b"hello ")
    row = await mesh.decision(lambda d: d.code == DecisionCode.ALLOWED)  # told while the session lasts
    assert not connection.reader.at_eof()
    await connection.close()
    assert (row.caller, row.operation, row.policy, row.enforced) == (CLIENT, "db:sessions:open", "sessions", True)
    assert database.connections == 1
    await exchange(await mesh.tls(port, ca.identity(spiffe("marker"))))
    await mesh.decision(lambda d: d.caller == spiffe("marker"))
    assert [d.caller for d in mesh.decisions].count(CLIENT) == 1


async def test_others_are_cut_before_the_service_knows_of_them(world):
    mesh, ca, database, *_, port = world
    refused = (
        (OTHER, "OPERATION_NOT_PERMITTED", "db:sessions:open"),
        (spiffe("stranger"), "UNKNOWN_CALLER", ""),
    )
    for caller, code, operation in refused:
        silent = await mesh.tls(port, ca.identity(caller))
        with pytest.raises(TimeoutError):  # not even the greeting comes
            await asyncio.wait_for(silent.reader.read(100), 0.3)
        assert await exchange(silent) == b""
        row = await mesh.decision(lambda d, c=caller: d.caller == c)
        assert (row.code, row.operation, row.enforced) == (code, operation, True)
    plain = await mesh.plain(port)
    assert await exchange(plain, say=b"plain text without tls") == b""
    row = await mesh.decision(lambda d: d.code == DecisionCode.MTLS_REQUIRED)
    assert (row.caller, row.enforced) == ("", True)
    assert database.connections == 0


async def test_permissive_reports_and_lets_through(world):
    mesh, ca, _, server, _, port = world
    inbound = msgspec.structs.replace(server.sidecar.inbound[0], mode=MtlsMode.PERMISSIVE)
    mesh.publish(server, msgspec.structs.replace(server.sidecar, version="v2", inbound=(inbound,)))
    await mesh.settled(server)
    for connection, code in (
        (await mesh.plain(port), "MTLS_REQUIRED"),
        (await mesh.tls(port, ca.identity(OTHER)), "OPERATION_NOT_PERMITTED"),
        (await mesh.tls(port, ca.identity(CLIENT)), "ALLOWED"),
    ):
        assert (await exchange(connection, say=b"some words to say")).startswith(b"hello ")
        await connection.close()
        row = await mesh.decision(lambda d, c=code: d.code == c and d.policy_version == "v2")
        print(mesh.decisions)
        assert (row.mode, row.enforced) == (MtlsMode.PERMISSIVE, False)
