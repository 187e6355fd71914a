"""Who is contained, or whose certificate has ended, does not come back by TLS session resumption."""

import asyncio
import datetime as dt
import socket
import ssl

import pytest
from envoy_mesh import TD, Ca, Mesh, spiffe

from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    Rule,
    Sidecar,
    Verdict,
)
from eastwest.registry.containment import Contained
from eastwest.testing.ports import free_port

CLIENT, SERVICE = spiffe("client"), spiffe("service")
ALLOW = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="p")
LIFE = 3.0  # seconds


def call(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[bytes, ssl.SSLSession | None, bool]:
    """One request on a connection that tries to resume ``session``: the status line, the session, whether it did."""
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="x", session=session) as tls,
    ):
        tls.sendall(b"GET /pub HTTP/1.1\r\nhost: svc\r\n\r\n")
        line = tls.recv(4096).partition(b"\r\n")[0]  # any ticket comes before it
        return line, tls.session, bool(tls.session_reused)


async def test_neither_an_expired_nor_a_contained_identity_resumes(tmp_path):
    ca, port = Ca(), free_port()
    mesh = Mesh(tmp_path, {TD: ca.pem})
    app = await mesh.app("any")
    cell = Cell(callers=(CLIENT,), rule=ALLOW)
    inbound = Inbound(
        service="web",
        address="127.0.0.1",
        port=port,
        protocol="http",
        mode=MtlsMode.STRICT,
        upstream=f"unix:{app.path}",
        operations=(OperationRules(name="w:r:a", match=HttpMatch(method="GET", path="/pub"), cells=(cell,)),),
    )
    sidecar = Sidecar(spiffe_id=SERVICE, version="v1", known_callers=(CLIENT, SERVICE), inbound=(inbound,))
    try:
        server = await mesh.add(sidecar, ca.identity(SERVICE))
        await mesh.settled()
        lasting = mesh.context(ca.identity(CLIENT))
        began = asyncio.get_running_loop().time()
        short = mesh.context(ca.identity(CLIENT, not_after=dt.timedelta(seconds=LIFE)))
        sessions = {}
        for name, context in (("short", short), ("lasting", lasting)):
            line, sessions[name], _ = await asyncio.to_thread(call, port, context, None)
            assert line == b"HTTP/1.1 200 OK"
            line, sessions[name], resumed = await asyncio.to_thread(call, port, context, sessions[name])
            assert (line, resumed) == (b"HTTP/1.1 200 OK", False), "a whole handshake each time"
            assert sessions[name] is None or not sessions[name].has_ticket
        mesh.contained = Contained(1, (CLIENT,))
        mesh.publish(server)
        await mesh.until(lambda: server.status and server.status.session.contained_acked == 1)
        line, _, resumed = await asyncio.to_thread(call, port, lasting, sessions["lasting"])
        assert (line, resumed) == (b"HTTP/1.1 403 Forbidden", False)
        mesh.contained = Contained(2, ())
        mesh.publish(server)
        await mesh.until(lambda: server.status and server.status.session.contained_acked == 2)
        line, _, _ = await asyncio.to_thread(call, port, lasting, sessions["lasting"])
        assert line == b"HTTP/1.1 200 OK", "released"
        await asyncio.sleep(max(0.0, began + LIFE + 1.1 - asyncio.get_running_loop().time()))  # seconds of X.509
        # Refused: with the alert, unless the connection's end overtakes it.
        with pytest.raises((ssl.SSLError, ConnectionResetError), match=r"alert certificate|EOF occurred|reset"):
            line, _, resumed = await asyncio.to_thread(call, port, short, sessions["short"])
            raise AssertionError(f"an ended certificate got {line!r}, resumed {resumed}")
    finally:
        await mesh.close()
