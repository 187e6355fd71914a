"""What a sidecar's config depends on besides policy: sockets, ages and limits of the node it runs on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Facts of the node. Ages bound how long a connection may outlive the certificate or policy it began with."""

    egress_socket: str  # the application's way out: a unix socket of mode 0600
    egress_port: int | None = None  # a loopback port beside it, for applications that cannot speak to a socket
    tcp_egress_directory: str = ""  # where sockets of TCP services lie, one `<service>.sock` each; "" for none
    max_connection_age: timedelta = timedelta(minutes=15)
    max_stream_age: timedelta = timedelta(hours=1)
    connect_timeout: timedelta = timedelta(seconds=5)
    stream_report: timedelta = timedelta(seconds=1)  # how often a request that lasts says whose it is; not below 1 s
    session_report: timedelta = timedelta(seconds=5)  # how often a TCP session does, which tells it when it begins
    log_flush: timedelta = timedelta(milliseconds=100)
    delayed_close: timedelta = timedelta(seconds=1)
    max_connections: int = 10_000  # of one listener's upstream; also the bound on pending requests
