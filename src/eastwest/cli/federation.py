"""``eastwest federation``: trust in foreign trust domains, and how their bundle endpoints fare."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

from eastwest.cli.options import AsJson, DataDir, examples, print_json, run, utc

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Trust in foreign trust domains.")

TrustDomainName = Annotated[str, typer.Argument(metavar="TRUST-DOMAIN", help="Such as partner.example.")]


class Profile(enum.StrEnum):
    """How a bundle endpoint proves itself (SPIFFE Federation, section 5.2)."""

    WEB = "https_web"
    SPIFFE = "https_spiffe"


@app.command("list")
def list_(data: DataDir, *, as_json: AsJson = False) -> None:
    """List foreign trust domains: where their bundles come from, and what is wrong with that at present."""
    from eastwest.cli.federation_client import FederationClient

    async def work() -> list[dict[str, Any]]:
        async with FederationClient.connect(data) as federation:
            return [_shown(status) for status in await federation.statuses()]

    rows = run(work)
    if as_json:
        print_json({"trust_domains": rows})
        return
    from eastwest.cli.table import print_table

    print_table(
        ["TRUST DOMAIN", "MANAGED BY", "ENDPOINT", "SEQUENCE", "NEXT LOOK", "PROBLEM"],
        [
            [
                row["trust_domain"],
                row["managed_by"],
                row["endpoint"],
                "" if row["sequence"] is None else str(row["sequence"]),
                row["next_at"] or "",
                row["problem"],
            ]
            for row in rows
        ],
    )


@app.command()
def show(trust_domain: TrustDomainName, data: DataDir, *, as_json: AsJson = False) -> None:
    """Show one foreign trust domain: relationship, bundle, and how the last looks at its endpoint went."""
    from eastwest.cli.federation_client import FederationClient
    from eastwest.errors import NotFound

    async def work() -> dict[str, Any]:
        async with FederationClient.connect(data) as federation:
            for status in await federation.statuses():
                if status.trust_domain == trust_domain:
                    return _shown(status)
        raise NotFound(f"there is no federation with {trust_domain[:255]}", fix="see eastwest federation list")

    row = run(work)
    if as_json:
        print_json(row)
        return
    from eastwest.cli.table import EMPTY, printable

    for name, value in row.items():
        text = EMPTY if value in ("", None) else str(value)
        print(f"{name.replace('_', ' '):20} {printable(text)}")


@app.command(
    epilog=examples(
        "eastwest federation create partner.example --data data --endpoint https://spiffe.partner.example/",
        "eastwest federation create partner.example --data data --endpoint https://10.0.0.7:8443/"
        " --endpoint-spiffe-id spiffe://partner.example/spire/server --bundle partner.json",
    )
)
def create(
    trust_domain: TrustDomainName,
    data: DataDir,
    endpoint: Annotated[str, typer.Option(metavar="URL", help="Its bundle endpoint, https://...")],
    endpoint_spiffe_id: Annotated[
        str, typer.Option(metavar="ID", help="Profile https_spiffe: who the endpoint must prove to be. Else https_web.")
    ] = "",
    bundle: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its bundle to begin with, in SPIFFE format.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Begin to trust a foreign trust domain. For what should stay, write it in the estate instead."""
    from eastwest.api.spire.api.types import types_pb2
    from eastwest.cli.federation_client import FederationClient

    message = types_pb2.FederationRelationship(trust_domain=trust_domain, bundle_endpoint_url=endpoint)
    if endpoint_spiffe_id:
        message.https_spiffe.endpoint_spiffe_id = endpoint_spiffe_id
    else:
        message.https_web.SetInParent()
    if bundle is not None:
        message.trust_domain_bundle.CopyFrom(read_bundle(trust_domain, bundle))

    async def work() -> None:
        async with FederationClient.connect(data) as federation:
            await federation.create(message)

    run(work)
    if as_json:
        print_json({"trust_domain": trust_domain, "state": "created"})
    else:
        print(f"federates with {trust_domain}; see eastwest federation show {trust_domain}")


@app.command()
def update(
    trust_domain: TrustDomainName,
    data: DataDir,
    endpoint: Annotated[str, typer.Option(metavar="URL", help="Its bundle endpoint from now on, https://...")] = "",
    profile: Annotated[
        Profile | None, typer.Option(help="How the endpoint proves itself; https_spiffe needs the ID too.")
    ] = None,
    endpoint_spiffe_id: Annotated[
        str, typer.Option(metavar="ID", help="Profile https_spiffe: who the endpoint must prove to be.")
    ] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Change where and how the bundle is fetched; what is not given stays, and so does the bundle that is held."""
    from eastwest.api.spire.api.types import types_pb2
    from eastwest.cli.federation_client import FederationClient

    if not endpoint and not endpoint_spiffe_id and profile is None:
        raise typer.BadParameter("nothing is given that would change")
    if (profile is Profile.SPIFFE) > bool(endpoint_spiffe_id) or (profile is Profile.WEB and endpoint_spiffe_id):
        raise typer.BadParameter("https_spiffe needs --endpoint-spiffe-id, and https_web has none")
    message = types_pb2.FederationRelationship(trust_domain=trust_domain, bundle_endpoint_url=endpoint)
    if endpoint_spiffe_id:
        message.https_spiffe.endpoint_spiffe_id = endpoint_spiffe_id
    elif profile is Profile.WEB:
        message.https_web.SetInParent()
    changed = types_pb2.FederationRelationshipMask(
        bundle_endpoint_url=bool(endpoint), bundle_endpoint_profile=bool(endpoint_spiffe_id) or profile is not None
    )

    async def work() -> None:
        async with FederationClient.connect(data) as federation:
            await federation.update(message, changed)

    run(work)
    if as_json:
        print_json({"trust_domain": trust_domain, "state": "updated"})
    else:
        print(f"the federation with {trust_domain} is updated; see eastwest federation show {trust_domain}")


@app.command()
def delete(trust_domain: TrustDomainName, data: DataDir, *, as_json: AsJson = False) -> None:
    """End the trust: relationship and bundle go, and new connections from there are refused."""
    from eastwest.cli.federation_client import FederationClient

    async def work() -> None:
        async with FederationClient.connect(data) as federation:
            await federation.delete(trust_domain)

    run(work)
    if as_json:
        print_json({"trust_domain": trust_domain, "state": "deleted"})
    else:
        print(f"no longer federates with {trust_domain}")


@app.command()
def refresh(trust_domain: TrustDomainName, data: DataDir, *, as_json: AsJson = False) -> None:
    """Fetch the bundle now; fails with the reason when what comes is not acceptable, and the held one stays."""
    from eastwest.cli.federation_client import FederationClient

    async def work() -> int:
        async with FederationClient.connect(data) as federation:
            await federation.refresh(trust_domain)
            return (await federation.bundle(trust_domain)).sequence_number

    sequence = run(work)
    if as_json:
        print_json({"trust_domain": trust_domain, "sequence": sequence})
    else:
        print(f"the bundle of {trust_domain} is at sequence {sequence}")


def read_bundle(trust_domain: str, path: Path) -> Any:
    """A bundle file in SPIFFE format as SPIRE's message; raises with the file's name."""
    from eastwest.errors import InvalidInput
    from eastwest.registry.federation import MAX_DOCUMENT, BundleRefused, read_document
    from eastwest.rpc.spire import bundle_to_proto
    from eastwest.spiffe.id import TrustDomain

    domain = TrustDomain.parse(trust_domain)
    try:
        with path.open("rb") as file:
            document = file.read(MAX_DOCUMENT + 1)
    except OSError as error:
        raise InvalidInput(f"cannot be read: {error.strerror}", where=str(path)) from None
    try:
        return bundle_to_proto(read_document(domain, document))
    except BundleRefused as error:
        raise InvalidInput(error.message, where=str(path), fix="give a bundle in SPIFFE format (JSON)") from None


def _shown(status: Any) -> dict[str, Any]:
    return {
        "trust_domain": status.trust_domain,
        "managed_by": status.origin,
        "endpoint": status.endpoint_url,
        "profile": status.profile,
        "endpoint_spiffe_id": status.endpoint_spiffe_id,
        "sequence": status.sequence if status.has_bundle else None,
        "x509_authorities": status.x509_authorities,
        "jwt_authorities": status.jwt_authorities,
        "refresh_hint": status.refresh_hint,
        "tried_at": utc(status.tried_at),
        "succeeded_at": utc(status.succeeded_at),
        "next_at": utc(status.next_at),
        "failures": status.failures,
        "problem": status.problem,
    }
