"""``eastwest ca``: the certificate authority: what signs, what comes next, and what an offline root has to sign."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from eastwest.cli.options import AsJson, DataDir, examples, print_json, run

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="The certificate authority: show it, rotate it, sign below an offline root.",
)

Id = Annotated[str, typer.Argument(metavar="ID", help="The authority's id, or the beginning of it.")]
Force = Annotated[bool, typer.Option("--force", help="Although not all nodes have confirmed; recorded in the log.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Where to write; standard output if not given.")
]
RootFile = Annotated[Path, typer.Option("--root", exists=True, dir_okay=False, help="The root's certificate, PEM.")]
RootKey = Annotated[Path, typer.Option("--root-key", exists=True, dir_okay=False, help="The root's key, PEM.")]
PassphraseFile = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, metavar="FILE", help="Its first line opens the key.")
]


OfTrustDomain = Annotated[
    str, typer.Option("--trust-domain", metavar="TD", help="For which trust domain, where the root does not say.")
]


@app.command(epilog=examples("eastwest ca show --data data", "eastwest ca show 2142a57c --data data > root.pem"))
def show(
    data: DataDir,
    authority: Annotated[str, typer.Argument(metavar="ID", help="One authority: its certificate, as PEM.")] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Show roots, issuing CAs and JWT keys: which sign, which come next, which are on their way out."""
    from eastwest.cli.authority import AuthorityClient, find_item
    from eastwest.cli.ca_table import print_state, state_json
    from eastwest.cli.pem import authority_pem

    async def work() -> None:
        async with AuthorityClient.connect(data) as ca:
            state = await ca.state()
        if authority:
            print(authority_pem(find_item(state, authority)), end="")
        elif as_json:
            print_json(state_json(state))
        else:
            print_state(state)

    run(work)


@app.command()
def status(
    data: DataDir,
    wait: Annotated[
        float, typer.Option(min=0, max=604800, metavar="SECONDS", help="Wait until nobody is behind, so long at most.")
    ] = 0.0,
    *,
    as_json: AsJson = False,
) -> None:
    """Show which nodes have confirmed the newest bundle, and which still hold what stems from a tainted authority.

    Exit 1 while anybody is behind, those outside the trust domain included; with --wait, at the end of that time.
    """
    from eastwest.cli.authority import AuthorityClient
    from eastwest.cli.ca_table import is_confirmed, print_status, status_json
    from eastwest.clock import SystemClock

    async def work() -> bool:
        async with AuthorityClient.connect(data) as ca:
            state = await ca.confirmed_state(wait, SystemClock(), is_confirmed)
        if as_json:
            print_json(status_json(state))
        else:
            print_status(state)
        return is_confirmed(state)

    if not run(work):
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "eastwest ca prepare --data data", "eastwest ca prepare --data data --kind issuing --environment prod"
    )
)
def prepare(
    data: DataDir,
    *,
    kind: Annotated[str, typer.Option(help="x509: a root with its issuing CAs; issuing: one of these; jwt.")] = "x509",
    environment: Annotated[str, typer.Option(metavar="NAME", help="Whose issuing CA; the default one if empty.")] = "",
    post_quantum: Annotated[
        bool, typer.Option("--post-quantum", help="Of the hierarchy for ML-DSA-65 keys, not of the classical one.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a successor and add it to the trust bundle; nothing is signed with it yet."""
    from eastwest.cli.authority import AuthorityClient

    async def work() -> None:
        async with AuthorityClient.connect(data) as ca:
            _tell(await ca.prepare(kind, environment, post_quantum=post_quantum), as_json=as_json)

    run(work)


@app.command(epilog=examples("eastwest ca activate 2101e193 --data data"))
def activate(data: DataDir, authority: Id, *, force: Force = False, as_json: AsJson = False) -> None:
    """Sign with what is prepared from now on; refused until every live node has confirmed the bundle that has it."""
    _change(data, "Activate", authority, force=force, as_json=as_json)


@app.command()
def taint(data: DataDir, authority: Id, *, as_json: AsJson = False) -> None:
    """Have every node replace what stems from an old authority; it stays trusted until it is revoked."""
    _change(data, "Taint", authority, as_json=as_json)


@app.command()
def revoke(data: DataDir, authority: Id, *, force: Force = False, as_json: AsJson = False) -> None:
    """Take a tainted authority out of the bundle; refused while a node holds what stems from it."""
    _change(data, "Revoke", authority, force=force, gone="revoked", as_json=as_json)


@app.command()
def discard(data: DataDir, authority: Id, *, as_json: AsJson = False) -> None:
    """Take back what was prepared and never used."""
    _change(data, "Discard", authority, gone="discarded", as_json=as_json)


@app.command("export-csr")
def export_csr(
    data: DataDir,
    *,
    environment: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="For this environment; may be given again.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="For every environment and the default CA, anew.")] = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Write requests for the issuing CAs that an offline root has to certify. Works without a running server."""
    from eastwest.cli.authority import export_requests
    from eastwest.cli.pem import request_pem
    from eastwest.errors import FailedPrecondition

    found = run(lambda: export_requests(data, environment or [], everything=everything))
    if not found:
        raise FailedPrecondition("every environment has its issuing CA", fix="--all makes requests for new ones")
    requests = [{"environment": name, "csr": request_pem(csr)} for name, csr in found]
    _deliver(out, "".join(each["csr"] for each in requests), {"requests": requests}, as_json=as_json)


@app.command("import")
def import_command(
    data: DataDir,
    files: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, metavar="FILE...", help="Certificates, PEM.")
    ],
    *,
    root: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="A root that is not in the bundle yet, PEM.")
    ] = None,
    trust_only: Annotated[
        bool, typer.Option(help="The files are roots to trust; nothing is issued below them.")
    ] = False,
    cross: Annotated[bool, typer.Option(help="The files are certificates of another root for our root's key.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take certificates for our requests, roots to trust, or cross-signed certificates. Needs no running server."""
    from eastwest.api.eastwest.authority.v1 import authority_pb2 as pb
    from eastwest.cli.authority import import_files
    from eastwest.cli.ca_table import KINDS, item_json
    from eastwest.cli.pem import read_certificates

    request = pb.ImportRequest(
        certificates=[der for file in files for der in read_certificates(file)],
        roots=[der for file in root or [] for der in read_certificates(file)],
        trust_only=trust_only,
        cross=cross,
    )
    reply = run(lambda: import_files(data, request))
    if as_json:
        print_json({"bundle_sequence": reply.bundle_sequence, "authorities": [item_json(item) for item in reply.items]})
        return
    for item in reply.items:
        print(f"{KINDS[item.kind]} {item.id}: {item.stage}, bundle {reply.bundle_sequence}")


@app.command("reencrypt-keys")
def reencrypt_keys_command(
    data: DataDir,
    former_passphrase_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, metavar="FILE", help="The passphrase until now.")
    ] = None,
    former_key_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, metavar="FILE", help="The key file until now.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Encrypt the stopped server's keys as key_stores.disk of server.toml says now; in clear until now if not told."""
    from eastwest.plugins.disk_keys import DiskKeyStore, protection_from
    from eastwest.server.ca.reencrypt import reencrypt_keys
    from eastwest.server.config import ServerConfig

    former = DiskKeyStore.Options(
        passphrase_file=str(former_passphrase_file or ""), key_file=str(former_key_file or "")
    )
    changed = reencrypt_keys(ServerConfig.load(data), protection_from(former))
    if as_json:
        print_json({"keys": list(changed)})
        return
    print(
        f"{len(changed)} keys are kept anew: {', '.join(changed)}" if changed else "every key is kept as it should be"
    )


@app.command("init-root")
def init_root(
    trust_domain: Annotated[str, typer.Option(metavar="TD", help="The trust domain's name.")],
    root: Annotated[Path, typer.Option("--root", help="Where to write the certificate, PEM.")],
    root_key: Annotated[Path, typer.Option("--root-key", help="Where to write the key, PEM, encrypted.")],
    passphrase_file: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="Its first line encrypts the key.")
    ],
    *,
    days: Annotated[int, typer.Option(min=1, max=36500, help="How long the root lives.")] = 3650,
    key_type: Annotated[str, typer.Option(help="ec-p256, ec-p384, ed25519 or ml-dsa-65.")] = "ec-p256",
    as_json: AsJson = False,
) -> None:
    """Make a root on a machine without a network: its key stays there. Needs no server."""
    from eastwest.cli.offline_root import make_root

    made = make_root(trust_domain, root, root_key, passphrase_file, days, key_type)
    if as_json:
        print_json({"id": made, "root": str(root), "root_key": str(root_key)})
        return
    print(f"root {made} in {root}: give it to `eastwest server init --offline-root`")


@app.command("sign-csr")
def sign_csr(
    request: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="CSR", help="Requests, PEM.")],
    root: RootFile,
    root_key: RootKey,
    *,
    passphrase_file: PassphraseFile = None,
    days: Annotated[int, typer.Option(min=1, max=36500, help="How long the issuing CAs live.")] = 365,
    trust_domain: OfTrustDomain = "",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Certify issuing CAs below a root, where its key is. Needs no server."""
    from eastwest.cli.offline_root import sign_requests

    certificates = sign_requests(request, root, root_key, passphrase_file, days, trust_domain)
    _deliver_certificates(out, certificates, as_json=as_json)


@app.command("cross-sign")
def cross_sign(
    certificate: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, metavar="ROOT", help="Another root, PEM.")
    ],
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", envvar="EASTWEST_DATA", readable=False, help="Sign with this server's root."
        ),
    ] = None,
    root: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Or with this root, PEM.")] = None,
    root_key: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Its key, PEM.")] = None,
    passphrase_file: PassphraseFile = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long it lives; never longer than either root.")] = 365,
    unconstrained: Annotated[
        bool, typer.Option(help="Not limited to names of the trust domain, for those who trust it with any.")
    ] = False,
    trust_domain: OfTrustDomain = "",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Certify another root's key, so that those who trust our root trust what stems from the other."""
    from eastwest.cli.authority import AuthorityClient
    from eastwest.cli.offline_root import cross_sign_offline
    from eastwest.cli.pem import read_root
    from eastwest.errors import InvalidInput

    other = read_root(certificate)
    if root is not None and root_key is not None:
        crossed = cross_sign_offline(
            other,
            root,
            root_key,
            passphrase_file,
            days,
            constrained=not unconstrained,
            trust_domain=trust_domain,
        )
    elif data is not None and root is None and root_key is None:

        async def work() -> bytes:
            async with AuthorityClient.connect(data) as ca:
                return await ca.cross_sign(other, days * 86_400, constrained=not unconstrained)

        crossed = run(work)
    else:
        raise InvalidInput("who signs is not clear", fix="give --data, or --root and --root-key together")
    _deliver_certificates(out, [crossed], as_json=as_json)


def _deliver_certificates(out: Path | None, certificates: Sequence[bytes], *, as_json: bool) -> None:
    from eastwest.cli.pem import certificates_pem

    each = [certificates_pem([der]) for der in certificates]
    _deliver(out, "".join(each), {"certificates": each}, as_json=as_json)


def _deliver(out: Path | None, pem: str, told: dict[str, Any], *, as_json: bool) -> None:
    """Write PEM to ``out``; on standard output stands it, or with ``as_json`` what is told of it."""
    from eastwest.cli.pem import write_text

    if out is not None or not as_json:
        write_text(out, pem)
    if as_json:
        print_json(told | {"file": str(out) if out is not None else None})


def _change(data: Path, verb: str, authority: str, *, force: bool = False, gone: str = "", as_json: bool) -> None:
    from eastwest.cli.authority import AuthorityClient

    async def work() -> None:
        async with AuthorityClient.connect(data) as ca:
            _tell(await ca.change(verb, authority, force=force), gone, as_json=as_json)

    run(work)


def _tell(change: object, gone: str = "", *, as_json: bool) -> None:
    from eastwest.api.eastwest.authority.v1 import authority_pb2 as pb
    from eastwest.cli.ca_table import item_json, print_change

    assert isinstance(change, pb.Change)
    if as_json:
        authority = item_json(change.item)
        if gone:
            authority["stage"] = gone
        print_json({"bundle_sequence": change.bundle_sequence, "authority": authority})
    else:
        print_change(change, gone)
