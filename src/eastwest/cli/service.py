"""``eastwest service import``: operations of a service from its OpenAPI document or protobuf descriptors.

Exit codes: 0 done, 1 the document or the file has mistakes (or, with ``--check``, something would change), 2 wrong
usage.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from eastwest.cli.options import AsJson, counted, examples, print_json

if TYPE_CHECKING:
    from eastwest.policy.imports.model import Contents
    from eastwest.policy.imports.newfile import NewService
    from eastwest.policy.imports.outcome import Outcome

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Services of an estate: import their operations.")
imports = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Bring a service file up to what the service publishes."
)
app.add_typer(imports, name="import")

Service = Annotated[str, typer.Option("--service", metavar="NAME", help="The service's name in the estate.")]
Into = Annotated[
    Path | None,
    typer.Option(
        "--into", metavar="FILE", help="The service file, such as services/NAME.yaml; without it, the text is printed."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would change, and write nothing.")]
Check = Annotated[bool, typer.Option("--check", help="As --dry-run, and exit with 1 where something would change.")]
Prune = Annotated[
    bool, typer.Option("--prune", help="Remove operations that the document has not, except those marked # keep.")
]
Workload = Annotated[str, typer.Option(metavar="ID", help="For a new file: the SPIFFE ID of who answers.")]
Owner = Annotated[str, typer.Option(help="For a new file, such as group:commerce.")]
Domain = Annotated[str, typer.Option(help="For a new file: a domain of the estate.")]
Port = Annotated[int, typer.Option(help="For a new file: where the sidecar listens.", min=0, max=65535)]
Upstream = Annotated[str, typer.Option(metavar="PATH|HOST:PORT", help="For a new file: where the application listens.")]


@imports.command(
    epilog=examples(
        "eastwest service import openapi openapi.yaml --service billing --into estate/services/billing.yaml",
        "curl -s https://localhost/openapi.json | eastwest service import openapi - --service billing",
    )
)
def openapi(
    document: Annotated[str, typer.Argument(metavar="FILE|-", help="OpenAPI 3.0, 3.1 or 3.2, in JSON or YAML.")],
    service: Service,
    into: Into = None,
    base_path: Annotated[
        str | None, typer.Option(metavar="PATH", help="Before all paths, in place of the servers' (/ for none).")
    ] = None,
    workload: Workload = "",
    owner: Owner = "",
    domain: Domain = "",
    port: Port = 0,
    upstream: Upstream = "",
    *,
    prune: Prune = False,
    dry_run: DryRun = False,
    check: Check = False,
    json: AsJson = False,
) -> None:
    """Import the paths and methods of an OpenAPI document."""
    from eastwest.policy.imports.newfile import NewService
    from eastwest.policy.imports.openapi import read_openapi
    from eastwest.policy.imports.source import MAX_DOCUMENT

    new = NewService(service=service, workload=workload, owner=owner, domain=domain, port=port, upstream=upstream)
    name, data = _read(document, MAX_DOCUMENT)
    with _Complaints(as_json=json):
        contents = read_openapi(name, data, base_path=base_path)
        outcome = _merged(contents, into, new, prune=prune)
    _finish(outcome, service, into, write=not (dry_run or check), check=check, as_json=json)


@imports.command(
    epilog=examples(
        "eastwest service import protobuf api.binpb --service notify --into estate/services/notify.yaml",
        "eastwest service import protobuf api.binpb --service notify --package notify.v1 --check",
    )
)
def protobuf(
    descriptors: Annotated[
        str, typer.Argument(metavar="FILE|-", help="A FileDescriptorSet: protoc --descriptor_set_out, buf build.")
    ],
    service: Service,
    into: Into = None,
    package: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only services of this package.")] = None,
    grpc_service: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this service, such as notify.v1.Notify.")
    ] = None,
    workload: Workload = "",
    owner: Owner = "",
    domain: Domain = "",
    port: Port = 0,
    upstream: Upstream = "",
    *,
    prune: Prune = False,
    dry_run: DryRun = False,
    check: Check = False,
    json: AsJson = False,
) -> None:
    """Import the methods of gRPC services from their descriptors."""
    from eastwest.policy.imports.newfile import NewService
    from eastwest.policy.imports.protobuf import MAX_DESCRIPTORS, read_protobuf

    new = NewService(service=service, workload=workload, owner=owner, domain=domain, port=port, upstream=upstream)
    name, data = _read(descriptors, MAX_DESCRIPTORS)
    with _Complaints(as_json=json):
        contents = read_protobuf(name, data, packages=package or (), services=grpc_service or ())
        outcome = _merged(contents, into, new, prune=prune)
    _finish(outcome, service, into, write=not (dry_run or check), check=check, as_json=json)


class _Complaints:
    """Tells every mistake of a document, where an error alone would tell the first."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        from eastwest.policy.problems import EstateInvalid

        if isinstance(error, EstateInvalid) and not self._as_json:
            for problem in error.problems:
                print(problem, file=sys.stderr)
            raise typer.Exit(1)


def _merged(contents: Contents, into: Path | None, new: NewService, *, prune: bool) -> Outcome:
    from eastwest.policy.imports.merge import merge, tenant_parameter
    from eastwest.policy.imports.newfile import head, suggested_tenant
    from eastwest.policy.imports.servicefile import ServiceFile

    exists = into is not None and into.exists()
    if into is not None and exists:
        file = ServiceFile(str(into), into.read_bytes())
    elif into is not None or new.workload:
        file = ServiceFile(str(into or "new file"), head(new, tenant_parameter(contents)).encode())
    else:  # for a look: the operations alone
        suggested = suggested_tenant(tenant_parameter(contents))
        file = ServiceFile("operations", f"service: {new.service}\n{suggested}".encode())
    outcome = merge(file, new.service, contents, prune=prune)
    if not exists:
        outcome.before = ""
    return outcome


def _read(name: str, limit: int) -> tuple[str, bytes]:
    """The document's name for messages, and at most one byte more of it than is accepted."""
    if name == "-":
        return "standard input", sys.stdin.buffer.read(limit + 1)
    path = Path(name)
    if not path.is_file():
        raise typer.BadParameter(f"there is no file {name}", param_hint="FILE")
    with path.open("rb") as file:
        return name, file.read(limit + 1)


def _finish(outcome: Outcome, service: str, into: Path | None, *, write: bool, check: bool, as_json: bool) -> None:
    if write and into is not None and outcome.is_changed:
        from eastwest.process.files import replace_file

        file = into.resolve()  # behind a link, the link stays
        replace_file(file, outcome.text.encode(), file.stat().st_mode & 0o777 if file.exists() else 0o644)
    if as_json:
        report = {"service": service, "file": str(into) if into else None, **outcome.to_dict()}
        print_json(report | ({} if into else {"text": outcome.text}))
    elif into is None and write:
        print(outcome.text, end="")
        outcome.appeared.clear()  # they are the text
        _tell(outcome, sys.stderr)
    else:
        _tell(outcome, sys.stdout)
        if into is not None:
            print(_verdict(outcome, into, write=write))
    if check and outcome.is_changed:
        raise typer.Exit(1)


def _tell(outcome: Outcome, stream: TextIO) -> None:
    def tell(line: str) -> None:
        print(line, file=stream)

    for out in outcome.left_out:
        tell(f"left out: {out}")
    for note in outcome.notes:
        tell(str(note))
    for one in outcome.appeared:
        said = one.sensitivity or f"not classified, suggested: {one.suggestion}"
        tell(f"  + {one.name}  {one.what}  ({said})")
    for change in outcome.changed:
        tell(f"  ~ {change.name}  {change.field}: {change.before or '-'} -> {change.after or 'not classified'}")
    for gone in outcome.vanished:
        kept = "removed" if outcome.pruned else "kept: --prune removes it, a comment # keep on it says that it is meant"
        tell(f"  - {gone.name}  {gone.what}  (not in the document; {kept})")


def _verdict(outcome: Outcome, into: Path, *, write: bool) -> str:
    numbers = (
        f"{counted(outcome.total, 'operation')}: {len(outcome.appeared)} appeared, {len(outcome.changed)} changed, "
        f"{len(outcome.vanished)} vanished, {len(outcome.left_out)} left out"
    )
    if not outcome.is_changed:
        return f"{into} stays as it is; {numbers}"
    return f"{into} {'written' if write else 'would change'}; {numbers}"
