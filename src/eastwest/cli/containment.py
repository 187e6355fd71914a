"""``eastwest contain``, ``release`` and ``containment``: one identity is cut off everywhere, and let in again."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from eastwest.cli.options import NOBODY_TO_ASK, AsJson, DataDir, Yes, counted, examples, print_json, utc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from eastwest.rpc.client import Channel

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Containments: who is cut off, by whom and why, and how far."
)
EXAMPLES = {
    "contain": examples(
        'eastwest contain spiffe://saas.example/prod/messaging/notification --data data --reason "ticket 4711"',
        'eastwest contain unix:uid:1001 --data data --reason "key leaked" --yes --timeout 5',
        'eastwest contain domain:messaging --data data --reason "ticket 4711" --dry-run',
    ),
    "release": examples(
        'eastwest release 1f2e3d4c5b6a7988 --data data --reason "rebuilt from scratch"',
        'eastwest release spiffe://saas.example/prod/messaging/notification --data data --reason "rebuilt" --yes',
    ),
}
Reason = Annotated[str, typer.Option("--reason", help="Why; it is recorded in the log.")]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", min=0, max=600, metavar="SECONDS", help="To wait for all points; then it says who is behind."
    ),
]


def contain(
    selector: Annotated[
        str,
        typer.Argument(
            metavar="ID|SELECTOR",
            help="A SPIFFE ID, or domain:NAME, environment:NAME, service:NAME, node:SPIFFE-ID, unix:uid:1001, ...",
        ),
    ],
    data: DataDir,
    reason: Reason,
    timeout: Timeout = 30.0,
    *,
    yes: Yes = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show who is meant, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Cut identities off: nothing is issued to them, every service refuses them, their connections end.

    Holds until it is released. Exits with 1 where an enforcement point has not acknowledged it.
    """
    if not (yes or dry_run or sys.stdin.isatty()):
        _usage(f"{NOBODY_TO_ASK}, or --dry-run to see who is meant")
    began = time.monotonic()
    with Api(data) as api:
        meant = api.ask("ResolveContainment", selector=selector)
        if dry_run and as_json:
            print_json(meant)
        elif not as_json:
            _show_meant(meant)
        if meant["refused"]:
            from eastwest.errors import InvalidInput

            raise InvalidInput(meant["refused"])
        if dry_run:
            return
        if not (yes or typer.confirm("Cut them off now?", err=True)):
            print("nothing was done", file=sys.stderr)
            raise typer.Exit(1)
        if not yes:
            began = time.monotonic()
        names = [one["spiffe_id"] for one in meant["identities"]]
        made = api.ask("StartContainment", spiffe_ids=names, selector=selector, reason=reason)
        reached = api.follow(timeout, quiet=as_json)
    for one in meant["identities"]:
        if not (one["registered"] or one["foreign"]):  # said at the end too, where somebody in a hurry looks
            print(f"warning: nobody is registered as {one['spiffe_id']}: is it spelt right?", file=sys.stderr)
    _finish(made, reached, time.monotonic() - began, as_json=as_json, plaintext_at=meant["plaintext_at"])


def release(
    containment: Annotated[
        str, typer.Argument(metavar="CONTAINMENT|ID", help="The containment's id, or the one SPIFFE ID that it holds.")
    ],
    data: DataDir,
    reason: Reason,
    timeout: Timeout = 30.0,
    *,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Let in again all that one containment holds. Approvals and connections do not come back by themselves."""
    if not (yes or sys.stdin.isatty()):
        _usage(NOBODY_TO_ASK)
    by_id = {"spiffe_id": containment} if containment.startswith("spiffe://") else {"id": containment}
    with Api(data) as api:
        if not as_json:
            held = _find(api.ask("ListContainments")["containments"], containment)
            for name in held:
                print(name)
        if not (yes or typer.confirm("Let them in again?", err=True)):
            print("nothing was done", file=sys.stderr)
            raise typer.Exit(1)
        began = time.monotonic()
        made = api.ask("EndContainment", reason=reason, **by_id)
        reached = api.follow(timeout, quiet=as_json)
    _finish(made, reached, time.monotonic() - began, as_json=as_json)


@app.command(
    "list",
    epilog=examples("eastwest containment list --data data", "eastwest containment list --data data --ended --json"),
)
def list_(
    data: DataDir,
    *,
    ended: Annotated[bool, typer.Option("--ended", help="Also those that have ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """List containments. Exits with 1 while an enforcement point does not enforce what holds now."""
    with Api(data) as api:
        report = api.ask("ListContainments", ended=ended)
    if as_json:
        print_json(report | {"containments": [_shown(one) for one in report["containments"]]})
    else:
        from eastwest.cli.table import print_table

        heads = ["ID", "STATE", "SINCE", "BY", "IDENTITIES", "REASON"]
        rows = [
            [
                one["id"],
                "contained" if one["active"] else "released",
                utc(one["started_at"]) or "",
                one["started_by"],
                ", ".join(one["spiffe_ids"][:3])
                + (f" and {len(one['spiffe_ids']) - 3} more" * (len(one["spiffe_ids"]) > 3)),
                one["reason"],
            ]
            for one in report["containments"]
        ]
        if rows:
            print_table(heads, rows)
        else:
            print("nobody is contained" + ("" if ended else " (--ended shows who was)"))
        if any(one["active"] for one in report["containments"]):
            _show_reach(report)
    if report["behind"] and any(one["active"] for one in report["containments"]):
        raise typer.Exit(1)


@app.command(epilog=examples("eastwest containment show 1f2e3d4c5b6a7988 --data data"))
def show(
    containment: Annotated[str, typer.Argument(metavar="CONTAINMENT", help="As eastwest containment list shows it.")],
    data: DataDir,
    *,
    as_json: AsJson = False,
) -> None:
    """Show one containment: whom it holds, who did it and why, its evidence, and who released it."""
    from eastwest.cli.table import EMPTY, printable
    from eastwest.errors import NotFound

    with Api(data) as api:
        known = api.ask("ListContainments", ended=True)["containments"]
    found = next((one for one in known if one["id"] == containment), None)
    if found is None:
        raise NotFound(f"there is no containment {containment[:64]!r}", fix="see eastwest containment list --ended")
    row = _shown(found) | {"evidence_file": str(data / "server" / "containment" / f"{containment}.json")}
    if as_json:
        print_json(row)
        return
    for name, value in row.items():
        text = "\n".join(value) if isinstance(value, list) else str(value if value is not None else "")
        for line in (text or EMPTY).splitlines():
            print(f"{name.replace('_', ' '):16} {printable(line)}")
            name = ""  # noqa: PLW2901 - only the first line of several is named


class Api:
    """The service on the admin socket, one loop for several calls: each second counts here."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._runner = asyncio.Runner()
        self._channel: Channel | None = None

    def __enter__(self) -> Self:
        from eastwest.cli.admin import admin_channel

        async def connect() -> Channel:
            return admin_channel(self._data)

        self._runner.__enter__()
        self._channel = self._runner.run(connect())
        return self

    def __exit__(self, *exception: object) -> None:
        async def close() -> None:
            if self._channel is not None:
                self._channel.close()

        self._runner.run(close())
        self._runner.close()

    def ask(self, name: str, **fields: Any) -> dict[str, Any]:
        """One call."""
        import msgspec
        from google.protobuf.message_factory import GetMessageClass

        from eastwest.rpc.client import method

        service = _service()
        request = GetMessageClass(service.methods_by_name[name].input_type)(**fields)
        assert self._channel is not None
        reply = self._runner.run(self._channel.unary(method(service, name), request))
        return msgspec.json.decode(reply.report, type=dict[str, Any])

    def follow(self, seconds: float, *, quiet: bool) -> dict[str, Any]:
        """Tell on standard error how far it comes, until nobody is waited for or the time is over; the last report."""
        return self._runner.run(self._follow(seconds, _progress(quiet=quiet)))

    async def _follow(self, seconds: float, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        import msgspec

        from eastwest.api.eastwest.containment.v1 import containment_pb2
        from eastwest.rpc.client import method

        assert self._channel is not None
        report: dict[str, Any] = {}
        try:
            async with asyncio.timeout(max(seconds, 0.01)):
                async with self._channel.stream(method(_service(), "WatchContainment")) as stream:
                    await stream.send_message(containment_pb2.WatchContainmentRequest(), end=True)
                    while (message := await stream.recv_message()) is not None:
                        report = msgspec.json.decode(message.report, type=dict[str, Any])
                        tell(report)
                    await stream.recv_trailing_metadata()
        except TimeoutError:
            pass
        return report


def _service() -> Any:
    from eastwest.api.eastwest.containment.v1 import containment_pb2

    return containment_pb2.DESCRIPTOR.services_by_name["Containment"]


def _progress(*, quiet: bool) -> Callable[[dict[str, Any]], None]:
    """Writes one line that grows; on no terminal nothing but the end is worth a line."""

    def tell(report: dict[str, Any]) -> None:
        if not quiet and sys.stderr.isatty():
            print(f"\r{report['enforced']} of {report['points']} points", end="", file=sys.stderr, flush=True)
            if not report["waiting"]:
                print(file=sys.stderr)

    return tell


def _finish(
    made: dict[str, Any],
    reached: dict[str, Any],
    seconds: float,
    *,
    as_json: bool,
    plaintext_at: list[str] | None = None,
) -> None:
    report = reached or {
        name: made[name] for name in ("generation", "points", "enforced", "behind", "cannot_close", "closed")
    }
    if as_json:
        print_json(_shown(made) | report | {"seconds": round(seconds, 3), "plaintext_at": plaintext_at or []})
    else:
        did = "contained" if made["active"] else "released"
        print(f"{counted(len(made['spiffe_ids']), 'identity', 'identities')} {did}: containment {made['id']}")
        _show_reach(report, seconds)
        if made["active"]:
            print(f"evidence: sha256 {made['evidence']}")
            if made["jwt_svids_live_seconds"]:
                hours = made["jwt_svids_live_seconds"] / 3600
                print(
                    f"JWT-SVIDs that are out live on, for {hours:g} h at most, where others verify them by themselves"
                )
            if made["foreign"]:
                print(
                    f"{', '.join(made['foreign'][:3])}: of a foreign trust domain, refused here; "
                    "what it has and gets elsewhere, certificates and JWT-SVIDs, its own trust domain must end"
                )
            if plaintext_at:
                print(f"plaintext proves nobody's name, and these take it: {', '.join(plaintext_at)}")
    if report["behind"]:
        raise typer.Exit(1)


def _show_reach(report: dict[str, Any], seconds: float | None = None) -> None:
    from eastwest.cli.table import print_table

    took = f" after {seconds:.2f} s" if seconds is not None else ""
    print(f"{report['enforced']} of {counted(report['points'], 'enforcement point')} enforce it{took}")
    closed = sum(report["closed"].values())
    if closed:
        print(f"{counted(closed, 'connection')} closed")
    if report["cannot_close"]:
        told = ", ".join(report["cannot_close"][:5])
        print(
            f"connections cannot be closed on {counted(len(report['cannot_close']), 'node')} ({told}): they end by age"
        )
    if report["behind"]:
        rows = [[one["name"], one["agent"], one["state"], one["error"]] for one in report["behind"]]
        print_table(["NOT YET", "AGENT", "STATE", "ERROR"], rows)


def _show_meant(meant: dict[str, Any]) -> None:
    from eastwest.cli.table import print_table

    heads = ["IDENTITY", "OWNER", "DOMAIN", "SERVES", "NODES", "NOTE"]
    rows = [
        [
            one["spiffe_id"],
            one["owner"],
            one["domain"],
            ", ".join(one["serves"]),
            str(one["nodes"]),
            "contained already"
            if one["contained"]
            else ""
            if one["registered"]
            else "of a foreign trust domain"
            if one["foreign"]
            else "not registered",
        ]
        for one in meant["identities"]
    ]
    print_table(heads, rows)
    print(f"{counted(len(rows), 'identity', 'identities')}, to be refused at {counted(meant['points'], 'point')}")


def _shown(one: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": one["id"],
        "state": "contained" if one["active"] else "released",
        "spiffe_ids": one["spiffe_ids"],
        "selector": one["selector"],
        "reason": one["reason"],
        "started_by": one["started_by"],
        "started_at": utc(one["started_at"]),
        "evidence_sha256": one["evidence"],
        "ended_by": one["ended_by"],
        "ended_at": utc(one["ended_at"]),
        "end_reason": one["end_reason"],
        "jwt_svids_live_seconds": one["jwt_svids_live_seconds"],
    }


def _find(known: list[dict[str, Any]], wanted: str) -> list[str]:
    return next((one["spiffe_ids"] for one in known if wanted == one["id"] or [wanted] == one["spiffe_ids"]), [])


def _usage(message: str) -> None:
    raise typer.BadParameter(message, param_hint="--yes")
