"""``eastwest token``: join tokens, each good for one node, once."""

from __future__ import annotations

from typing import Annotated

import typer

from eastwest.cli.options import AsJson, DataDir, examples, print_json, run, utc

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Join tokens for new nodes.")


@app.callback()
def _token() -> None:
    """Keeps the noun when it has only one verb."""


@app.command(
    epilog=examples(
        "eastwest token create --data data --ttl 600 > token",
        "eastwest token create --data data --group web",
    )
)
def create(
    data: DataDir,
    group: Annotated[str, typer.Option(help="The node group of the estate that the node joins.")] = "",
    spiffe_id: Annotated[str, typer.Option(help="An extra SPIFFE ID for whatever runs on the node.")] = "",
    ttl: Annotated[int, typer.Option(min=1, max=30 * 86400, help="Seconds until the token dies unused.")] = 600,
    *,
    as_json: AsJson = False,
) -> None:
    """Make a join token and print it. Treat it as a password: whoever holds it becomes that node."""
    from eastwest.cli.admin import AdminClient

    async def work() -> tuple[str, int]:
        async with AdminClient.connect(data) as admin:
            token = await admin.create_join_token(ttl=ttl, group=group, spiffe_id=spiffe_id)
            return token.value, token.expires_at

    value, expires_at = run(work)
    if as_json:
        print_json({"token": value, "expires_at": utc(expires_at), "group": group})
    else:
        print(value)
