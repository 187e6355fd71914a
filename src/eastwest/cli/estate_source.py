"""An estate that is only looked at: from a directory, or as a server has it applied."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eastwest.cli.options import run

if TYPE_CHECKING:
    from eastwest.policy.estate import Estate
    from eastwest.policy.lint.finding import Registration
    from eastwest.policy.table import CompiledPolicy

MaybeDirectory = Annotated[
    Path | None,
    typer.Argument(metavar="DIR", exists=True, file_okay=False, help="The directory that holds estate.yaml."),
]
AppliedData = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        envvar="EASTWEST_DATA",
        readable=False,
        help="What this server has applied, instead of an estate's files.",
    ),
]


@dataclass(frozen=True, slots=True)
class Source:
    """An estate, its table, and what a server has registered beside (none from a directory)."""

    estate: Estate
    compiled: CompiledPolicy
    registrations: tuple[Registration, ...] = ()


def source(context: typer.Context, directory: Path | None, data: Path | None, *, registrations: bool = False) -> Source:
    """The estate of ``directory``, or of the server of ``data``; wrong usage unless it is exactly one.

    ``registrations``: ask the server for these too. Raises ``EstateInvalid`` for files with mistakes.
    """
    from eastwest.cli.estate import read_directory

    asked = applied_data(context, directory, data)
    if asked is None:
        if directory is None:
            raise typer.BadParameter("say which estate: a directory, or --data of a server", param_hint="DIR")
        return from_files(read_directory(directory))
    return _applied(asked, registrations=registrations)


def applied_data(context: typer.Context, directory: Path | None, data: Path | None) -> Path | None:
    """``data`` where the server is meant: what the environment says yields to a directory."""
    given = context.get_parameter_source("data")
    on_command_line = given is not None and given.name == "COMMANDLINE"
    if directory is not None and on_command_line:
        raise typer.BadParameter("it is either a directory or --data of a server, not both", param_hint="DIR")
    return None if directory is not None else data


def from_files(files: dict[str, bytes], registrations: tuple[Registration, ...] = ()) -> Source:
    """Load and compile. Raises ``EstateInvalid``."""
    from eastwest.policy.load import load_estate
    from eastwest.policy.table import compile_estate

    estate = load_estate(files)
    return Source(estate, compile_estate(estate), registrations)


def applied(data: Path) -> Source:
    """What the server of ``data`` has in force. Raises ``NotFound`` when that is nothing."""
    return _applied(data, registrations=False)


def _applied(data: Path, *, registrations: bool) -> Source:
    from eastwest.api.eastwest.admin.v1 import admin_pb2
    from eastwest.cli.admin import AdminClient
    from eastwest.errors import NotFound
    from eastwest.policy.lint.finding import Registration

    async def ask() -> tuple[dict[str, bytes] | None, tuple[Registration, ...]]:
        async with AdminClient.connect(data) as admin:
            status = await admin.estate_status()
            entries = await admin.entries(admin_pb2.ListEntriesRequest()) if registrations and status else []
            return (status["files"] if status else None), tuple(
                Registration(
                    f"spiffe://{one.entry.spiffe_id.trust_domain}{one.entry.spiffe_id.path}",
                    f"spiffe://{one.entry.parent_id.trust_domain}{one.entry.parent_id.path}",
                    tuple(f"{selector.type}:{selector.value}" for selector in one.entry.selectors),
                    one.managed_by,
                )
                for one in entries
            )

    files, held = run(ask)
    if files is None:
        raise NotFound("the server has no estate yet", fix="eastwest apply DIR --data DATA")
    return from_files(files, held)
