"""``eastwest entry``: registration entries by hand; an estate's own are changed in its files."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, TypeVar, Unpack, cast, get_type_hints

import typer

from eastwest.cli.options import AsJson, DataDir, counted, examples, print_json, run, utc

if TYPE_CHECKING:
    from eastwest.api.eastwest.admin.v1 import admin_pb2 as pb

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Registration entries: create, change, show, delete, explain."
)

EXIT_NOT_YET = 1
SpiffeIdOption = Annotated[str, typer.Option("--spiffe-id", metavar="ID", help="The identity.")]
ParentOption = Annotated[
    str,
    typer.Option("--parent-id", metavar="ID", help="The node that runs it: an agent's SPIFFE ID, or a node alias's."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Let the server judge it, and change nothing.")]
Wait = Annotated[
    float,
    typer.Option(metavar="SECONDS", help="Wait until the agents concerned hold the change; exit 1 when not all do."),
]
_Command = TypeVar("_Command", bound=Callable[..., None])


class EntryFields(TypedDict):
    """What may be said of any entry, by the names of the protocol's fields; None: not given."""

    x509_svid_ttl: Annotated[
        int | None,
        typer.Option("--ttl", min=0, max=14400, help="Seconds of an X.509-SVID; 0: the profile's default."),
    ]
    jwt_svid_ttl: Annotated[
        int | None,
        typer.Option("--jwt-ttl", min=0, max=14400, help="Seconds of a JWT-SVID; 0: the server's default."),
    ]
    dns_names: Annotated[list[str] | None, typer.Option("--dns", help="A DNS name for the certificate. Repeat.")]
    hint: Annotated[str | None, typer.Option(help="A word by which the workload chooses among its identities.")]
    federates_with: Annotated[
        list[str] | None, typer.Option(metavar="TD", help="A trust domain whose bundle it gets. Repeat.")
    ]
    expires_at: Annotated[
        int | None,
        typer.Option("--expires-in", min=0, metavar="SECONDS", help="The entry ends this long from now; 0: never."),
    ]
    owner: Annotated[str | None, typer.Option(help="Who answers for it: kind:name, such as group:commerce.")]
    attributes: Annotated[
        list[str] | None,
        typer.Option("--attribute", metavar="NAME=VALUE", help="A fact about it. Repeat for a list."),
    ]
    admin: Annotated[
        bool | None, typer.Option("--admin/--no-admin", help="May administer the server over the agents' port.")
    ]
    downstream: Annotated[
        bool | None, typer.Option("--downstream/--no-downstream", help="May have an intermediate CA: a nested server.")
    ]
    store_svid: Annotated[
        bool | None, typer.Option("--store-svid/--no-store-svid", help="For a secret store; never served to workloads.")
    ]


def takes_fields(command: _Command) -> _Command:
    """Give ``command`` an option for each of its ``**fields``: typer reads the signature, and not ``Unpack``."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    fields = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in get_type_hints(EntryFields, include_extras=True).items()
    ]
    before = [parameter for parameter in own if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    after = [parameter for parameter in own if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    cast("Any", command).__signature__ = inspect.Signature([*before, *fields, *after])
    return command


@app.command(
    epilog=examples(
        "eastwest entry create --data data --spiffe-id spiffe://shop.example/prod/billing"
        " --parent-id spiffe://shop.example/spire/agent/join_token/7d0f1a52 --selector unix:user:billing",
    )
)
@takes_fields
def create(
    data: DataDir,
    spiffe_id: SpiffeIdOption,
    parent_id: ParentOption,
    selector: Annotated[list[str], typer.Option(help="type:value, such as unix:uid:1000; all must hold. Repeat.")],
    *,
    dry_run: DryRun = False,
    wait: Wait = 0.0,
    as_json: AsJson = False,
    **fields: Unpack[EntryFields],
) -> None:
    """Register an identity: whoever has all selectors on that node gets it, pushed at once."""
    from eastwest.api.eastwest.admin.v1 import admin_pb2 as pb

    entry, _ = _message(spiffe_id=spiffe_id, parent_id=parent_id, selectors=selector, **fields)
    _write(data, pb.WriteEntriesRequest(create=[entry], dry_run=dry_run), wait, as_json=as_json)


@app.command()
@takes_fields
def update(
    data: DataDir,
    entry_id: Annotated[str, typer.Argument(metavar="ENTRY", help="The entry's id.")],
    spiffe_id: Annotated[str | None, typer.Option("--spiffe-id", metavar="ID", help="Another identity.")] = None,
    parent_id: Annotated[str | None, typer.Option("--parent-id", metavar="ID", help="Another node.")] = None,
    selector: Annotated[list[str] | None, typer.Option(help="type:value, such as unix:uid:1000. Repeat.")] = None,
    *,
    dry_run: DryRun = False,
    wait: Wait = 0.0,
    as_json: AsJson = False,
    **fields: Unpack[EntryFields],
) -> None:
    """Change what is given of an entry, and keep the rest; its agents sign anew."""
    from eastwest.api.eastwest.admin.v1 import admin_pb2 as pb

    entry, given = _message(spiffe_id=spiffe_id, parent_id=parent_id, selectors=selector, **fields)
    if not given:
        raise typer.BadParameter("nothing is given that would change")
    entry.entry.id = entry_id
    change = pb.WriteEntriesRequest.Change(entry=entry, fields=given)
    _write(data, pb.WriteEntriesRequest(update=[change], dry_run=dry_run), wait, as_json=as_json)


@app.command()
def show(
    data: DataDir,
    spiffe_id: Annotated[str, typer.Option("--spiffe-id", metavar="ID", help="Only this identity.")] = "",
    parent_id: Annotated[str, typer.Option("--parent-id", metavar="ID", help="Only what this node runs.")] = "",
    managed_by: Annotated[
        str, typer.Option(metavar="WHO", help="Only what is managed by it: estate, api, api:WHO, controller:NAME.")
    ] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Show entries, those of the estate included, and who manages them."""
    from eastwest.api.eastwest.admin.v1 import admin_pb2 as pb
    from eastwest.cli.admin import AdminClient

    async def work() -> list[pb.ManagedEntry]:
        async with AdminClient.connect(data) as admin:
            wanted = pb.ListEntriesRequest(spiffe_id=spiffe_id, parent_id=parent_id, managed_by=managed_by)
            return await admin.entries(wanted)

    entries = [_as_dict(entry) for entry in run(work)]
    if as_json:
        print_json({"entries": entries})
        return
    for entry in entries:
        print(f"{entry['spiffe_id']}  (entry {entry['id']}, revision {entry['revision']})")
        print(f"  managed by  {entry['managed_by']}")
        print(f"  parent      {entry['parent_id']}")
        print(f"  selectors   {', '.join(entry['selectors'])}")
        for label, key in _SHOWN:
            if entry[key]:
                print(f"  {label:<11} {_text(entry[key])}")
    print(counted(len(entries), "entry", "entries"))


@app.command()
def delete(
    data: DataDir,
    entry_id: Annotated[list[str], typer.Argument(metavar="ENTRY...", help="Ids of entries.")],
    *,
    dry_run: DryRun = False,
    wait: Wait = 0.0,
    as_json: AsJson = False,
) -> None:
    """Delete entries; their identities are taken from workloads at once and not issued again."""
    from eastwest.api.eastwest.admin.v1 import admin_pb2 as pb

    _write(data, pb.WriteEntriesRequest(delete=entry_id, dry_run=dry_run), wait, as_json=as_json)


@app.command(
    epilog=examples(
        "eastwest entry explain --data data --selector unix:user:billing --selector unix:group:billing",
        "eastwest entry explain --data data --pid 4242",
    )
)
def explain(
    data: DataDir,
    pid: Annotated[
        int | None, typer.Option(help="A process of this node: asks the agent of --data what it sees in it.")
    ] = None,
    selector: Annotated[
        list[str] | None, typer.Option(help="A selector that a process has: asks the server of --data. Repeat.")
    ] = None,
    node: Annotated[str, typer.Option(metavar="ID", help="With --selector: the agent of the node; else any.")] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Say which entries a process matches, which it nearly matches, and what is missing."""
    from eastwest.cli.explain import explain_process, explain_selectors, show_explanation

    if (pid is None) == (not selector):
        raise typer.BadParameter("give either --pid, on the node, or --selector, on the server")
    found = explain_process(data, pid) if pid is not None else explain_selectors(data, selector or [], node)
    show_explanation(found, as_json=as_json)


_SHOWN = (
    ("lifetime", "x509_svid_ttl"),
    ("dns", "dns_names"),
    ("hint", "hint"),
    ("environment", "environment"),
    ("owner", "owner"),
    ("attributes", "attributes"),
    ("federates", "federates_with"),
    ("ends", "expires_at"),
    ("rights", "rights"),
)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_text(item)}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _message(**given: Any) -> tuple[pb.ManagedEntry, list[str]]:
    """The entry that was described, and the names of the fields that were given."""
    from eastwest.api.eastwest.admin.v1 import admin_pb2 as pb
    from eastwest.clock import SystemClock
    from eastwest.rpc.spire import id_to_proto, selectors_to_proto
    from eastwest.spiffe.id import SpiffeId
    from eastwest.spiffe.selector import Selector

    message = pb.ManagedEntry()
    entry = message.entry
    fields = [name for name, value in given.items() if value is not None]
    for name in fields:
        value = given[name]
        if name in {"spiffe_id", "parent_id"}:
            getattr(entry, name).CopyFrom(id_to_proto(SpiffeId.parse(value)))
        elif name == "selectors":
            entry.selectors.extend(selectors_to_proto(map(Selector.parse, value)))
        elif name in {"dns_names", "federates_with"}:
            getattr(entry, name).extend(text for text in value if text)
        elif name == "expires_at":
            entry.expires_at = int(SystemClock().now().timestamp()) + value if value else 0
        elif name == "owner":
            message.owner = value
        elif name == "attributes":
            message.attributes.extend(_attributes(value))
        else:
            setattr(entry, name, value)
    return message, fields


def _attributes(texts: list[str]) -> list[pb.Attribute]:
    from eastwest.api.eastwest.admin.v1 import admin_pb2 as pb

    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--attribute")
        found.setdefault(name, []).append(value)
    return [
        pb.Attribute(name=name, values=values, list=len(values) > 1 or name == "tenants")
        for name, values in found.items()
    ]


def _write(data: Any, request: pb.WriteEntriesRequest, wait: float, *, as_json: bool) -> None:
    from eastwest.api.eastwest.admin.v1 import admin_pb2 as pb
    from eastwest.cli.admin import AdminClient
    from eastwest.rpc.status import error_of

    async def work() -> tuple[pb.WriteEntriesResponse, pb.WaitForEntriesResponse | None]:
        async with AdminClient.connect(data) as admin:
            reply = await admin.write_entries(request)
            good = [result for result in reply.results if result.status.code == 0]
            if request.dry_run or wait <= 0 or not good:
                return reply, None
            gone = bool(request.delete)
            awaited = [
                pb.WaitForEntriesRequest.Awaited(
                    id=result.entry.entry.id, revision=-1 if gone else result.entry.entry.revision_number
                )
                for result in good
            ]
            return reply, await admin.wait_for_entries(awaited, wait)

    reply, told = run(work)
    verb = "created" if request.create else "updated" if request.update else "deleted"
    verb = f"would be {verb}" if request.dry_run else verb
    errors = [error_of(result.status.code, result.status.message) for result in reply.results]
    if as_json:
        results = [
            {
                "status": verb if error is None else "refused",
                "error": "" if error is None else str(error),
                "entry": _as_dict(result.entry) if result.HasField("entry") else None,
            }
            for result, error in zip(reply.results, errors, strict=True)
        ]
        waited = {name: list(getattr(told, name)) if told else [] for name in ("acknowledged", "pending", "unknown")}
        print_json({"version": reply.version, "dry_run": request.dry_run, "results": results, "agents": waited})
    else:
        for result, error in zip(reply.results, errors, strict=True):
            if error is not None:
                continue
            if request.create:  # the new id alone, for scripts; a dry run's is given to nothing
                print(verb if request.dry_run else result.entry.entry.id)
            else:
                print(f"{verb} {result.entry.entry.id}")
        if told is not None:
            print(_progress(told))
    failed = next((error for error in errors if error is not None), None)
    if failed is not None:
        raise failed
    if told is not None and told.pending:
        raise typer.Exit(EXIT_NOT_YET)


def _progress(told: pb.WaitForEntriesResponse) -> str:
    held = len(told.acknowledged)
    parts = [f"{counted(held, 'agent')} {'holds' if held == 1 else 'hold'} it"]
    if told.pending:
        parts.append(f"not yet: {', '.join(told.pending)}")
    if told.unknown:
        parts.append(f"{len(told.unknown)} cannot say (away, or stock SPIRE agents)")
    return "; ".join(parts)


def _as_dict(managed: pb.ManagedEntry) -> dict[str, Any]:
    message = managed.entry

    return {
        "id": message.id,
        "spiffe_id": f"spiffe://{message.spiffe_id.trust_domain}{message.spiffe_id.path}",
        "parent_id": f"spiffe://{message.parent_id.trust_domain}{message.parent_id.path}",
        "selectors": [f"{selector.type}:{selector.value}" for selector in message.selectors],
        "x509_svid_ttl": message.x509_svid_ttl,
        "jwt_svid_ttl": message.jwt_svid_ttl,
        "dns_names": list(message.dns_names),
        "hint": message.hint,
        "federates_with": list(message.federates_with),
        "rights": [name for name in ("admin", "downstream", "store_svid") if getattr(message, name)],
        "expires_at": utc(message.expires_at),
        "revision": message.revision_number,
        "created_at": utc(message.created_at),
        "managed_by": managed.managed_by,
        "environment": managed.environment,
        "owner": managed.owner,
        "profile": managed.profile,
        "attributes": {a.name: list(a.values) if a.list else a.values[0] for a in managed.attributes},
    }
