"""``eastwest bundle``: what others need in order to trust this trust domain."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from eastwest.cli.options import DataDir, run

app = typer.Typer(no_args_is_help=True, help="The trust bundle.")


@app.callback()
def _bundle() -> None:
    """Keeps the noun when it has only one verb."""


class Format(enum.StrEnum):
    """How the bundle is printed."""

    PEM = "pem"
    SPIFFE = "spiffe"


@app.command()
def show(
    data: DataDir,
    form: Annotated[Format, typer.Option("--format", help="pem: root certificates; spiffe: a JWK set.")] = Format.PEM,
) -> None:
    """Print the trust bundle; give it to agents with --bundle."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from eastwest.cli.admin import AdminClient
    from eastwest.pki.jwks import export_bundle
    from eastwest.rpc.spire import bundle_from_proto

    async def work() -> None:
        async with AdminClient.connect(data) as admin:
            bundle = bundle_from_proto(await admin.bundle())
        if form is Format.SPIFFE:
            print(export_bundle(bundle).decode())
            return
        for authority in bundle.x509_authorities:
            print(x509.load_der_x509_certificate(authority.der).public_bytes(Encoding.PEM).decode(), end="")

    run(work)
