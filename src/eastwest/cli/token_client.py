"""Asking the token endpoint over HTTP, as ``eastwest transaction`` does: through a sidecar, or at the server itself."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import sys
from base64 import urlsafe_b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from eastwest.errors import InvalidInput, Unauthenticated, Unavailable

HOST = "eastwest"
"""By which every sidecar knows the server's token endpoint."""
SECONDS = 30.0
MAX_TOKEN_FILE = 16 * 1024
MAX_REPLY = 64 * 1024
UNKNOWN_SERVICE = "UNKNOWN_SERVICE"
"""What a sidecar answers that was told of no endpoint."""
NO_ENDPOINT = "this server has no token endpoint"
NO_ENDPOINT_FIX = "add [tokens] to server.toml and restart the server"
Endpoint = Callable[[str, dict[str, str], str], tuple[int, dict[str, Any]]]
"""Takes operation, details and subject token; gives HTTP status and what the endpoint says."""


def through_sidecar(path: Path) -> Endpoint:
    """The endpoint as applications behind a sidecar reach it: HTTP over its egress socket."""

    def ask(operation: str, details: dict[str, str], subject: str) -> tuple[int, dict[str, Any]]:
        return _ask(_UnixConnection(path), str(path), operation, details, subject)

    return ask


def to_server(address: str, workload_api: str) -> Endpoint:
    """The endpoint itself over mTLS, with the SVID that the Workload API gives this process."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise InvalidInput(f"{address[:200]!r} is not HOST:PORT", fix="such as 10.0.0.5:8082")

    def ask(operation: str, details: dict[str, str], subject: str) -> tuple[int, dict[str, Any]]:
        context, expect = _identity(workload_api)
        connection = _TlsConnection(host.strip("[]"), int(port), context, expect)
        return _ask(connection, address, operation, details, subject)

    return ask


def read_token(path: Path) -> str:
    """A token from a file, or from standard input for ``-``."""
    try:
        if str(path) == "-":
            content = sys.stdin.buffer.read(MAX_TOKEN_FILE)
        else:
            with path.open("rb") as file:
                content = file.read(MAX_TOKEN_FILE)
    except OSError as error:
        # The name is not repeated: it may be the token itself, given in place of a file.
        raise InvalidInput(
            f"the file of the token cannot be read: {error.strerror}", fix="give a file's name, or - for standard input"
        ) from None
    return content.decode("ascii", "replace").strip()


def unverified(token: str) -> tuple[dict[str, Any], str]:
    """Claims and key id of a JWT whose signature nobody has looked at."""
    try:
        header, claims, _ = (part + "=" * (-len(part) % 4) for part in token.split("."))
        said = json.loads(urlsafe_b64decode(claims))
        return (said if isinstance(said, dict) else {}), str(json.loads(urlsafe_b64decode(header)).get("kid", ""))
    except (ValueError, AttributeError, RecursionError):
        raise InvalidInput("it is no token in compact form (RFC 7515)") from None


def in_options(text: str) -> str:
    """What the endpoint says of its parameters, said of this command's options."""
    for parameter, option in _OPTIONS:
        text = re.sub(rf"\b{parameter}\b", option, text)
    return text


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__(HOST, timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SECONDS)
        self.sock.connect(str(self._path))


class _TlsConnection(http.client.HTTPConnection):
    def __init__(self, host: str, port: int, tls: ssl.SSLContext, expect: Callable[[bytes | None], None]) -> None:
        super().__init__(host, port, timeout=SECONDS)
        self._tls = tls
        self._expect = expect

    def connect(self) -> None:
        super().connect()
        wrapped = self._tls.wrap_socket(self.sock)
        self._expect(wrapped.getpeercert(binary_form=True))
        self.sock = wrapped


def _ask(
    connection: http.client.HTTPConnection, where: str, operation: str, details: dict[str, str], subject: str
) -> tuple[int, dict[str, Any]]:
    from eastwest.server.tokens.exchange import GRANT, TOKEN_TYPE

    said = {
        "grant_type": GRANT,
        "requested_token_type": TOKEN_TYPE,
        "scope": operation,
        "request_details": json.dumps(details),
    }
    if subject:
        said |= {"subject_token": subject, "subject_token_type": TOKEN_TYPE}
    try:
        connection.request(
            "POST", "/token", urlencode(said), {"content-type": "application/x-www-form-urlencoded", "host": HOST}
        )
        reply = connection.getresponse()
        content = reply.read(MAX_REPLY)
    except ssl.SSLError as error:
        raise Unauthenticated(f"{where}: TLS failed: {error.reason}", fix="compare clocks and trust domains") from None
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{where} does not answer: {error}", fix="is the sidecar, or the server, running?") from None
    finally:
        connection.close()
    try:
        found = json.loads(content)
    except ValueError:
        found = {}
    return reply.status, _flat(found if isinstance(found, dict) else {})


_OPTIONS = (
    ("a reason in request_details", "--reason"),
    ("request_details", "--tenant, --reason or --approval"),
    ("subject_token", "--subject-token"),
    ("scope", "--operation"),
)


def _flat(said: dict[str, Any]) -> dict[str, Any]:
    """What was said; sidecars have a form of their own for what they answer by themselves."""
    error = said.get("error")
    if not isinstance(error, dict):
        return said
    if error.get("code") == UNKNOWN_SERVICE:
        return {"code": UNKNOWN_SERVICE, "error_description": NO_ENDPOINT, "fix": NO_ENDPOINT_FIX}
    return {"code": error.get("code", ""), "error_description": error.get("message", "")}


def _identity(workload_api: str) -> tuple[ssl.SSLContext, Callable[[bytes | None], None]]:
    """TLS with this process's SVID, and the check that the server is its trust domain's."""
    from eastwest.cli.options import run
    from eastwest.pki.chain import dump_chain_pem
    from eastwest.rpc.tls import client_context, expect_server
    from eastwest.rpc.workload_client import fetch_own_svids
    from eastwest.server.identity import SERVER_PATH

    own = run(lambda: fetch_own_svids(workload_api.removeprefix("unix://").removeprefix("unix:"), SECONDS))[0]
    context = client_context(own.roots, dump_chain_pem(own.chain), own.key_pem)
    context.set_alpn_protocols(["http/1.1"])
    return context, expect_server(own.id.trust_domain.id(SERVER_PATH))
