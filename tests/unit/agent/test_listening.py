"""Which TCP ports processes listen on, beside the one that is guarded: real sockets of real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from eastwest.agent.examining import look_at_ports
from eastwest.agent.listening import Listening, beside, listening
from eastwest.agent.sidecars import Instance
from eastwest.mesh.snapshot import Snapshot
from eastwest.policy.enforcement import Inbound, MtlsMode, Sidecar

_CODE = """
import socket, sys
one = socket.socket()
one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
one.bind((sys.argv[1], int(sys.argv[2])))
one.listen()
print("listens", flush=True)
sys.stdin.read()
"""


@contextmanager
def other_process(address: str, port: int) -> Iterator[int]:
    """A process that listens there until the end."""
    command = [sys.executable, "-c", _CODE, address, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listens\n"
        yield process.pid
        assert process.stdin is not None
        process.stdin.close()


@contextmanager
def guarded() -> Iterator[int]:
    """A port that this process listens on, as an Envoy does: so that others of its user may share it."""
    with socket.socket() as mine:
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        mine.bind(("127.0.0.1", 0))
        mine.listen()
        yield mine.getsockname()[1]


def test_who_shares_the_guarded_port_is_found() -> None:
    with guarded() as port:
        assert beside(os.getpid(), {port}, ()) == []
        with other_process("127.0.0.1", port) as pid:
            assert beside(os.getpid(), {port}, ()) == [(Listening("127.0.0.1", port), pid)]
            assert Listening("127.0.0.1", port) in listening(os.getpid())


def test_the_same_port_at_another_address_is_found_unless_it_is_known() -> None:
    with guarded() as port, other_process("127.0.0.9", port) as pid:
        assert beside(os.getpid(), {port}, ()) == [(Listening("127.0.0.9", port), pid)]
        assert beside(os.getpid(), {port}, {("127.0.0.9", port)}) == []
        assert beside(os.getpid(), {port + 1}, ()) == []


def sidecar(pid: int, address: str, port: int) -> Instance:
    inbound = Inbound(
        service="s",
        address=address,
        port=port,
        protocol="http",
        mode=MtlsMode.STRICT,
        upstream="unix:/nowhere",
        operations=(),
    )
    rules = Sidecar(spiffe_id="spiffe://td.test/s", version="v", known_callers=(), inbound=(inbound,))
    return Instance("n", pid, "", rules, Snapshot("", {}))


def test_two_agents_call_a_socket_by_one_name_if_no_caller_can_mistake_it() -> None:
    with guarded() as port, other_process("127.0.0.9", port) as pid:
        here = look_at_ports(sidecar(os.getpid(), "127.0.0.1", port), ())
        there = look_at_ports(sidecar(pid, "127.0.0.9", port), ())
        assert list(here.strangers.values()) == list(there.meant) != []
        assert list(there.strangers.values()) == list(here.meant)
        assert [words for words in here.listening if words.endswith("a stranger")] == list(here.strangers)

        # All addresses of the machine are guarded: the other process takes calls that are meant for it.
        everywhere = look_at_ports(sidecar(os.getpid(), "0.0.0.0", port), ())
        assert [words for words in everywhere.listening if f"(pid {pid}), a stranger" in words]
        assert everywhere.strangers == {}


def test_a_socket_at_the_guarded_address_or_everywhere_is_never_anothers() -> None:
    for address in ("127.0.0.1", "0.0.0.0"):
        with guarded() as port, other_process(address, port) as pid:
            here = look_at_ports(sidecar(os.getpid(), "127.0.0.1", port), ())
            there = look_at_ports(sidecar(pid, address, port), ())
            assert [words for words in here.listening if f"(pid {pid}), a stranger" in words]
            assert here.strangers == {}
            assert address == "127.0.0.1" or there.meant == ()
