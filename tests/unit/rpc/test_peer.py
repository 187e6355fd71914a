"""The kernel's word on who is calling, with real processes."""

import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from eastwest.rpc.peer import Peer, UnknownPeer, peer_credentials, started_at

CONNECT = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
HOLD = CONNECT + "sys.stdin.read()"
LEAVE = CONNECT
# The child of the caller keeps the connection; the caller itself ends.
HAND_OVER = CONNECT + "import os; os.fork() and os._exit(0); sys.stdin.read()"


@pytest.fixture
def listener(tmp_path):
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        listener.settimeout(30)
        yield listener


def start(listener: socket.socket, script: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-S", "-c", script, listener.getsockname()]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


@pytest.fixture(params=[True, False], ids=["pidfd", "start-time"])
def use_pidfd(request):
    return request.param


def test_a_caller_is_known_and_its_end_is_seen(listener, use_pidfd):
    process = start(listener, HOLD)
    connection, _ = listener.accept()
    with connection, Peer.of(connection, use_pidfd=use_pidfd) as peer:
        assert (peer.pid, peer.uid, peer.gid) == (process.pid, os.geteuid(), os.getegid())
        assert peer_credentials(connection) == (process.pid, os.geteuid(), os.getegid())
        assert (peer._pidfd is not None) == use_pidfd
        assert peer.is_alive()
        process.communicate()
        assert not peer.is_alive()


def test_a_zombie_is_not_alive(listener, use_pidfd):
    process = start(listener, HOLD)
    connection, _ = listener.accept()
    with connection, Peer.of(connection, use_pidfd=use_pidfd) as peer:
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not peer.is_alive()
    process.wait()


def test_a_caller_that_ended_is_refused(listener, use_pidfd):
    process = start(listener, LEAVE)
    connection, _ = listener.accept()
    process.communicate()
    with connection, pytest.raises(UnknownPeer):
        Peer.of(connection, use_pidfd=use_pidfd)


def test_who_was_handed_the_connection_does_not_inherit(listener, use_pidfd):
    process = start(listener, HAND_OVER)
    connection, _ = listener.accept()
    process.wait()
    with connection:
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):  # the connection is alive, in the hands of the child
            connection.recv(1)
        with pytest.raises(UnknownPeer):
            Peer.of(connection, use_pidfd=use_pidfd)
    process.stdin.close()


def test_a_process_that_got_the_same_pid_does_not_inherit(listener, use_pidfd):
    process = start(listener, HOLD)
    connection, _ = listener.accept()
    with connection, Peer.of(connection, use_pidfd=use_pidfd) as peer:
        process.communicate()
        heir = _with_pid(peer.pid)
        try:
            assert Path(f"/proc/{peer.pid}").exists()
            assert not peer.is_alive()
            if use_pidfd:
                with pytest.raises(UnknownPeer):
                    Peer.of(connection)
        finally:
            heir.communicate()


def test_a_closed_peer_is_nobody(listener, use_pidfd):
    process = start(listener, HOLD)
    connection, _ = listener.accept()
    with connection:
        peer = Peer.of(connection, use_pidfd=use_pidfd)
        peer.close()
        peer.close()
        assert not peer.is_alive()
    process.communicate()


def test_no_descriptor_is_left_open(listener):
    process = start(listener, HOLD)
    connection, _ = listener.accept()
    before = sorted(os.listdir("/proc/self/fd"))
    with connection:
        with Peer.of(connection) as peer:
            assert not os.get_inheritable(peer._pidfd)
        assert sorted(os.listdir("/proc/self/fd")) == before
    process.communicate()


def test_a_socket_of_another_kind_has_no_peer():
    with socket.socket(socket.AF_INET) as inet, pytest.raises(UnknownPeer):
        Peer.of(inet)


def test_start_times_are_read_past_any_name(tmp_path):
    program = tmp_path / "a) R 1 2 (b"
    program.symlink_to("/bin/cat")
    process = subprocess.Popen([program], stdin=subprocess.PIPE)
    ticks = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
    assert started_at(process.pid) == ticks > 0
    process.communicate()
    assert started_at(process.pid) == 0


def _with_pid(pid: int) -> subprocess.Popen[bytes]:
    """A new process that has the pid of one that ended, as after the pids have gone round."""
    # Start times count in ticks of 10 ms; the heir must not be born in the tick of its predecessor.
    born = _uptime_ticks()
    while _uptime_ticks() <= born + 1:
        os.sched_yield()
    for _ in range(20):
        try:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        except OSError:
            pytest.skip("this kernel, or user, does not let a test choose a pid")
        process = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
        if process.pid == pid:
            return process
        process.communicate()
    pytest.skip("other processes took the pid each time")


def _uptime_ticks() -> int:
    return int(float(Path("/proc/uptime").read_text().split()[0]) * os.sysconf("SC_CLK_TCK"))
