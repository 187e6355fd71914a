"""Where a demo lives: ports, uids and directories that nobody else has, and an estate that is in order."""

import os
import socket
import stat
from datetime import date
from pathlib import Path

import pytest

from eastwest.cli.demo.estate import Intent, render, selector, write
from eastwest.cli.demo.place import SERVICES, WORKLOADS, Place, Ports, Uids, choose_uids
from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.policy.enforcement import MtlsMode
from eastwest.policy.load import load_estate

PORTS = {service.name: 9000 + index for index, service in enumerate(SERVICES)}


@pytest.fixture
def ports():
    made = []

    def make(base=None):
        made.append(Ports(base))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def binary(tmp_path):
    path = tmp_path / "envoy-binary"
    path.write_bytes(b"#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_two_demos_get_different_ports(ports):
    first, second = ports(), ports()
    taken = [each.take() for each in (first, second) for _ in range(20)]
    assert len(set(taken)) == len(taken)


def test_a_held_port_can_be_listened_on_by_a_server_of_ours(ports):
    port = ports().take()
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
        with socket.create_connection(("127.0.0.1", port)):
            pass


def test_a_port_base_counts_upwards_and_a_taken_port_is_told(ports):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(FailedPrecondition, match=r"cannot be used.*--port-base"):
            ports(other.getsockname()[1]).take()
    free = ports().take()
    with pytest.raises(FailedPrecondition):
        ports(70_000).take()
    assert free


def test_uids_of_two_demos_differ():
    here = Path("/tmp")
    first, second = choose_uids(here), choose_uids(here)
    for each in (first, second):
        each.release()
    if first.base is None:
        assert first.why
        assert first.of(WORKLOADS[0]) is None
    else:
        assert first.base != second.base
        assert len({first.of(workload) for workload in WORKLOADS}) == len(WORKLOADS)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could use uids")
def test_a_directory_that_others_cannot_enter_means_no_uids(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    chosen = choose_uids(closed / "data")
    assert chosen.base is None
    assert "cannot enter" in chosen.why


def test_without_uids_each_workload_has_a_program_path_of_its_own(tmp_path, binary):
    place = Place(tmp_path / "d", Uids(None, "a reason"))
    place.data.mkdir()
    place.make(binary)
    assert {os.stat(place.envoy(workload)).st_ino for workload in WORKLOADS} == {binary.stat().st_ino}
    selectors = {selector(place, workload) for workload in WORKLOADS}
    assert len(selectors) == len(WORKLOADS)
    assert all(text.startswith("unix:path:/") for text in selectors)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_with_uids_only_the_workload_enters_its_directory(tmp_path, binary):
    place = Place(tmp_path / "d", Uids(41_000))
    place.data.mkdir()
    place.make(binary)
    for index, workload in enumerate(WORKLOADS):
        facts = place.directory(workload).stat()
        assert (facts.st_uid, stat.S_IMODE(facts.st_mode)) == (41_000 + index, 0o700)
        assert selector(place, workload) == f"unix:uid:{41_000 + index}"


def test_a_path_too_long_for_sockets_is_told_at_once(tmp_path, binary):
    data = tmp_path / ("d" * 90)
    data.mkdir()
    with pytest.raises(InvalidInput, match="choose a shorter --data"):
        Place(data, Uids(None)).make(binary)


@pytest.mark.parametrize("strict", [False, True])
def test_the_estate_is_in_order(tmp_path, strict):
    place = Place(tmp_path, Uids(41_000))
    files = render(place, PORTS, Intent(billing_strict=strict, billing_ttl="16s"), date(2026, 11, 22))
    estate = load_estate(files)
    modes = {service.service: service.listen.mtls for service in estate.services}
    assert modes.pop("billing") is (MtlsMode.STRICT if strict else MtlsMode.PERMISSIVE)
    assert set(modes.values()) == {MtlsMode.STRICT}
    assert {service.service: service.listen.port for service in estate.services} == PORTS
    assert {workload.spiffe_id for workload in estate.workloads} == {workload.spiffe_id for workload in WORKLOADS}
    assert {w.spiffe_id: w.tenants for w in estate.workloads} == {w.spiffe_id: w.tenants for w in WORKLOADS}
    assert bool(estate.waivers) is not strict


def test_writing_an_estate_replaces_the_one_before(tmp_path):
    place = Place(tmp_path, Uids(None))
    write({"a.yaml": b"1", "waivers/b.yaml": b"2"}, place)
    write({"a.yaml": b"3"}, place)
    assert {path.name: path.read_bytes() for path in place.estate.rglob("*.yaml")} == {"a.yaml": b"3"}
