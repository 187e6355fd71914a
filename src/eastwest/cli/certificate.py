"""``eastwest certificate``: long-lived certificates, which can be revoked; and lint of any certificate."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

from eastwest.cli.options import AsJson, DataDir, examples, print_json, run, utc
from eastwest.errors import InvalidInput, NotFound

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Long-lived certificates: list, show and revoke them; lint any."
)

PAGE = 500
MAX_FILE_BYTES = 1024 * 1024

Which = Annotated[str, typer.Argument(metavar="SERIAL|ID", help="A serial number in hex, or a SPIFFE ID.")]


class Why(enum.StrEnum):
    """Why a certificate is revoked."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "key-compromise"
    AFFILIATION_CHANGED = "affiliation-changed"
    SUPERSEDED = "superseded"
    CESSATION = "cessation-of-operation"
    PRIVILEGE_WITHDRAWN = "privilege-withdrawn"


@app.command("list")
def list_certificates(
    data: DataDir,
    spiffe_id: Annotated[str, typer.Option("--spiffe-id", metavar="ID", help="Only those of this identity.")] = "",
    revoked: Annotated[bool, typer.Option("--revoked", help="Only revoked ones.")] = False,
    *,
    as_json: AsJson = False,
) -> None:
    """Show every certificate that can be revoked and has not ended, the first to end first."""
    found = [_plain(each) for each in run(lambda: _list(data, spiffe_id=spiffe_id, only_revoked=revoked))]
    if as_json:
        print_json({"certificates": found})
        return
    from eastwest.cli.table import print_table

    rows = [[c["serial"], c["spiffe_id"], c["profile"], c["not_after"], _state(c)] for c in found]
    print_table(["SERIAL", "SPIFFE ID", "PROFILE", "UNTIL", "STATE"], rows)


@app.command()
def show(
    data: DataDir,
    which: Which,
    *,
    pem: Annotated[bool, typer.Option("--pem", help="Print the certificates themselves.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one certificate, or those of an identity: under what it was issued, where its CRL is, its revocation."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    found = run(lambda: _list(data, **_by(which)))
    if not found:
        raise NotFound(
            f"nothing that can be revoked is known as {which}",
            fix="short-lived certificates are in the log only: eastwest log show --kind x509_svid.issued",
        )
    if pem:
        for each in found:
            print(x509.load_der_x509_certificate(each.certificate).public_bytes(Encoding.PEM).decode(), end="")
        return
    plain = [_plain(each) for each in found]
    if as_json:
        print_json({"certificates": plain})
        return
    for number, each in enumerate(plain):
        if number:
            print()
        for name, value in each.items():
            print(f"{name + ':':16}{value or '-'}")


@app.command(
    epilog=examples(
        "eastwest certificate revoke 5f3c9a --data data --reason key-compromise",
        "eastwest certificate revoke spiffe://shop.example/device/till-7 --data data",
    )
)
def revoke(
    data: DataDir,
    which: Annotated[
        list[str], typer.Argument(metavar="SERIAL...|ID", help="Serial numbers in hex, or one SPIFFE ID.")
    ],
    reason: Annotated[Why, typer.Option(help="Why; it stands in the CRL.")] = Why.UNSPECIFIED,
    *,
    as_json: AsJson = False,
) -> None:
    """Revoke certificates for good: recorded in the log, then published as CRL and by OCSP at once.

    With a SPIFFE ID, every certificate of that identity. Revocation does not stop a device from getting a new one: that
    is up to its entry and its node.
    """
    from eastwest.api.eastwest.certificates.v1 import certificates_pb2 as pb

    identities = [each for each in which if each.startswith("spiffe://")]
    if identities and len(which) > 1:
        raise InvalidInput("name serial numbers, or one SPIFFE ID")
    request = pb.RevokeCertificatesRequest(
        serials=[] if identities else which, spiffe_id=identities[0] if identities else "", reason=reason.value
    )
    reply = run(lambda: _call(data, "RevokeCertificates", request))
    done = [_plain(each) for each in reply.certificates]
    if as_json:
        print_json({"certificates": done})
        return
    for each in done:
        print(f"revoked {each['serial']} of {each['spiffe_id']} ({each['reason']}, {each['revoked_at']})")
        print(f"  in {each['crl_url']}")
    for entry, node in sorted({(each["entry_id"], each["node"]) for each in done if each["entry_id"]}):
        print(
            f"note: entry {entry} still lets {node or 'its nodes'} have a new certificate;"
            f" to end that, delete the entry or ban the node"
        )


@app.command()
def lint(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A certificate or chain, PEM or DER, leaf first.")],
    *,
    ca: Annotated[bool, typer.Option("--ca", help="Judge the first certificate as a CA.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a certificate against the rules for X.509-SVIDs; exit 1 when it breaks any. Needs no server."""
    from cryptography import x509

    from eastwest.pki.lint import Expectation, Role, lint_certificate

    leaf, *above = _read(file)
    expected = Expectation(above=tuple(x509.load_der_x509_certificate(der) for der in above))
    findings = list(lint_certificate(leaf, Role.CA if ca else Role.LEAF, expected))
    if as_json:
        print_json({"ok": not findings, "findings": [{"rule": f.rule, "message": f.message} for f in findings]})
    else:
        for finding in findings:
            print(finding)
        if not findings:
            print("nothing to find fault with")
    if findings:
        raise typer.Exit(1)


async def _list(data: Path, **wanted: Any) -> list[Any]:
    from eastwest.api.eastwest.certificates.v1 import certificates_pb2 as pb

    found: list[Any] = []
    token = ""
    while True:
        request = pb.ListCertificatesRequest(page_size=PAGE, page_token=token, **wanted)
        page = await _call(data, "ListCertificates", request)
        found += page.certificates
        token = page.next_page_token
        if not token:
            return found


async def _call(data: Path, name: str, request: Any) -> Any:
    from eastwest.api.eastwest.certificates.v1 import certificates_pb2 as pb
    from eastwest.cli.admin import admin_channel
    from eastwest.rpc.client import method

    channel = admin_channel(data)
    try:
        service = pb.DESCRIPTOR.services_by_name["Certificates"]
        return await channel.unary(method(service, name), request, deadline=120)
    finally:
        channel.close()


def _by(which: str) -> dict[str, Any]:
    return {"spiffe_id": which} if which.startswith("spiffe://") else {"serial": which}


def _plain(certificate: Any) -> dict[str, Any]:
    return {
        "serial": certificate.serial,
        "spiffe_id": certificate.spiffe_id,
        "profile": certificate.profile,
        "not_before": utc(certificate.not_before),
        "not_after": utc(certificate.not_after),
        "issuer_key_id": certificate.issuer_key_id,
        "crl_url": certificate.crl_url,
        "node": certificate.node,
        "entry_id": certificate.entry_id,
        "revoked_at": utc(certificate.revoked_at),
        "reason": certificate.reason,
    }


def _state(certificate: dict[str, Any]) -> str:
    if not certificate["revoked_at"]:
        return "valid"
    return f"revoked {certificate['revoked_at']} ({certificate['reason']})"


def _read(file: Path) -> list[bytes]:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES)
    except OSError as error:
        raise InvalidInput(f"cannot be read: {error.strerror}", where=str(file)) from None
    if b"-----BEGIN" not in content:
        return [content]
    try:
        return [each.public_bytes(Encoding.DER) for each in x509.load_pem_x509_certificates(content)]
    except ValueError:
        raise InvalidInput("holds no certificate", where=str(file), fix="give a certificate in PEM or DER") from None
