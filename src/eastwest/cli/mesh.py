"""``eastwest mesh``: intended against acknowledged, for every agent and sidecar."""

from __future__ import annotations

import typer

from eastwest.cli.options import AsJson, DataDir, print_json, run

app = typer.Typer(add_completion=False, no_args_is_help=True, help="What every sidecar was told and has acknowledged.")


@app.callback()
def _mesh() -> None:
    """Keeps the noun when it has only one verb."""


@app.command()
def status(data: DataDir, *, as_json: AsJson = False) -> None:
    """Show each sidecar's intended and acknowledged policy version; exit 1 when any differs or was refused."""
    from google.protobuf.json_format import MessageToDict

    from eastwest.cli.admin import AdminClient
    from eastwest.cli.mesh_table import behind, print_status

    async def work() -> bool:
        async with AdminClient.connect(data) as admin:
            reply = await admin.mesh_status()
        late = behind(reply)
        if as_json:
            table = MessageToDict(reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
            print_json(table | {"in_step": not late})
        else:
            print_status(reply, late)
        return not late

    if not run(work):
        raise typer.Exit(1)
