"""``eastwest log``: judge and read the transparency log from its public files alone, no server needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from eastwest.cli import log_proof, log_prune, log_search
from eastwest.cli.log_reading import head, line, locate, open_log, proof_of, readable, second_keys
from eastwest.cli.options import AsJson, counted, examples, moment_of, print_json
from eastwest.cli.options import DataDir as RequiredData
from eastwest.errors import InvalidInput

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The transparency log: verify, prove and read it.")

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", envvar="EASTWEST_DATA", readable=False, help="The data directory of the server."
    ),
]
LogDir = Annotated[
    Path | None,
    typer.Option("--log-dir", metavar="DIR", help="The log's public directory, instead of DIR/server/log."),
]
Vkey = Annotated[
    str | None,
    typer.Option("--vkey", metavar="FILE|TEXT", help="The verifier key, instead of DIR/server/log.vkey."),
]
MAX_SHOWN_PROBLEMS = 20


@app.command(
    epilog=examples(
        "eastwest log verify --data data",
        "eastwest log verify --log-dir copy/log --vkey copy/log.vkey",
    )
)
def verify(data: DataDir = None, log_dir: LogDir = None, vkey: Vkey = None, *, json: AsJson = False) -> None:
    """Recompute every hash of the log and compare it with its tiles and its signed checkpoint.

    With --data, on the server's machine, its database is compared too.
    """
    from eastwest.cli.table import printable
    from eastwest.log.verify import verify_log

    files, key = locate(data, log_dir, vkey)
    further = second_keys(data) if data is not None and log_dir is None and vkey is None else ()
    report = verify_log(files, key, list(files.paths()), further)
    checkpoint = report.checkpoint
    compared = log_prune.database_problems(data, files, report) if data is not None and log_dir is None else None
    report = replace(report, problems=report.problems + tuple(compared or ()))
    if json:
        problems = [{"where": p.where, "entry": p.entry, "message": p.message} for p in report.problems]
        found = {"ok": report.ok, **head(key, checkpoint), "minimum_index": report.pruned}
        print_json(found | {"database": compared is not None, "problems": problems})
    elif report.ok and checkpoint is not None:
        print(f"the log {key.name} is whole: {checkpoint.size} entries, root {checkpoint.root.hex()}")
        if report.pruned:
            print(f"entries below {report.pruned} are pruned, as an entry of the log says; their hashes are whole")
        if compared is not None:
            print("the server's database has the same entries")
        elif data is not None and log_dir is None:
            print("note: the server's database is not here or not to be read: only the public files were verified")
    else:
        for problem in report.problems[:MAX_SHOWN_PROBLEMS]:
            print(printable(str(problem)))
        print(f"the log {key.name} does not verify: {counted(len(report.problems), 'defect')}")
    if not report.ok:
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "eastwest log prove 7 --data data",
        "eastwest log prove --certificate svid.pem --data data --wait --out receipt",
    )
)
def prove(
    index: Annotated[int | None, typer.Argument(help="The entry's index.", min=0)] = None,
    data: DataDir = None,
    log_dir: LogDir = None,
    vkey: Vkey = None,
    certificate: log_proof.CertificateFile = None,
    serial: log_proof.SerialNumber = "",
    out: log_proof.Out = None,
    *,
    wait: log_proof.Wait = False,
    json: AsJson = False,
) -> None:
    """Give the proof (c2sp.org/tlog-proof@v1) that the log's checkpoint covers an entry."""
    if wait:
        log_proof.publish(data)
    log_proof.prove(index, data, log_dir, vkey, certificate, serial, out, json=json)


@app.command(
    "verify-proof",
    epilog=examples(
        "eastwest log verify-proof --entry entry-7.json --proof entry-7.tlog-proof --vkey log.vkey",
        "eastwest log verify-proof --entry e.json --proof e.tlog-proof --vkey log.vkey --certificate svid.pem",
    ),
)
def verify_proof(
    entry: Annotated[Path, typer.Option(metavar="FILE", help="The entry's own bytes.")],
    proof: Annotated[Path, typer.Option(metavar="FILE", help="Its c2sp.org/tlog-proof@v1.")],
    vkey: Annotated[str, typer.Option(metavar="FILE|TEXT", help="The verifier key of the log that is trusted.")],
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also demand that the entry is about this certificate (PEM).")
    ] = None,
    *,
    json: AsJson = False,
) -> None:
    """Judge one entry's proof, offline: no log and no server is needed."""
    log_proof.verify_proof(entry, proof, vkey, certificate, json=json)


@app.command(epilog=examples("eastwest log verifier > verify_log.py"))
def verifier() -> None:
    """Print the verifier for auditors: one Python file that shares no code with this program."""
    from importlib import resources

    print((resources.files("eastwest.cli") / "verify_log.py").read_text(encoding="utf-8"), end="")


@app.command()
def schema() -> None:
    """Print the JSON Schema (2020-12) of the log's entries."""
    from eastwest.log.schema import schema_text

    print(schema_text(), end="")


@app.command()
def show(
    data: DataDir = None,
    log_dir: LogDir = None,
    vkey: Vkey = None,
    kind: Annotated[str | None, typer.Option(help="Only entries of this kind, such as x509_svid.issued.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many, the latest ones.", min=1)] = 20,
    *,
    wait: log_proof.Wait = False,
    json: AsJson = False,
) -> None:
    """Show the latest entries, oldest first, each proven to be in the log."""
    if wait:
        log_proof.publish(data)
    files, key = locate(data, log_dir, vkey)
    checkpoint, note, reader = open_log(files, key)
    found: list[tuple[int, Any]] = []
    for index in reversed(range(checkpoint.size)):
        entry = reader.entry(index)
        value = readable(entry)
        if kind is not None and not (isinstance(value, dict) and value.get("kind") == kind):
            continue
        proof_of(index, entry, checkpoint, note, reader)
        found.append((index, value))
        if len(found) == limit:
            break
    if not found:
        log_search.note_kind(kind or "")
    found.reverse()
    if json:
        entries = [{"index": index, "entry": value} for index, value in found]
        print_json({**head(key, checkpoint), "entries": entries})
        return
    for index, value in found:
        print(line(index, value))
    print(f"{len(found)} of {checkpoint.size} entries shown, each proven against the checkpoint of {key.name}")


@app.command(
    epilog=examples(
        "eastwest log search --data data --subject spiffe://shop.example/web --limit 5",
        "eastwest log search --data data --kind x509_svid.issued --from 2026-11-22 --to 2026-11-23 --csv",
        "eastwest log search --log-dir copy/log --vkey copy/log.vkey --index copy/index.db --serial 5f3a",
    )
)
def search(
    data: DataDir = None,
    log_dir: LogDir = None,
    vkey: Vkey = None,
    subject: log_search.Subject = "",
    actor: log_search.Actor = "",
    serial: log_search.Serial = "",
    certificate: log_search.Certificate = "",
    node: log_search.Node = "",
    entry: log_search.EntryId = "",
    kind: log_search.Kind = "",
    start: log_search.Start = "",
    end: log_search.End = "",
    limit: log_search.Limit = 100,
    index: log_search.Index = None,
    *,
    oldest: log_search.Oldest = False,
    json: AsJson = False,
    as_csv: log_search.AsCsv = False,
) -> None:
    """Find entries that have all that is given, oldest first, each proven to be in the log."""
    from eastwest.clock import SystemClock
    from eastwest.log.index import LogQuery

    if json and as_csv:
        raise InvalidInput("--json and --csv exclude each other", fix="choose one")
    now = SystemClock().now()
    query = LogQuery(
        subject=subject,
        actor=actor,
        serial=serial,
        certificate_sha256=certificate,
        node=node,
        entry_id=entry,
        kind=kind,
        start=moment_of(start, now, "--from").isoformat() if start else "",
        end=moment_of(end, now, "--to").isoformat() if end else "",
        limit=limit,
        newest_first=not oldest,
    )
    log_search.search(data, log_dir, vkey, query, index, json=json, as_csv=as_csv)


@app.command(
    epilog=examples(
        "eastwest log prune --data data --before 2026-01-01 --dry-run",
        "eastwest log prune --data data --before 2026-01-01",
    )
)
def prune(
    data: RequiredData,
    before: log_prune.Before,
    *,
    dry_run: log_prune.DryRun = False,
    json: AsJson = False,
) -> None:
    """Remove old entries, in whole bundles, from a stopped server's log; their hashes stay, and the log tells of it."""
    log_prune.prune(data, before, dry_run=dry_run, json=json)
