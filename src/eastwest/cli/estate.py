"""``eastwest plan``, ``eastwest apply`` and ``eastwest estate``: what is intended, checked, compared, put in force.

Exit codes: 0 nothing wrong, 1 the estate has errors, 2 wrong usage, 3 the server does not answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eastwest.cli.options import AsJson, DataDir, examples, print_json, run
from eastwest.clock import SystemClock

if TYPE_CHECKING:
    from eastwest.policy.plan import Plan

EXIT_ERRORS = 1
EXAMPLES = {
    "plan": examples("eastwest plan estate", "eastwest plan estate --data data"),
    "apply": examples(
        "eastwest apply estate --data data",
        "eastwest apply estate --data data --change 1f2e3d4c5b6a7988",
        'eastwest apply estate --data data --break-glass "orders stand still, INC-4711" --for 1h',
    ),
}
"""For commands that are no Typer applications of their own."""
Effect = dict[str, Any]

estate_app = typer.Typer(add_completion=False, no_args_is_help=True, help="The schemas of the files that people write.")

Directory = Annotated[
    Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="The directory that holds estate.yaml.")
]
MaybeDataDir = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        envvar="EASTWEST_DATA",
        readable=False,
        help="Compare with what this server has applied.",
    ),
]


@estate_app.callback()
def _estate() -> None:
    """Keeps the noun when it has only one verb."""


@estate_app.command()
def schema(
    kind: Annotated[
        str, typer.Option(metavar="KIND", help="Only for estate, profiles, workloads, services, waivers or tests.")
    ] = "",
    cedar: Annotated[
        Path | None, typer.Option(metavar="DIR", exists=True, file_okay=False, help="The Cedar schema of this estate.")
    ] = None,
) -> None:
    """Print the JSON Schema of the YAML files, or the Cedar schema that an estate's policies are checked against."""
    from eastwest.policy.load import KINDS, json_schema, load_estate

    if cedar is not None:
        print(load_estate(read_directory(cedar)).schema, end="")
        return
    if kind and kind not in KINDS:
        raise typer.BadParameter(f"{kind!r} is none of {', '.join(KINDS)}", param_hint="--kind")
    print_json(json_schema(kind or None))


def plan(directory: Directory, data: MaybeDataDir = None, *, as_json: AsJson = False) -> None:
    """Check an estate, say what it amounts to, and with --data what it would change."""
    made, effect = _plan(directory, data)
    _show(made, directory, effect, as_json=as_json)
    if not made.ok:
        raise typer.Exit(EXIT_ERRORS)


def apply(
    directory: Directory,
    data: DataDir,
    change: Annotated[
        str, typer.Option(metavar="ID", help="The approved change that this is; without, one for just these files.")
    ] = "",
    break_glass: Annotated[
        str, typer.Option(metavar="REASON", help="Skip approvals, loudly and for a while; the version before returns.")
    ] = "",
    for_: Annotated[str, typer.Option("--for", metavar="TIME", help="How long break-glass holds; at most 8h.")] = "",
    *,
    accept_breaks: Annotated[
        bool,
        typer.Option("--accept-breaks", help="Recorded calls that a rollout would newly refuse are meant to be."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put an estate in force on the server of --data; refused when it has errors or another one came first.

    Also refused when it opens what another has to approve of.
    """
    from eastwest.cli.admin import AdminClient
    from eastwest.cli.change_client import judge
    from eastwest.policy.plan import plan_files

    files = read_directory(directory)
    wishes = {
        "change": change,
        "break_glass": break_glass,
        "break_glass_seconds": _break_glass_seconds(break_glass, for_),
        "accept_breaks": accept_breaks,
    }

    async def work() -> tuple[Plan, Effect | None, str]:
        async with AdminClient.connect(data) as admin:
            status = await admin.estate_status()
            made = plan_files(files, _today(), status["files"] if status else None)
            if not made.ok:
                return made, None, ""
            effect = _effect(await admin.plan_estate(files)) | {"judgement": await judge(data, files)}
            reply = await admin.apply_estate(files, status["version"] if status else "", **wishes)
            return made, effect, str(reply["version"])

    made, effect, version = run(work)
    if as_json:
        print_json(made.to_dict() | _told(effect) | {"applied_version": version})
    else:
        _show(made, directory, effect, as_json=False)
        if version:
            print(f"applied: version {version}")
            if _goes_by_rings(made) and not break_glass:
                print("new rules go ring by ring: eastwest policy status says how far")
    if not made.ok:
        raise typer.Exit(EXIT_ERRORS)


def _goes_by_rings(made: Plan) -> bool:
    """Whether enforcement changes, and the estate says that it does so ring by ring."""
    changes = made.difference is not None and not made.difference.is_empty
    return changes and made.estate is not None and made.estate.settings.rollout is not None


def read_directory(directory: Path) -> dict[str, bytes]:
    """The files of an estate by relative path; what could not belong to one is left out unread.

    Raises ``Exhausted`` when the directory is too big to be an estate.
    """
    from eastwest.errors import Exhausted
    from eastwest.policy.load import MAX_FILES, MAX_TOTAL

    files: dict[str, bytes] = {}
    size = 0
    for path in _walk(directory):
        size += path.stat().st_size
        if len(files) >= MAX_FILES or size > MAX_TOTAL:
            raise Exhausted(
                f"{directory} holds more than {MAX_FILES} files or {MAX_TOTAL >> 20} MiB",
                fix="give the directory that holds estate.yaml, and nothing beside the estate in it",
            )
        files[path.relative_to(directory).as_posix()] = path.read_bytes()
    return files


def _walk(directory: Path) -> Iterator[Path]:
    from eastwest.policy.load import is_estate_file

    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if is_estate_file(path.relative_to(directory).as_posix()) and path.is_file():
                yield path


def _plan(directory: Path, data: Path | None) -> tuple[Plan, Effect | None]:
    from eastwest.policy.plan import plan_files

    files = read_directory(directory)
    if data is None:
        return plan_files(files, _today()), None

    from eastwest.cli.admin import AdminClient
    from eastwest.cli.change_client import judge

    async def work() -> tuple[Plan, Effect | None]:
        async with AdminClient.connect(data) as admin:
            status = await admin.estate_status()
            made = plan_files(files, _today(), status["files"] if status else None)
            if not made.ok:
                return made, None
            return made, _effect(await admin.plan_estate(files)) | {"judgement": await judge(data, files)}

    return run(work)


def _effect(reply: Any) -> Effect:
    """What the server says that applying would do to registrations."""
    return {
        "create": reply.create,
        "update": reply.update,
        "delete": reply.delete,
        "managed_by_others": dict(sorted(reply.foreign.items())),
        "refusal": reply.refusal,
        "warnings": list(reply.warnings),
    }


def _told(effect: Effect | None) -> Effect:
    """What the server says, as JSON has it."""
    if effect is None:
        return {"registrations": None}
    judged = effect["judgement"]
    names = ("widenings", "required_approvals", "nobody_could_approve", "approved_change")
    opens = {name: judged[name] for name in names}
    return {"registrations": {name: value for name, value in effect.items() if name != "judgement"}} | opens


def _break_glass_seconds(reason: str, text: str) -> int:
    from eastwest.policy.forms import complaint, duration

    if bool(reason) != bool(text):
        raise typer.BadParameter("break-glass takes a reason and a time: --break-glass REASON --for 1h")
    if text and complaint("duration", text) is not None:
        raise typer.BadParameter(f"{text[:32]!r} is no time, such as 1h", param_hint="--for")
    return int(duration(text).total_seconds()) if text else 0


def _show(made: Plan, directory: Path, effect: Effect | None, *, as_json: bool) -> None:
    if as_json:
        print_json(made.to_dict() | _told(effect))
        return
    from eastwest.cli.estate_table import print_plan

    print_plan(made, directory)
    if effect is None:
        return
    print(f"registrations: {effect['create']} new, {effect['update']} changed, {effect['delete']} deleted")
    if effect["managed_by_others"]:
        kept = ", ".join(f"{count} by {who}" for who, count in effect["managed_by_others"].items())
        print(f"registrations of others, which apply never touches: {kept}")
    from eastwest.cli.change import print_judgement

    print_judgement(effect["judgement"])
    if effect["refusal"]:
        print(f"not for you: {effect['refusal']}")
    for warning in effect["warnings"]:
        print(f"warning: {warning}")


def _today() -> date:
    return SystemClock().now().astimezone(UTC).date()
