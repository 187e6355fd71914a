"""``eastwest transaction``: transaction tokens, as an application gets them and as people look at them.

A token is a live credential: it is printed where it was asked for and nowhere else, and read from a file or standard
input, never from the command line, where every user of the machine could see it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from eastwest.cli.options import AsJson, examples, print_json, utc
from eastwest.errors import Error, InvalidInput, PermissionDenied, Unavailable

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Transaction tokens: get one, look at one.")

POLL_SECONDS = 1.0


@app.command(
    epilog=examples(
        "eastwest transaction request --socket egress.sock --operation billing:adjustments:create --tenant acme"
        ' --reason "ticket 4711" > token',
        "eastwest transaction request --server 10.0.0.5:8082 --workload-api agent.sock --operation shop:stock:count",
    )
)
def request(
    operation: Annotated[str, typer.Option(metavar="NAME", help="What the token is for: one operation.")],
    tenant: Annotated[str, typer.Option(help="Where the operation is per tenant.")] = "",
    reason: Annotated[str, typer.Option(help="Why; with it an approval that is needed is asked for.")] = "",
    approval: Annotated[str, typer.Option(metavar="ID", help="An approval that was granted for this.")] = "",
    subject_token: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The token of the call that this one goes on from; - reads standard input."),
    ] = None,
    wait: Annotated[float, typer.Option(metavar="S", min=0, help="Wait so long for an approval.")] = 0,
    socket: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Ask through the sidecar: its egress socket.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ask the server itself, with an SVID of --workload-api.")
    ] = None,
    workload_api: Annotated[
        str | None,
        typer.Option(metavar="PATH", envvar="SPIFFE_ENDPOINT_SOCKET", help="The Workload API, for --server."),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Get a token for one call and print it; exit 1 when it is refused, or an approval is needed first."""
    from eastwest.cli.token_client import Endpoint, through_sidecar, to_server

    if socket is not None and server is not None:
        raise InvalidInput("--socket and --server are both given", fix="give --socket of the sidecar, or --server")
    if socket is None and server is None:
        raise InvalidInput("it is not said where to ask", fix="--socket of the sidecar, or --server HOST:PORT")
    if server is not None and not workload_api:
        raise InvalidInput("--server needs an SVID", fix="give --workload-api PATH of the agent")
    subject = _subject(subject_token) if subject_token is not None else ""
    endpoint: Endpoint = through_sidecar(socket) if socket is not None else to_server(server or "", workload_api or "")
    details = {"tenant": tenant, "reason": reason, "approval": approval}
    ends = time.monotonic() + wait
    while True:
        status, said = endpoint(operation, {name: value for name, value in details.items() if value}, subject)
        if status == 200:
            break
        details["approval"] = said.get("approval", details["approval"])
        if "approval" not in said or time.monotonic() >= ends:
            if as_json and "approval" in said:
                print_json({"approval": said["approval"], "state": "pending"})
            raise _refusal(status, said)
        time.sleep(POLL_SECONDS)
    if as_json:
        print_json({"token": said["access_token"], "expires_in": said["expires_in"], "transaction": said["txn"]})
    else:
        print(said["access_token"])


@app.command(epilog=examples("eastwest transaction show token", "eastwest transaction show - --json < token"))
def show(
    token: Annotated[Path, typer.Argument(metavar="FILE", help="A file with the token; - reads standard input.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show what a token says, without the token. Its signature is not judged here: only services do that."""
    from eastwest.cli.token_client import unverified
    from eastwest.policy.transaction import from_claims

    claims, key_id = unverified(_read(token))
    found = from_claims(claims)
    if found is None:
        raise InvalidInput("it is no transaction token", fix="eastwest transaction request gets one")
    row: dict[str, Any] = {
        "operation": found.action,
        "service": found.resource,
        "tenant": found.tenant,
        "caller": found.caller,
        "certificate_sha256": found.certificate,
        "transaction": found.transaction,
        "origin": found.origin,
        "chain": list(found.chain),
        "approval": found.approval,
        "approver": found.approver,
        "expires_at": utc(found.expires),
        "key_id": key_id,
    }
    if as_json:
        print_json({**row, "verified": False})
        return
    from eastwest.cli.table import EMPTY, printable

    for name, value in row.items():
        text = " ".join(value) if isinstance(value, list) else value
        print(f"{name.replace('_', ' '):20} {printable(text or EMPTY)}")
    print("not verified: this is what it says, and services judge whether it is true")


def _read(path: Path) -> str:
    from eastwest.cli.token_client import read_token

    return read_token(path)


def _subject(path: Path) -> str:
    from eastwest.cli.token_client import unverified

    text = _read(path)
    try:
        unverified(text)
    except InvalidInput:
        # What the file holds is not repeated: it may be a secret of another kind.
        raise InvalidInput(
            "what --subject-token names is no token",
            fix="give a file with the txn-token that came with the call, and nothing else in it",
        ) from None
    return text


def _refusal(status: int, said: dict[str, Any]) -> Error:
    """What the endpoint said, in the words of this command."""
    from eastwest.cli.token_client import in_options

    kind = Unavailable if status in {429, 502, 503, 504} else PermissionDenied
    text = str(said.get("error_description") or said.get("error") or f"the token endpoint answered {status}")
    refused = kind(in_options(text), fix=in_options(str(said.get("fix", ""))))
    refused.reason = str(said.get("code", ""))
    return refused
