"""Sockets of this machine found and ended by the kernel: exactly those, idle or not, IPv4 and IPv6."""

import os
import shutil
import socket
import subprocess
import sys

import pytest

from eastwest.agent import netlink

needs_privilege = pytest.mark.skipif(bool(netlink.can_destroy()), reason=f"here: {netlink.can_destroy()}")


def pairs(address, family, count=2):
    with socket.create_server((address, 0), family=family) as server:
        found = []
        for _ in range(count):
            near = socket.create_connection(server.getsockname()[:2])
            far, _ = server.accept()
            found.append((near, far))
        return server.getsockname()[1], found


@needs_privilege
@pytest.mark.parametrize(("address", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_one_idle_connection_ends_and_its_neighbour_does_not(address, family):
    port, [(near, far), (other, others_far)] = pairs(address, family)
    with near, far, other, others_far:
        found = netlink.open_sockets([port])
        assert sorted(one.remote for one in found) == sorted(s.getsockname()[:2] for s in (near, other))
        assert {one.local for one in found} == {(address, port)}
        chosen = [one for one in found if one.remote == near.getsockname()[:2]]
        assert netlink.destroy(chosen) == 1
        with pytest.raises(ConnectionResetError):
            near.recv(1)
        assert netlink.destroy(chosen) == 0, "it is gone, and its cookie is nobody else's"
        other.sendall(b"x")
        assert others_far.recv(1) == b"x"


def test_ports_that_nobody_has_and_all_ports():
    port, [(near, far)] = pairs("127.0.0.1", socket.AF_INET, 1)
    with near, far:
        assert far.getsockname() in {one.local for one in netlink.open_sockets()}
        assert netlink.open_sockets([1]) == []
        [mine] = netlink.open_sockets([port])
        assert mine.inode == int(os.fstat(far.fileno()).st_ino)


def test_addresses_of_ipv4_have_one_form():
    assert netlink.plain_address("::ffff:10.0.0.1") == netlink.plain_address("10.0.0.1") == "10.0.0.1"
    assert netlink.plain_address("0:0:0:0:0:0:0:1") == "::1"
    assert netlink.plain_address("no address") == ""


@needs_privilege
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")
def test_who_may_not_says_so_and_ends_nothing():
    program = "from eastwest.agent import netlink; print(netlink.can_destroy())"
    command = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Operation not permitted"
