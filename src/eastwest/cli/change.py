"""``eastwest change``: what a change of the estate opens waits for the word of those who answer for it.

Exit codes: 0 done, 1 refused, 2 wrong usage, 3 the server does not answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eastwest.cli.options import AsJson, DataDir, examples, print_json, run, utc

if TYPE_CHECKING:
    from eastwest.api.eastwest.changes.v1 import changes_pb2 as pb

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Changes of the estate that need another's word.")

ChangeId = Annotated[str, typer.Argument(metavar="ID", help="As eastwest change list shows it.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is recorded in the log.")]
Directory = Annotated[
    Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="The directory that holds estate.yaml.")
]
Row = Mapping[str, Any]
SHOWN = 20
"""Things opened that a terminal shows; ``--json`` has all."""
_TIMES = ("requested_at", "ends", "decided_at", "at")


@app.command(epilog=examples('eastwest change request estate --data data --reason "refunds for the new desk"'))
def request(directory: Directory, data: DataDir, reason: Reason, *, as_json: AsJson = False) -> None:
    """Ask for the words that these files need. They are kept as they are: any edit afterwards voids the request."""
    from eastwest.cli.estate import read_directory

    files = read_directory(directory)
    _print(run(lambda: _call(data, "RequestChange", files=files, reason=reason)), as_json=as_json)


@app.command(
    "list",
    epilog=examples("eastwest change list --data data --state pending", "eastwest change list --data data --json"),
)
def list_(
    data: DataDir,
    state: Annotated[
        str,
        typer.Option(
            metavar="STATE", help="Only pending, approved, refused, withdrawn, expired, applied or void ones."
        ),
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="At most so many, the newest.")] = 100,
    *,
    as_json: AsJson = False,
) -> None:
    """List changes, newest first."""
    rows = [_timed(row) for row in run(lambda: _call(data, "ListChanges", state=state, limit=limit))]
    if as_json:
        print_json({"changes": rows})
        return
    if not rows:
        print(f"there is no {state} change" if state else "nobody has requested a change")
        return
    from eastwest.cli.table import print_table

    print_table(
        ["ID", "STATE", "UNTIL", "REQUESTED BY", "NEEDS", "APPROVED BY", "REASON"],
        [
            [
                row["id"],
                row["state"],
                row["ends"] or "",
                row["requested_by"],
                ", ".join(one["of"] for one in row["requirements"]),
                ", ".join(one["who"] for one in row["approvals"]),
                row["reason"],
            ]
            for row in rows
        ],
    )


@app.command(
    epilog=examples(
        "eastwest change show 1f2e3d4c5b6a7988 --data data",
        "eastwest change show 1f2e3d4c5b6a7988 --data data --out proposed",
    )
)
def show(
    change: ChangeId,
    data: DataDir,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Write the files that it would put in force.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show one change: what it opens, for whom, whose words it needs and has, and what the record said of it."""
    from eastwest.cli.change_client import call_changes

    async def work() -> pb.GetChangeResponse:
        reply: pb.GetChangeResponse = await call_changes(data, "GetChange", id=change, files=out is not None)
        return reply

    reply = run(work)
    if out is not None:
        _write(out, dict(reply.files))
    import msgspec

    _print(msgspec.json.decode(reply.json), as_json=as_json)


@app.command(epilog=examples('eastwest change approve 1f2e3d4c5b6a7988 --data data --reason "agreed with the desk"'))
def approve(change: ChangeId, data: DataDir, reason: Reason, *, as_json: AsJson = False) -> None:
    """Give the word for what you answer for. Not by who requested it, nor by who applies it."""
    _print(run(lambda: _call(data, "ApproveChange", id=change, reason=reason)), as_json=as_json)


@app.command(epilog=examples('eastwest change refuse 1f2e3d4c5b6a7988 --data data --reason "too wide"'))
def refuse(change: ChangeId, data: DataDir, reason: Reason, *, as_json: AsJson = False) -> None:
    """Refuse it; whose word it needs, may."""
    _print(run(lambda: _call(data, "RefuseChange", id=change, reason=reason)), as_json=as_json)


@app.command(epilog=examples('eastwest change withdraw 1f2e3d4c5b6a7988 --data data --reason "not needed any more"'))
def withdraw(change: ChangeId, data: DataDir, reason: Reason, *, as_json: AsJson = False) -> None:
    """End one that you requested or approved; what was applied stays in force."""
    _print(run(lambda: _call(data, "WithdrawChange", id=change, reason=reason)), as_json=as_json)


def print_judgement(judged: Row) -> None:
    """What a plan opens and whose words that needs, for people; nothing where it opens nothing."""
    opened = [one for one in judged["widenings"] if one["needs_approval"]]
    if not opened:
        return
    print("opens what needs another's word:")
    for one in opened[:SHOWN]:
        print(f"  {_opened(one)}")
    if len(opened) > SHOWN:
        print(f"  and {len(opened) - SHOWN} more; --json has all")
    if judged["approved_change"]:
        print(f"approved: change {judged['approved_change']}")
        return
    for one in judged["required_approvals"]:
        who = " or ".join(one["approvers"]) or "nobody there is besides you"
        print(f"must approve: {one['of']}: {who}")
    if judged["nobody_could_approve"]:
        end = "it will be refused" if judged["two_person"] == "always" else "it is applied on your word alone"
        print(f"WARNING: there is no second administrator who could approve; {end}, and the log says so")


def _opened(one: Row) -> str:
    who = [gain["caller"] for gain in one["gains"]]
    names = ", ".join(dict.fromkeys(who[:3])) + (f" and {one['callers'] - 3} more" if one["callers"] > 3 else "")
    said = f"{one['kind']}: {one['subject']}: {one['why']}"
    return f"{said}: {names}" if names and one["kind"] == "access" else said


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    from eastwest.errors import InvalidInput

    if out.exists() and any(out.iterdir()):
        raise InvalidInput(f"{out} is not empty", fix="name a directory of its own")
    for name, content in files.items():
        path = out / name
        if not path.resolve().is_relative_to(out.resolve()):
            raise InvalidInput(f"the change has a file outside of its directory: {name[:100]}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


async def _call(data: Path, name: str, **fields: Any) -> Any:
    import msgspec

    from eastwest.cli.change_client import call_changes

    return msgspec.json.decode((await call_changes(data, name, **fields)).json)


def _timed(row: Row) -> dict[str, Any]:
    timed = {name: utc(value) if name in _TIMES else value for name, value in row.items()}
    timed["approvals"] = [{**one, "at": utc(one["at"])} for one in row["approvals"]]
    return timed


def _print(change: Row, *, as_json: bool) -> None:
    row = _timed(change)
    if as_json:
        print_json(row)
        return
    from eastwest.cli.table import EMPTY, printable

    for name in ("id", "state", "version", "base", "reason", "requested_by", "requested_at", "ends", "evidence"):
        print(f"{name.replace('_', ' '):16} {printable(row[name] or EMPTY)}")
    for one in row["requirements"]:
        print(f"{'needs':16} {printable(one['of'])}: {printable(one['why'])}")
    for one in row["approvals"]:
        print(f"{'approved by':16} {printable(one['who'])} at {one['at']}: {printable(one['reason'])}")
    if row["decided_by"]:
        print(f"{'ended by':16} {printable(row['decided_by'])}: {printable(row['decision_reason'])}")
    opened = [one for one in row["widenings"] if one["needs_approval"]]
    for one in opened[:SHOWN]:
        print(f"{'opens':16} {printable(_opened(one))}")
    if len(opened) > SHOWN:
        print(f"{'':16} and {len(opened) - SHOWN} more; --json has all")
    if row["state"] == "pending":
        print(f'next: eastwest change approve {row["id"]} --reason "..."')
    elif row["state"] == "approved":
        print(f"next: eastwest apply DIR --change {row['id']}, with the files as they were requested")
