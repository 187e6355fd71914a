"""Whose connections are whose, by what access logs say; and that lasting requests are no decisions."""

import pytest
from envoy.config.core.v3 import address_pb2
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2

from eastwest.agent import als_wire, connections
from eastwest.agent.connections import Connections

A, B = "spiffe://td.test/a", "spiffe://td.test/b"


def common(caller, port, kind=accesslog_pb2.DownstreamEnd, address="10.0.0.1"):
    names = [{"uri": uri} for uri in caller.split(",") if uri]
    return accesslog_pb2.AccessLogCommon(
        downstream_direct_remote_address=address_pb2.Address(socket_address={"address": address, "port_value": port}),
        tls_properties={"peer_certificate_properties": {"subject_alt_name": names}},
        access_log_type=kind,
    )


def requests(*all_common):
    entries = [accesslog_pb2.HTTPAccessLogEntry(common_properties=one) for one in all_common]
    message = als_pb2.StreamAccessLogsMessage(http_logs={"log_entry": entries})
    return als_wire.Message.FromString(message.SerializeToString()).http_logs.log_entry


def sessions(*all_common):
    return [accesslog_pb2.TCPAccessLogEntry(common_properties=one) for one in all_common]


def test_connections_by_caller_and_service():
    known = Connections()
    left = known.requests("web", requests(common(A, 1), common(B, 2), common(A, 3, address="::ffff:10.0.0.2")))
    assert len(left) == 3
    known.sessions("db", sessions(common(A, 4, accesslog_pb2.TcpUpstreamConnected)))
    assert known.of("web", {A}) == {("10.0.0.1", 1), ("10.0.0.2", 3)}
    assert known.of("web", {B}) == {("10.0.0.1", 2)}
    assert known.of("db", {A}) == {("10.0.0.1", 4)}
    assert known.of("other", {A}) == set()


def test_a_port_that_another_caller_has_now_is_that_callers():
    known = Connections()
    known.requests("web", requests(common(A, 1)))
    known.requests("web", requests(common(B, 1)))
    assert known.of("web", {A}) == set()
    assert known.of("web", {B}) == {("10.0.0.1", 1)}


def test_a_request_that_lasts_tells_whose_it_is_and_nothing_else():
    known = Connections()
    entries = requests(common(A, 1, accesslog_pb2.DownstreamPeriodic), common(B, 2))
    [left] = known.requests("web", entries)
    assert b"spiffe://td.test/b" in left.common_properties.tls_properties
    assert known.of("web", {A}) == {("10.0.0.1", 1)}


def test_two_names_or_none_are_nobodys():
    known = Connections()
    known.requests("web", requests(common(f"{A},{B}", 1), common("", 2)))
    assert known.of("web", {A, B, ""} - {""}) == set()


def test_who_is_watched_for_is_told_of():
    known, told = Connections(), []
    known.on_contained = told.append
    known.requests("web", requests(common(A, 1)))
    known.watch([A])
    known.requests("web", requests(common(B, 2)))
    assert told == []
    known.requests("web", requests(common(A, 3)))
    known.sessions("db", sessions(common(A, 4, accesslog_pb2.TcpPeriodic)))
    assert told == ["web", "db"]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 10)
    known = Connections()
    for port in range(1, 101):
        known.requests("web", requests(common(A, port), common(A, 1000)))
    remembered = {port for _, port in known.of("web", {A})}
    assert {100, 1000} <= remembered
    assert len(remembered) <= 21
