"""What can be said of a process that holds a socket, and how much of it is its own word."""

import os
import shutil
import socket
import subprocess
import sys

import pytest

from eastwest.agent.peers.namespaces import MAX_WALKS, Namespaces
from eastwest.agent.peers.processes import (
    MAX_NAME,
    Holder,
    candidates,
    holders_of,
    name_of,
    program_of,
    same_process,
    unit_of,
)
from eastwest.agent.peers.sockets import Ends, owner_of
from eastwest.errors import InvalidInput
from eastwest.rpc.peer import started_at


@pytest.fixture
def pair():
    """Both ends of a connection within this process."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as client,
        listening.accept()[0] as served,
    ):
        yield client, served


def test_the_kernel_names_the_socket_of_either_end(pair):
    client, served = pair
    ends = Ends(client.getsockname(), client.getpeername())
    owner = owner_of(ends)
    assert owner is not None
    assert owner.uid == os.geteuid()
    assert os.readlink(f"/proc/self/fd/{client.fileno()}") == f"socket:[{owner.inode}]"
    other = owner_of(Ends(ends.remote, ends.local))
    assert other is not None
    assert os.readlink(f"/proc/self/fd/{served.fileno()}") == f"socket:[{other.inode}]"


def test_a_socket_of_another_machine_is_not_found(pair):
    _, served = pair
    assert owner_of(Ends(("192.0.2.1", 4000), served.getsockname())) is None


def test_what_listens_there_is_not_taken_for_what_is_connected(pair):
    client, _ = pair
    assert owner_of(Ends(client.getpeername(), ("127.0.0.1", 9))) is None


def test_ipv6_has_its_own_table():
    with (
        socket.create_server(("::1", 0), family=socket.AF_INET6) as listening,
        socket.create_connection(listening.getsockname()[:2]) as client,
    ):
        owner = owner_of(Ends(client.getsockname()[:2], client.getpeername()[:2]))
        assert owner is not None
        assert os.readlink(f"/proc/self/fd/{client.fileno()}") == f"socket:[{owner.inode}]"


@pytest.mark.parametrize("address", ["", "nowhere", "127.0.0.1\0", "::1"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InvalidInput):
        owner_of(Ends((address, 1), ("127.0.0.1", 2)))
    with pytest.raises(InvalidInput):
        owner_of(Ends(("127.0.0.1", 70_000), ("127.0.0.1", 2)))


IN_A_CONTAINER = """
import socket, sys
with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    port = server.getsockname()[1]
    four = socket.create_connection(("10.99.7.1", port), source_address=("10.99.7.1", 0))
    six = socket.create_connection(("fd99::7", port), source_address=("fd99::7", 0))
    mapped = socket.socket(socket.AF_INET6)
    mapped.connect(("::ffff:10.99.7.1", port))
    for each in (four, six, mapped):
        print(each.fileno(), port, each.getsockname()[1], flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "ip"))), reason="network namespaces need root and ip"
)
def test_a_socket_of_another_namespace_is_found_by_its_own_address():
    up = "ip link set lo up && ip addr add 10.99.7.1/32 dev lo && ip addr add fd99::7/128 dev lo nodad"
    with subprocess.Popen(
        ["unshare", "-n", "sh", "-c", f'{up} && exec "$0" -c "$1"', sys.executable, IN_A_CONTAINER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as container:
        assert container.stdout is not None
        others = Namespaces()
        for address in ("10.99.7.1", "fd99::7", "10.99.7.1"):
            descriptor, served, port = container.stdout.readline().split()
            ends = Ends((address, int(port)), (address, int(served)))
            assert owner_of(ends) is None
            owner = others.owner_of(ends, 0.0)
            assert owner is not None
            assert os.readlink(f"/proc/{container.pid}/fd/{descriptor}") == f"socket:[{owner.inode}]"
            assert owner.uid == 0
            assert others.owner_of(Ends((address, 1), ends.remote), 0.0) is None
        container.communicate()
    assert others.owner_of(ends, 0.5) is None


def test_addresses_of_elsewhere_do_not_make_the_agent_walk_for_each(tmp_path):
    """Nor do loopback addresses, or what is none, make it walk at all."""
    others = Namespaces(tmp_path)
    for address in ("127.0.0.1", "::1", "nowhere", ""):
        assert others.owner_of(Ends((address, 1), (address, 2)), 0.0) is None
    assert not others._walks
    walks = []
    others._walk = lambda: walks.append(1) or {}
    for number in range(100):
        assert others.owner_of(Ends(("192.0.2.1", number), ("192.0.2.2", 80)), number / 100) is None
    assert len(walks) == MAX_WALKS


def test_the_process_is_found_among_all(pair):
    client, _ = pair
    owner = owner_of(Ends(client.getsockname(), client.getpeername()))
    assert owner is not None
    sockets = {owner.inode: owner.uid}
    assert holders_of(sockets, candidates({owner.uid})) == {owner.inode: Holder(os.getpid(), started_at(os.getpid()))}
    client.close()
    assert holders_of(sockets, candidates({owner.uid})) == {}


def fake(proc, pid: int, uid: int, inode: int = 0, **files: bytes):
    """A process as ``/proc`` shows it."""
    place = proc / str(pid)
    (place / "fd").mkdir(parents=True)
    if inode:
        (place / "fd" / "7").symlink_to(f"socket:[{inode}]")
    for name, content in files.items():
        (place / name).write_bytes(content)
    os.chown(place, uid, uid)
    return place


@pytest.mark.skipif(os.geteuid() != 0, reason="processes of several users need root")
def test_a_child_of_another_user_is_not_taken_for_who_called(tmp_path):
    """A set-uid program inherits its parent's sockets."""
    fake(tmp_path, 50, 0, 4242)
    fake(tmp_path, 60, 33, 4242)
    fake(tmp_path, 70, 33, 4242)
    fake(tmp_path, 40, 34, 4343)
    found = holders_of({4242: 33, 4343: 33}, candidates({33}, tmp_path), tmp_path)
    assert {inode: holder.pid for inode, holder in found.items()} == {4242: 60, 4343: 40}


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/reports.service\n", "reports.service"),
        ("0::/system.slice/system-getty.slice/getty@tty1.service\n", "getty@tty1.service"),
        ("1:name=systemd:/system.slice/cron.service\n0::/\n", "cron.service"),
        ("4:memory:/x.service\n0::/system.slice/docker-0f.scope\n", "docker-0f.scope"),
        # What a user makes below its own manager is that manager's.
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/payments.service\n", "user@1000.service"),
        ("0::/evil/payments.service\n", ""),
        ("0::/\n", ""),
        ("nonsense", ""),
    ],
)
def test_the_unit_is_the_first_one_below_the_slices(text, unit):
    assert unit_of(text) == unit


@pytest.mark.parametrize(
    ("line", "exe", "program"),
    [
        (b"php\0/srv/report.php\0--password\0geheim\0", "/usr/bin/php8.2", "report.php"),
        (b"python3\0-m\0reports.cron\0", "/usr/bin/python3.11", "reports.cron"),
        (b"python3\0-c\0import os; secret='x'\0", "/usr/bin/python3", ""),
        (b"java\0-Xmx1g\0-jar\0/opt/pay.jar\0--key\0k\0", "/usr/bin/java", "pay.jar"),
        (b"curl\0http://user:pw@shop/\0", "/usr/bin/curl", ""),
        (b"", "/usr/bin/python3", ""),
    ],
)
def test_of_a_command_line_only_the_program_is_told(line, exe, program):
    assert program_of(line, exe) == program


def test_a_name_is_plain_text_in_parts_that_cannot_pass_for_two(tmp_path):
    place = fake(
        tmp_path, 50, os.geteuid(), cgroup=b"0::/system.slice/a b.service\n", cmdline=b"python3\0x uid:0\xff\n\0"
    )
    (place / "exe").symlink_to("/usr/bin/python3")
    name = name_of(os.geteuid(), Holder(50, 1), "spiffe://td/x", tmp_path)
    assert name.isascii()
    assert name.isprintable()
    keys = [part.partition(":")[0] for part in name.split(" ")]
    assert keys == ["uid", "user", "unit", "exe", "program", "id"]
    assert "unit:a%20b.service" in name


def test_a_program_that_is_no_script_has_the_one_that_started_it(tmp_path):
    uid = os.geteuid()
    curl = fake(tmp_path, 53, uid, cmdline=b"curl\0-H\0secret\0", stat=b"53 (curl) S 52 1 1\n")
    (curl / "exe").symlink_to("/usr/bin/curl")
    limit = fake(tmp_path, 52, uid, cmdline=b"timeout\x005\0curl\0", stat=b"52 (a) b (c) S 51 1 1\n")
    (limit / "exe").symlink_to("/usr/bin/timeout")
    script = fake(tmp_path, 51, uid, cmdline=b"/bin/sh\0/etc/cron.daily/re port\0", stat=b"51 (report) S 1 1 1\n")
    (script / "exe").symlink_to("/usr/bin/dash")
    name = name_of(uid, Holder(53, 1), "", tmp_path)
    assert name.endswith(" exe:/usr/bin/curl from:re%20port")
    (script / "cmdline").write_bytes(b"sh\0-c\0curl\0")
    alone = name_of(uid, Holder(53, 1), "", tmp_path)
    assert alone.endswith(" exe:/usr/bin/curl")
    assert same_process(name, alone)
    assert not same_process(alone, name)
    assert not same_process(name, alone.replace("curl", "wget"))


def test_a_name_is_bounded(tmp_path):
    place = fake(tmp_path, 50, os.geteuid(), cmdline=b"python3\0" + b"x" * 5000 + b"\0")
    (place / "exe").symlink_to("/" + "y" * 4000)
    assert len(name_of(os.geteuid(), Holder(50, 1), "spiffe://td/" + "z" * 500, tmp_path)) <= MAX_NAME
