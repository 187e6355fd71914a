"""``eastwest witness``: watch other organisations' logs, and compare checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eastwest.cli.options import AsJson, counted, examples, print_json, run, utc
from eastwest.errors import InvalidInput

if TYPE_CHECKING:
    from eastwest.log.note import NoteKey

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Witness other organisations' logs; compare checkpoints."
)

Config = Annotated[Path, typer.Option("--config", metavar="FILE", help="The witness's witness.toml.")]


@app.command(epilog=examples("eastwest witness init --dir witness --name witness.partner.example/w1"))
def init(
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="A new directory for the witness.")],
    name: Annotated[str, typer.Option(help="Its name: an address without scheme, which need not be reachable.")],
    address: Annotated[str, typer.Option(help="Where it listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8090,
    *,
    json: AsJson = False,
) -> None:
    """Make a witness: its keys and its witness.toml, to which the logs are added that it shall watch."""
    from eastwest.server.witness.run import init_witness

    made = init_witness(directory, name, address, port)
    vkeys = [key.vkey for key in made.vkeys]
    if json:
        print_json({"config": str(directory / "witness.toml"), "name": name, "vkeys": vkeys})
        return
    print(f"made the witness {name} in {directory}; logs that it watches put its keys into their policy:")
    for key, short in zip(made.vkeys, ("w1", "w1-ml-dsa"), strict=True):
        print(f"  witness {short} {key.vkey if len(key.vkey) < 200 else f'{key.vkey[:80]}...'} URL")
    print(f"next: add [[logs]] to {directory / 'witness.toml'}, then eastwest witness run --config that file")


@app.command("run", epilog=examples("eastwest witness run --config witness/witness.toml"))
def run_command(
    config: Config,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Answer logs that ask for cosignatures (C2SP tlog-witness), until told to stop."""
    import asyncio
    from functools import partial

    from eastwest.cli.options import start_logging
    from eastwest.clock import SystemClock
    from eastwest.server.witness.config import WitnessConfig
    from eastwest.server.witness.run import run_witness

    start_logging(log_level)
    asyncio.run(run_witness(WitnessConfig.load(config), SystemClock(), partial(print, flush=True)))


@app.command()
def status(config: Config, *, json: AsJson = False) -> None:
    """Show what the witness has signed last of each log; exit 1 when a log has shown it two histories."""
    from eastwest.server.witness.config import WitnessConfig
    from eastwest.server.witness.run import open_store

    loaded = WitnessConfig.load(config)
    store = open_store(loaded)
    try:
        signed, conflicts = {one.origin: one for one in store.all()}, store.conflicts()
    finally:
        store.close()
    rows: list[dict[str, Any]] = []
    for origin in sorted({*loaded.logs, *signed}):
        last = signed.get(origin)
        rows.append(
            {
                "origin": origin,
                "watched": origin in loaded.logs,
                "size": last.seen.size if last else 0,
                "root": last.seen.root.hex() if last else "",
                "signed_at": utc(last.signed_at) if last else None,
                "conflicts": sum(conflict.origin == origin for conflict in conflicts),
            }
        )
    if json:
        shown = [
            {
                "origin": one.origin,
                "received_at": utc(one.received_at),
                "why": one.why,
                "checkpoint": one.note.decode("utf-8", "replace"),
                "signed_before": one.last.decode("utf-8", "replace"),
            }
            for one in conflicts
        ]
        print_json({"name": loaded.file.name, "logs": rows, "conflicts": shown})
    else:
        if not rows:
            print(f"{loaded.file.name} watches no logs yet: add [[logs]] to {config}")
        for row in rows:
            signed_at = (
                f"{row['size']} entries, signed {row['signed_at']}" if row["signed_at"] else "nothing signed yet"
            )
            told = f"; {counted(row['conflicts'], 'OTHER HISTORY', 'OTHER HISTORIES')}" if row["conflicts"] else ""
            print(f"{row['origin']}: {signed_at}{'' if row['watched'] else ' (no longer watched)'}{told}")
        if conflicts:
            print("the evidence, signed by the logs themselves: eastwest witness status --json")
    if conflicts:
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "eastwest witness check kept/checkpoint https://log.shop.example/ --vkey log.vkey",
        "eastwest witness check https://log.shop.example/ https://mirror.example/shop/ --vkey log.vkey",
    )
)
def check(
    first: Annotated[str, typer.Argument(metavar="A", help="A checkpoint (file or URL), or a log (directory or URL).")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one of the same log.")],
    vkey: Annotated[list[str], typer.Option("--vkey", metavar="FILE|TEXT", help="The log's key; may be repeated.")],
    *,
    json: AsJson = False,
) -> None:
    """Compare two checkpoints: is one the beginning of the other? Exit 1 when the log has signed two histories.

    Of unequal sizes the larger one must be a whole log (a directory or a URL), whose tiles give the proof.
    """
    from eastwest.server.log.comparing import compare_checkpoints

    keys = [_vkey(text) for text in vkey]
    result = run(lambda: compare_checkpoints(first, second, keys))
    if json:
        print_json(result.as_json())
    else:
        print(result.told)
    if not result.consistent:
        raise typer.Exit(1)


def _vkey(text: str) -> NoteKey:
    from eastwest.log.note import NoteKey

    if "+" in text and not Path(text).exists():
        return NoteKey.parse(text)
    try:
        return NoteKey.parse(Path(text).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the verifier key {text} cannot be read", fix="give --vkey FILE or its text") from error
