"""``eastwest evidence``: collect what is recorded of a principal into one archive, and judge such archives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from eastwest.cli.options import AsJson, counted, ensure_file, examples, moment_of, print_json, run
from eastwest.errors import InvalidInput, NotFound, Unavailable

app = typer.Typer(
    add_completion=False,
    invoke_without_command=True,
    help="What is recorded of one principal, as one archive that anybody can judge offline.",
    epilog=examples(
        "eastwest evidence --data data --principal spiffe://shop.example/pay --from 2026-11-22 --out pay.zip",
        "eastwest evidence verify pay.zip --vkey log.vkey",
    ),
)


@app.callback()
def collect_command(
    context: typer.Context,
    principal: Annotated[str, typer.Option(metavar="ID", help="The SPIFFE ID that it is about; must be given.")] = "",
    start: Annotated[
        str, typer.Option("--from", metavar="TIME", help="2026-11-22, 2026-11-22T10:00:00Z, or 7d ago; must be given.")
    ] = "",
    end: Annotated[
        str, typer.Option("--to", metavar="TIME", help="Up to, and without, this time; now by default.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to: .zip or .tar.gz; evidence.zip by default.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", envvar="EASTWEST_DATA", readable=False, help="The server's directory."),
    ] = None,
    *,
    segments: Annotated[
        bool, typer.Option("--segments", help="Include whole segments of the decision ledger: others' calls too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Collect evidence about --principal."""
    if context.invoked_subcommand is not None:
        return
    needed = (
        ("where", "--data DIR", data),
        ("about whom", "--principal ID", principal),
        ("from when", "--from TIME", start),
    )
    missing = [(what, option) for what, option, given in needed if not given]
    if data is None or missing:
        what, option = (" and ".join(words) for words in zip(*missing, strict=True))
        raise InvalidInput(f"it is not said {what}", fix=f"give {option}")
    told = collect_archive(data, principal, start, end, out or Path("evidence.zip"), whole_segments=segments)
    if as_json:
        print_json(told)
        return
    decided = told["decisions"]
    print(f"{told['file']}: {counted(told['entries'], 'entry', 'entries')} of the log, each with its proof;")
    print(f"  {counted(decided['calls'], 'call')} in {counted(decided['rows'], 'row')}, {decided['lost']} known lost")
    for line in told["cut"]:
        print(f"  left out: {line}")
    print(f"  {'sealed: the log has recorded its hash' if told['sealed'] else 'not sealed: no server runs here'}")


@app.command()
def verify(
    archive: Annotated[Path, typer.Argument(metavar="FILE", help="The archive, or the directory it was unpacked to.")],
    vkey: Annotated[
        str | None, typer.Option(metavar="FILE|TEXT", help="The log's verifier key, from a source you trust.")
    ] = None,
    *,
    unsealed: Annotated[
        bool, typer.Option("--unsealed", help="Accept that the log has not recorded the archive: its maker's word.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Judge an archive offline, as the verify.py inside it does; and rows against segments that are here in full."""
    from eastwest.cli.evidence import verifier
    from eastwest.cli.evidence.segments import compare

    if not archive.exists():
        raise NotFound(f"there is no {archive}", fix="give the archive, or the directory it was unpacked to")
    if vkey is not None and "+" not in vkey and not Path(vkey).is_file():
        raise NotFound(f"there is no verifier key {vkey}", fix="give --vkey FILE or its text")
    report, files = verifier.judge(str(archive), vkey, unsealed=unsealed)
    if not report.failed:
        report.check("rows against segments", lambda: compare(files))
    raise typer.Exit(verifier.show(report, as_json=as_json))


def collect_archive(
    data: Path, principal: str, start: str, end: str, out: Path, *, whole_segments: bool
) -> dict[str, Any]:
    """Collect from the server of ``data`` and write the archive ``out``; what it has, as ``--json`` tells it."""
    from eastwest.cli.evidence.archive import SUFFIXES, build, describe, pack, sealed
    from eastwest.cli.evidence.collect import Window, collect, ensure_known
    from eastwest.clock import SystemClock
    from eastwest.spiffe.id import SpiffeId

    if not out.name.endswith(SUFFIXES):
        raise InvalidInput(f"{out} names no kind of archive", fix=f"end it in one of {', '.join(SUFFIXES)}")
    ensure_file(out)
    now = SystemClock().now()
    window = Window(moment_of(start, now, "--from"), moment_of(end, now, "--to") if end else now)
    if window.start >= window.end:
        raise InvalidInput("the time ends before it begins", fix="give --from before --to")
    about = str(SpiffeId.parse(principal))
    live = _publish(data)
    made = collect(data, about, window, whole_segments=whole_segments)
    ensure_known(made)
    files = build(made)
    seal = _seal(data, files["manifest.json"], about) if live else None
    pack(sealed(files, *seal) if seal else files, out)
    facts = describe(made)
    return {
        "file": str(out),
        "principal": about,
        "from": facts["from"],
        "to": facts["to"],
        "entries": len(made.entries),
        "decisions": facts["decisions"],
        "segments": len(made.segments),
        "policy_versions": len(made.estates),
        "cut": made.cut,
        "sealed": seal is not None,
    }


def _publish(data: Path) -> bool:
    """Have a running server publish what it has recorded; whether one runs."""
    from eastwest.cli.log_proof import publish

    try:
        publish(data, decisions=True)
    except Unavailable:
        return False
    return True


def _seal(data: Path, manifest: bytes, principal: str) -> tuple[bytes, str]:
    """The log's entry about a manifest, with its proof."""
    from hashlib import sha256

    from eastwest.api.eastwest.log.v1 import log_pb2 as pb
    from eastwest.cli.admin import admin_channel
    from eastwest.rpc.client import method

    async def ask() -> tuple[bytes, str]:
        channel = admin_channel(data)
        try:
            request = pb.RecordEvidenceRequest(manifest_sha256=sha256(manifest).digest(), principal=principal)
            record = method(pb.DESCRIPTOR.services_by_name["Log"], "RecordEvidence")
            reply = await channel.unary(record, request, deadline=30)
            return reply.entry, reply.proof
        finally:
            channel.close()

    return run(ask)
