"""``eastwest bundle``: what others need in order to trust this trust domain, and what we hold of others."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from eastwest.cli.options import AsJson, DataDir, print_json, run

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Trust bundles: our own, and those of foreign trust domains."
)


class Format(enum.StrEnum):
    """How the bundle is printed."""

    PEM = "pem"
    SPIFFE = "spiffe"


class Entries(enum.StrEnum):
    """What becomes of entries that federate with a trust domain whose bundle goes."""

    RESTRICT = "restrict"
    DELETE = "delete"
    DISSOCIATE = "dissociate"


@app.command()
def show(
    data: DataDir,
    form: Annotated[Format, typer.Option("--format", help="pem: root certificates; spiffe: a JWK set.")] = Format.PEM,
    trust_domain: Annotated[str, typer.Option(metavar="NAME", help="A foreign trust domain's; else our own.")] = "",
) -> None:
    """Print the trust bundle; give it to agents with --bundle, or to whoever federates with us."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from eastwest.cli.admin import AdminClient
    from eastwest.cli.federation_client import FederationClient
    from eastwest.pki.jwks import export_bundle
    from eastwest.rpc.spire import bundle_from_proto

    async def work() -> None:
        if trust_domain:
            async with FederationClient.connect(data) as federation:
                bundle = bundle_from_proto(await federation.bundle(trust_domain))
        else:
            async with AdminClient.connect(data) as admin:
                bundle = bundle_from_proto(await admin.bundle())
        if form is Format.SPIFFE:
            print(export_bundle(bundle).decode())
            return
        for authority in bundle.x509_authorities:
            print(x509.load_der_x509_certificate(authority.der).public_bytes(Encoding.PEM).decode(), end="")

    run(work)


@app.command("set")
def set_(
    trust_domain: Annotated[str, typer.Argument(metavar="TRUST-DOMAIN", help="The foreign trust domain.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Its bundle in SPIFFE format.")],
    data: DataDir,
    *,
    as_json: AsJson = False,
) -> None:
    """Put a foreign bundle in force by hand, whatever sequence is held."""
    from eastwest.cli.federation import read_bundle
    from eastwest.cli.federation_client import FederationClient

    bundle = read_bundle(trust_domain, file)

    async def work() -> None:
        async with FederationClient.connect(data) as federation:
            await federation.set_bundle(bundle)

    run(work)
    if as_json:
        print_json({"trust_domain": trust_domain, "state": "set"})
    else:
        print(f"the bundle of {trust_domain} is set")


@app.command()
def delete(
    trust_domain: Annotated[str, typer.Argument(metavar="TRUST-DOMAIN", help="The foreign trust domain.")],
    data: DataDir,
    entries: Annotated[
        Entries, typer.Option(help="What becomes of entries that federate with it; restrict: refuse while any do.")
    ] = Entries.RESTRICT,
    *,
    as_json: AsJson = False,
) -> None:
    """Forget a foreign bundle: new connections from there are refused. An endpoint may bring it back."""
    from eastwest.cli.federation_client import FederationClient

    async def work() -> None:
        async with FederationClient.connect(data) as federation:
            await federation.delete_bundle(trust_domain, entries.value)

    run(work)
    if as_json:
        print_json({"trust_domain": trust_domain, "state": "forgotten"})
    else:
        print(f"the bundle of {trust_domain} is forgotten")
