"""Plaintext callers of a real Envoy, named by the agent while they are connected."""

import asyncio
import os
import shutil
import sys
from asyncio.subprocess import PIPE
from collections import deque
from pathlib import Path

import pytest
from envoy.service.auth.v3 import external_auth_pb2
from envoy_mesh import TD, Ca, Mesh, spiffe

from eastwest.agent.peers import finder
from eastwest.agent.xds import Principal
from eastwest.policy.enforcement import DecisionCode, HttpMatch, Inbound, MtlsMode, OperationRules, Sidecar, TcpMatch
from eastwest.testing.ports import free_port

SHOP = spiffe("shop")
CALL = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as c:
    c.sendall(b"GET /orders HTTP/1.1\\r\\nhost: shop\\r\\nconnection: close\\r\\n\\r\\n")
    c.recv(4096)
"""


@pytest.fixture
async def shop(tmp_path, request):
    """A service and its sidecar: (mesh, port)."""
    protocol, mode = getattr(request, "param", ("http", MtlsMode.PERMISSIVE))
    ca = Ca()
    mesh = Mesh(tmp_path, {TD: ca.pem})
    await mesh.app("shop")
    match = TcpMatch() if protocol == "tcp" else HttpMatch(method="GET", path="/orders")
    inbound = Inbound(
        service="shop",
        address="127.0.0.1",
        port=free_port(),
        protocol=protocol,
        mode=mode,
        upstream=f"unix:{tmp_path}/shop-app.sock",
        operations=(OperationRules(name="shop:orders:list", match=match),),
    )
    await mesh.add(Sidecar(spiffe_id=SHOP, version="v1", known_callers=(SHOP,), inbound=(inbound,)), ca.identity(SHOP))
    try:
        await mesh.settled()
        yield mesh, inbound.port
    finally:
        await mesh.close()


async def called(place: Path, name: str, port: int) -> None:
    """A process that runs ``name`` calls once, in plaintext."""
    script = place / name
    script.write_text(CALL)
    process = await asyncio.create_subprocess_exec(sys.executable, str(script), str(port))
    assert await process.wait() == 0


async def test_two_callers_behind_one_address_are_two(shop, tmp_path):
    mesh, port = shop
    await called(tmp_path, "reports.py", port)
    await called(tmp_path, "backup.py", port)
    await mesh.until(lambda: len(mesh.decisions) == 2, lambda: str(mesh.decisions))
    first, second = mesh.decisions
    assert first.source == second.source == "127.0.0.1"
    assert first.code is DecisionCode.MTLS_REQUIRED
    assert not first.enforced
    exe = os.path.realpath(sys.executable)
    assert first.peer == f"uid:0 user:root exe:{exe} program:reports.py"
    assert second.peer == f"uid:0 user:root exe:{exe} program:backup.py"


async def test_short_lived_callers_that_come_all_at_once_are_all_named(shop):
    """One program, many processes that end with their answer, and more of them than walks through all processes."""
    mesh, port = shop
    call = (
        f"exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET /orders HTTP/1.1\\r\\nhost: s\\r\\n\\r\\n' >&3; read -r _ <&3"
    )
    some = [
        await asyncio.create_subprocess_exec("/bin/bash", "-c", f"read -r _; {call}", stdin=PIPE) for _ in range(40)
    ]
    await asyncio.gather(*(each.communicate(b"now\n") for each in some))
    await mesh.until(lambda: len(mesh.decisions) == 40, lambda: str(len(mesh.decisions)))
    exe = os.path.realpath("/bin/bash")
    assert len({one.peer for one in mesh.decisions}) == 1
    assert mesh.decisions[0].peer.startswith(f"uid:0 user:root exe:{exe} from:"), "what runs these tests"


@pytest.mark.skipif(shutil.which("curl") is None, reason="jobs call by curl")
async def test_jobs_that_call_by_curl_are_told_apart_by_their_scripts(shop, tmp_path):
    mesh, port = shop
    for name in ("nightly.sh", "reports.sh"):
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\ntimeout 10 curl -s http://127.0.0.1:{port}/orders\nexit 0\n")
        script.chmod(0o755)
        process = await asyncio.create_subprocess_exec(str(script), stdout=PIPE)
        await process.communicate()
    await mesh.until(lambda: len(mesh.decisions) == 2, lambda: str(mesh.decisions))
    exe = os.path.realpath(str(shutil.which("curl")))
    assert [one.peer for one in mesh.decisions] == [
        f"uid:0 user:root exe:{exe} from:{name}" for name in ("nightly.sh", "reports.sh")
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
async def test_one_process_may_be_several_users(shop, tmp_path):
    """And another program, under the pid and the start that it had."""
    mesh, port = shop
    script = tmp_path / "many.py"
    script.write_text(f"""
import encodings.idna, os, socket, sys
for user in (65534, 1):
    os.seteuid(user)
    exec({CALL!r})
    os.seteuid(0)
if "again" not in sys.argv:
    os.execv(sys.executable, [sys.executable, {str(tmp_path)!r} + "/more.py", sys.argv[1], "again"])
""")
    (tmp_path / "more.py").write_text(script.read_text())
    process = await asyncio.create_subprocess_exec(sys.executable, str(script), str(port))
    assert await process.wait() == 0
    await mesh.until(lambda: len(mesh.decisions) == 4, lambda: str(mesh.decisions))
    told = [(one.peer.split(" ")[0], one.peer.rpartition(":")[2]) for one in mesh.decisions]
    assert told == [("uid:65534", "many.py"), ("uid:1", "many.py"), ("uid:65534", "more.py"), ("uid:1", "more.py")]


@pytest.mark.parametrize("shop", [("tcp", MtlsMode.PERMISSIVE), ("http", MtlsMode.STRICT)], indirect=True)
async def test_they_have_names_in_every_mode_and_protocol(shop, tmp_path):
    mesh, port = shop
    await called(tmp_path, "reports.py", port)
    decision = await mesh.decision(lambda d: d.peer)
    assert decision.peer.endswith("program:reports.py")


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's process is made by root alone")
async def test_the_user_is_the_kernels_word(shop, tmp_path):
    """Whatever it calls itself, and to whomever it lends its socket."""
    mesh, port = shop
    # It calls itself by another's words, in its arguments and in its name.
    renamed = "open('/proc/self/comm', 'w').write('uid:0 unit:pay')"
    program = f"import encodings.idna, os, socket, sys; {renamed}; os.setuid(65534); {CALL}"
    words = ("-c", program, str(port), "uid:0", "unit:payments.service")
    process = await asyncio.create_subprocess_exec(sys.executable, *words)
    assert await process.wait() == 0
    decision = await mesh.decision(lambda d: d.peer)
    assert decision.peer.startswith("uid:65534 user:nobody exe:")
    assert not {"uid:0", "unit:payments.service"} & set(decision.peer.split())


async def test_a_caller_waits_for_no_agent(shop, monkeypatch):
    """An agent that takes too long, or is away, costs a plaintext connection its name and nothing else."""
    mesh, port = shop
    held = asyncio.Event()

    async def slow(*_: object) -> object:
        await held.wait()
        return finder.ALLOWED

    monkeypatch.setattr(mesh.peers, "check", slow)
    connection = await mesh.plain(port)
    assert (await connection.ask("GET", "/orders")).status == 200
    held.set()
    await mesh.stop_agent()
    connection = await mesh.plain(port)
    assert (await connection.ask("GET", "/orders")).status == 200


async def test_a_name_that_is_found_late_is_found(shop, monkeypatch):
    """The sidecar has gone on meanwhile; the connection is there."""
    mesh, port = shop
    held = asyncio.Event()
    find = mesh.peers._find

    async def slow(ends):
        await held.wait()
        return await find(ends)

    monkeypatch.setattr(mesh.peers, "_find", slow)
    connection = await mesh.plain(port)
    assert (await connection.ask("GET", "/orders")).status == 200
    held.set()
    decision = await mesh.decision(lambda d: d.code is DecisionCode.MTLS_REQUIRED)
    assert decision.peer.startswith("uid:")


async def test_a_connection_that_is_older_than_the_agent_has_a_name_too(shop):
    mesh, port = shop
    connection = await mesh.plain(port)
    assert (await connection.ask("GET", "/orders")).status == 200
    await mesh.decision(lambda d: d.peer)
    mesh.decisions.clear()
    mesh.peers._peers.clear()  # what an agent that was started anew knows
    assert (await connection.ask("GET", "/orders")).status == 200
    decision = await mesh.decision(lambda d: d.code is DecisionCode.MTLS_REQUIRED)
    assert decision.peer.startswith("uid:")


async def test_what_is_remembered_is_of_the_connection(shop):
    """A port that was another's before has not its name, also when nobody looks who has it now."""
    mesh, port = shop
    connection = await mesh.plain(port)
    assert (await connection.ask("GET", "/orders")).status == 200
    address, number = connection.writer.get_extra_info("sockname")
    sidecar = Principal((SHOP,))
    assert mesh.peers.name(sidecar, address, number).startswith("uid:")
    assert mesh.peers.name(Principal((SHOP,), pid=77), address, number) == ""
    mesh.peers._asked.extend([mesh.peers._clock.monotonic()] * finder.MAX_IN_BURST)
    request = external_auth_pb2.CheckRequest()
    end = request.attributes.source.address.socket_address
    end.address, end.port_value = address, number
    assert mesh.peers.is_flooded(request)
    assert mesh.peers.name(sidecar, address, number) == ""
    there = request.attributes.destination.address.socket_address
    there.address, there.port_value = "127.0.0.1", port
    mesh.peers._shares[os.geteuid()] = deque([mesh.peers._clock.monotonic()] * finder.SHARE, maxlen=finder.SHARE)
    assert mesh.peers.is_flooded(request)
    assert mesh.peers.name(sidecar, address, number) == "uid:0 user:root", "the kernel's word alone"


async def test_a_flood_is_answered_and_not_looked_at(shop):
    """Who sends it gets no more of the agent than an answer and a share; the next one is named again."""
    mesh, port = shop
    mesh.peers._asked.extend([mesh.peers._clock.monotonic()] * finder.MAX_IN_BURST)
    connection = await mesh.plain(port)
    assert (await connection.ask("GET", "/orders")).status == 200
    assert (mesh.peers.counters.skipped, mesh.peers.counters.named) == (0, 1), "a share is everybody's"
    mesh.peers._shares[os.geteuid()].extend([mesh.peers._clock.monotonic()] * finder.SHARE)
    connection = await mesh.plain(port)
    assert (await connection.ask("GET", "/orders")).status == 200
    assert (mesh.peers.counters.skipped, mesh.peers.counters.named) == (1, 1)
    mesh.peers._asked.clear()
    connection = await mesh.plain(port)
    assert (await connection.ask("GET", "/orders")).status == 200
    assert mesh.peers.counters.named == 2
