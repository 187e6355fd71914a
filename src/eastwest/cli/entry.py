"""``eastwest entry``: registration entries by hand; an estate's own are changed in its files."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from eastwest.cli.options import AsJson, DataDir, print_json, run

app = typer.Typer(no_args_is_help=True, help="Registration entries: create, show, delete.")

SpiffeIdOption = Annotated[str, typer.Option("--spiffe-id", metavar="ID", help="The identity.")]
ParentOption = Annotated[
    str, typer.Option("--parent-id", metavar="ID", help="The node that runs it: an agent's SPIFFE ID.")
]


@app.command()
def create(
    data: DataDir,
    spiffe_id: SpiffeIdOption,
    parent_id: ParentOption,
    selector: Annotated[list[str], typer.Option(help="type:value, such as unix:uid:1000; all must hold. Repeat.")],
    ttl: Annotated[int, typer.Option(min=0, max=14400, help="Seconds of an X.509-SVID; 0: the profile's default.")] = 0,
    dns: Annotated[list[str] | None, typer.Option(help="A DNS name for the certificate. Repeat.")] = None,
    hint: Annotated[str, typer.Option(help="A word by which the workload chooses among its identities.")] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Register an identity: whoever has all selectors on that node gets it, pushed at once."""
    from eastwest.cli.spire import SpireAdmin
    from eastwest.registry.entry import Entry
    from eastwest.rpc.spire import entry_to_proto
    from eastwest.spiffe.id import SpiffeId
    from eastwest.spiffe.selector import Selector

    entry = Entry(
        spiffe_id=SpiffeId.parse(spiffe_id),
        parent_id=SpiffeId.parse(parent_id),
        selectors=frozenset(Selector.parse(text) for text in selector),
        x509_svid_ttl=ttl,
        dns_names=tuple(dns or ()),
        hint=hint,
    )

    async def work() -> Any:
        async with SpireAdmin.connect(data) as spire:
            return await spire.create_entry(entry_to_proto(entry))

    created = _as_dict(run(work))
    print_json(created) if as_json else print(created["id"])


@app.command()
def show(
    data: DataDir,
    spiffe_id: Annotated[str, typer.Option("--spiffe-id", metavar="ID", help="Only this identity.")] = "",
    parent_id: Annotated[str, typer.Option("--parent-id", metavar="ID", help="Only what this node runs.")] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Show entries, those of the estate included."""
    from eastwest.api.spire.api.server.entry.v1 import entry_pb2
    from eastwest.cli.spire import SpireAdmin
    from eastwest.rpc.spire import id_to_proto
    from eastwest.spiffe.id import SpiffeId

    wanted = entry_pb2.ListEntriesRequest.Filter(
        by_spiffe_id=id_to_proto(SpiffeId.parse(spiffe_id)) if spiffe_id else None,
        by_parent_id=id_to_proto(SpiffeId.parse(parent_id)) if parent_id else None,
    )

    async def work() -> list[Any]:
        async with SpireAdmin.connect(data) as spire:
            return await spire.entries(wanted)

    entries = [_as_dict(entry) for entry in run(work)]
    if as_json:
        print_json({"entries": entries})
        return
    for entry in entries:
        print(f"{entry['spiffe_id']}  (entry {entry['id']}, revision {entry['revision']})")
        print(f"  parent     {entry['parent_id']}")
        print(f"  selectors  {', '.join(entry['selectors'])}")
        if entry["x509_svid_ttl"]:
            print(f"  lifetime   {entry['x509_svid_ttl']} s")
    print(f"{len(entries)} entries")


@app.command()
def delete(data: DataDir, entry_id: Annotated[str, typer.Argument(metavar="ENTRY", help="The entry's id.")]) -> None:
    """Delete an entry; its identity is taken from workloads at once and not issued again."""
    from eastwest.cli.spire import SpireAdmin

    async def work() -> None:
        async with SpireAdmin.connect(data) as spire:
            await spire.delete_entry(entry_id)

    run(work)
    print(f"deleted {entry_id}")


def _as_dict(message: Any) -> dict[str, Any]:
    created = datetime.fromtimestamp(message.created_at, UTC).isoformat() if message.created_at else ""
    return {
        "id": message.id,
        "spiffe_id": f"spiffe://{message.spiffe_id.trust_domain}{message.spiffe_id.path}",
        "parent_id": f"spiffe://{message.parent_id.trust_domain}{message.parent_id.path}",
        "selectors": [f"{selector.type}:{selector.value}" for selector in message.selectors],
        "x509_svid_ttl": message.x509_svid_ttl,
        "jwt_svid_ttl": message.jwt_svid_ttl,
        "dns_names": list(message.dns_names),
        "hint": message.hint,
        "revision": message.revision_number,
        "created_at": created,
    }
