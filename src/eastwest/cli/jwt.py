"""``eastwest jwt``: judge, mint and fetch JWT-SVIDs.

A token is a live credential: it is read from a file or standard input, never from the command line, where every user
of the machine could see it.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eastwest.cli.options import AsJson, DataDir, print_json, run, utc
from eastwest.errors import InvalidInput

if TYPE_CHECKING:
    from eastwest.spiffe.bundle import Bundle
    from eastwest.spiffe.id import TrustDomain

app = typer.Typer(add_completion=False, no_args_is_help=True, help="JWT-SVIDs: validate, mint and fetch them.")

MAX_BUNDLE_BYTES = 4 * 1024 * 1024

Audience = Annotated[list[str], typer.Option("--audience", metavar="A", help="Whom the token is for; may be repeated.")]
Workload = Annotated[
    str | None,
    typer.Option(
        "--socket",
        metavar="PATH",
        envvar="SPIFFE_ENDPOINT_SOCKET",
        help="The Workload API: a path, or unix:///path.",
    ),
]


@app.command()
def validate(
    token: Annotated[str, typer.Argument(metavar="FILE", help="A file with the token; - reads standard input.")],
    audience: Annotated[str, typer.Option("--audience", metavar="A", help="Whom the token must be for.")],
    bundle: Annotated[
        Path | None, typer.Option("--bundle", metavar="FILE", help="Judge offline by this bundle in SPIFFE format.")
    ] = None,
    trust_domain: Annotated[
        str | None, typer.Option("--trust-domain", metavar="TD", help="Whose bundle the file of --bundle is.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", envvar="EASTWEST_DATA", readable=False, help="Judge by the bundles of this server."
        ),
    ] = None,
    socket: Workload = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Check signature, audience, times and subject of a token, and print what it proves; exit 1 when it is refused."""
    text = _read_token(token)
    if bundle is not None:
        if trust_domain is None:
            raise InvalidInput("a bundle file does not say whose it is", fix="give --trust-domain TD")
        valid = _judge(text, audience, _read_bundle(bundle, trust_domain))
    elif data is not None:
        valid = _judge(text, audience, run(lambda: _bundle_of(data, text)))
    elif socket is not None:
        valid = run(lambda: _ask_agent(_path(socket), text, audience))
    else:
        raise InvalidInput(
            "it is not said what to judge by",
            fix="--bundle FILE --trust-domain TD, --data DIR of a server, or --socket",
        )
    if as_json:
        print_json(valid)
        return
    print(f"valid: {valid['spiffe_id']}")
    print(f"for: {', '.join(_audiences(valid['claims']))}")
    print(f"until: {datetime.fromtimestamp(valid['claims']['exp'], UTC):%Y-%m-%d %H:%M:%S}Z")


@app.command()
def mint(
    data: DataDir,
    spiffe_id: Annotated[str, typer.Argument(metavar="ID", help="The SPIFFE ID that the token is to prove.")],
    audience: Audience,
    ttl: Annotated[int, typer.Option(min=0, help="Lifetime in seconds; 0: the server's default.")] = 0,
    *,
    as_json: AsJson = False,
) -> None:
    """Have the server sign a token for any workload's ID, as an administrator; it is recorded in the log."""
    from eastwest.api.spire.api.server.svid.v1 import svid_pb2
    from eastwest.cli.admin import admin_channel
    from eastwest.rpc.client import method
    from eastwest.rpc.spire import id_to_proto
    from eastwest.spiffe.id import SpiffeId

    service = svid_pb2.DESCRIPTOR.services_by_name["SVID"]
    subject = SpiffeId.parse(spiffe_id)

    async def work() -> Any:
        channel = admin_channel(data)
        try:
            request = svid_pb2.MintJWTSVIDRequest(id=id_to_proto(subject), audience=audience, ttl=ttl)
            return await channel.unary(method(service, "MintJWTSVID"), request)
        finally:
            channel.close()

    svid = run(work).svid
    if as_json:
        print_json({"spiffe_id": spiffe_id, "token": svid.token, "expires_at": utc(svid.expires_at)})
    else:
        print(svid.token)


@app.command()
def fetch(
    audience: Audience,
    socket: Workload = None,
    spiffe_id: Annotated[
        str, typer.Option("--spiffe-id", metavar="ID", help="Only this identity, where the process has several.")
    ] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Fetch tokens of this process's own identities from the Workload API."""
    from eastwest.api.spiffe.workload import workload_pb2

    if socket is None:
        raise InvalidInput("it is not said where the Workload API is", fix="--socket PATH or SPIFFE_ENDPOINT_SOCKET")
    request = workload_pb2.JWTSVIDRequest(audience=audience, spiffe_id=spiffe_id)
    reply = run(lambda: _workload_api(_path(socket), "FetchJWTSVID", request))
    if as_json:
        found = [{"spiffe_id": svid.spiffe_id, "token": svid.svid, "hint": svid.hint} for svid in reply.svids]
        print_json({"svids": found})
        return
    for svid in reply.svids:
        print(svid.svid)


def _judge(token: str, audience: str, bundle: Bundle) -> dict[str, Any]:
    from eastwest.clock import SystemClock
    from eastwest.pki.jwt import validate as judge

    valid = judge(token, audience, bundle, SystemClock().now())
    return {"spiffe_id": str(valid.id), "claims": dict(valid.claims)}


def _read_token(name: str) -> str:
    from eastwest.pki.jwt import MAX_TOKEN_BYTES

    limit = MAX_TOKEN_BYTES + 2  # one more than is allowed, and a line's end
    try:
        if name == "-":
            content = sys.stdin.buffer.read(limit)
        else:
            with Path(name).open("rb") as file:
                content = file.read(limit)
    except OSError as error:
        # The name is not repeated: it may be the token itself, given in place of a file.
        raise InvalidInput(
            f"the file of the token cannot be read: {error.strerror}", fix="give a file's name, or - for standard input"
        ) from None
    return content.decode("ascii", "replace").strip()


def _read_bundle(path: Path, trust_domain: str) -> Bundle:
    from eastwest.pki.jwks import parse_bundle

    try:
        with path.open("rb") as file:
            content = file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"cannot be read: {error.strerror}", where=str(path)) from None
    return parse_bundle(_trust_domain(trust_domain), content)


def _trust_domain(text: str) -> TrustDomain:
    from eastwest.spiffe.id import TrustDomain

    return TrustDomain.parse(text)


async def _bundle_of(data: Path, token: str) -> Bundle:
    """The server's bundle for the trust domain that the token claims: its own, or a federated one."""
    from eastwest.api.spire.api.server.bundle.v1 import bundle_pb2
    from eastwest.cli.admin import admin_channel
    from eastwest.pki.jwt import unverified_subject
    from eastwest.rpc.client import method
    from eastwest.rpc.spire import bundle_from_proto

    claimed = unverified_subject(token).trust_domain
    service = bundle_pb2.DESCRIPTOR.services_by_name["Bundle"]
    channel = admin_channel(data)
    try:
        own = bundle_from_proto(await channel.unary(method(service, "GetBundle"), bundle_pb2.GetBundleRequest()))
        if own.trust_domain == claimed:
            return own
        request = bundle_pb2.GetFederatedBundleRequest(trust_domain=claimed.name)
        return bundle_from_proto(await channel.unary(method(service, "GetFederatedBundle"), request))
    finally:
        channel.close()


async def _ask_agent(path: str, token: str, audience: str) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    from eastwest.api.spiffe.workload import workload_pb2

    request = workload_pb2.ValidateJWTSVIDRequest(audience=audience, svid=token)
    reply = await _workload_api(path, "ValidateJWTSVID", request)
    return {"spiffe_id": reply.spiffe_id, "claims": MessageToDict(reply.claims)}


async def _workload_api(path: str, name: str, request: Any) -> Any:
    from eastwest.api.spiffe.workload import workload_pb2
    from eastwest.rpc.client import Channel, method

    service = workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
    channel = Channel(path=path)
    try:
        return await channel.unary(method(service, name), request, metadata={"workload.spiffe.io": "true"}, deadline=30)
    finally:
        channel.close()


def _path(socket: str) -> str:
    if not socket.startswith("unix:"):
        return str(Path(socket).absolute())
    path = socket.removeprefix("unix://") if socket.startswith("unix:///") else socket.removeprefix("unix:")
    if not path.startswith("/"):
        raise InvalidInput(f"{socket[:200]!r} is no unix socket", fix="give a path, or unix:///path")
    return path


def _audiences(claims: dict[str, Any]) -> list[str]:
    audience = claims["aud"]
    return [audience] if isinstance(audience, str) else list(audience)
