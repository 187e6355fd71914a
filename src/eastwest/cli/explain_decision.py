"""``eastwest explain``: why a call was allowed or refused, and what would unlock it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eastwest.cli.options import AsJson, examples, print_json, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from eastwest.policy.explain import Asked

EXIT_REFUSED = 1
EXAMPLES = {
    "explain": examples(
        "eastwest explain 98087af3-a847-4b13-b662-6fc46dcb1b2e --data data",
        "eastwest explain --caller spiffe://saas.example/prod/commerce/storefront "
        "--operation billing:invoices:list --tenant initech estate",
        "eastwest explain --caller ID --operation OP --step-up --data data --json",
    )
}


def explain(
    context: typer.Context,
    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="REFERENCE|DIR", help="The reference that a refused caller was given; or an estate's directory."
        ),
    ] = None,
    caller: Annotated[str, typer.Option(metavar="ID", help="Who calls; without it somebody who proves nothing.")] = "",
    operation: Annotated[str, typer.Option(metavar="OP", help="What is called, such as billing:invoices:list.")] = "",
    tenant: Annotated[str, typer.Option(help="For which tenant.")] = "",
    approval: Annotated[str, typer.Option(metavar="WHO", help="With a token that WHO has approved.")] = "",
    origin: Annotated[str, typer.Option(metavar="ID", help="With a token of a transaction that ID began.")] = "",
    service: Annotated[str, typer.Option(help="With --method and --path, for a request of no operation.")] = "",
    method: Annotated[str, typer.Option(help="The HTTP method.")] = "",
    path: Annotated[str, typer.Option(help="The path.")] = "",
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            envvar="EASTWEST_DATA",
            readable=False,
            help="The data directory of a running server.",
        ),
    ] = None,
    *,
    step_up: Annotated[bool, typer.Option("--step-up", help="With a transaction token for this call.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say why a call was decided as it was: policy, the parts that failed with their values, and what would unlock it.

    Exit code 0 where it is allowed, 1 where it is refused, 2 wrong usage, 3 the server does not answer.
    """
    from eastwest.policy.explain import Asked

    thought_of = bool(operation or service)
    given = context.get_parameter_source("data")
    if thought_of:
        _check(caller, operation, service, method, path)
        asked = Asked(
            caller=caller,
            service=service,
            operation=operation,
            tenant=tenant,
            method=method,
            path=path,
            token=step_up or bool(approval or origin),
            approver=approval,
            origin=origin,
        )
        if reference is not None and (given is None or given.name != "COMMANDLINE"):
            report = _of_directory(Path(reference), asked)
        elif data is not None and reference is None:
            report = _of_server(data, "", asked)
        elif reference is not None:
            raise typer.BadParameter("it is either a directory or --data of a server, not both", param_hint="DIR")
        else:
            raise typer.BadParameter("say which estate: a directory, or --data of a server", param_hint="DIR")
    elif reference is None or data is None:
        raise typer.BadParameter(
            "give a REFERENCE with --data, or --caller and --operation with DIR or --data", param_hint="REFERENCE"
        )
    else:
        report = _of_server(data, reference, None)
    if as_json:
        print_json(report)
    else:
        for line in lines(report):
            print(line)
    if report["explanation"]["verdict"] != "allow":
        raise typer.Exit(EXIT_REFUSED)


def _check(caller: str, operation: str, service: str, method: str, path: str) -> None:
    """Raise wrong usage where what is asked can be no call."""
    from eastwest.errors import InvalidInput
    from eastwest.spiffe.id import SpiffeId

    if not operation and not (service and method and path):
        raise typer.BadParameter("a request is --service with --method and --path", param_hint="--service")
    try:
        if caller:
            SpiffeId.parse(caller)
    except InvalidInput as error:
        raise typer.BadParameter(error.message, param_hint="--caller") from None


def _of_directory(directory: Path, asked: Asked) -> dict[str, Any]:
    from eastwest.cli.estate import read_directory
    from eastwest.errors import NotFound
    from eastwest.policy.explain import Explainer, explanation_json
    from eastwest.policy.load import load_estate
    from eastwest.policy.table import compile_estate

    if not directory.is_dir():
        raise NotFound(f"{directory} is no directory", fix="give the directory that holds estate.yaml")
    estate = load_estate(read_directory(directory))
    return {"explanation": explanation_json(Explainer(estate, compile_estate(estate)).explain(asked))}


def _of_server(data: Path, reference: str, asked: Asked | None) -> dict[str, Any]:
    import msgspec

    from eastwest.api.eastwest.insight.v1 import insight_pb2 as pb
    from eastwest.cli.admin import admin_channel
    from eastwest.rpc.client import method

    request = pb.ExplainRequest(reference=reference, asked=msgspec.json.encode(asked) if asked is not None else b"")

    async def work() -> Any:
        channel = admin_channel(data)
        try:
            return await channel.unary(method(pb.DESCRIPTOR.services_by_name["Insight"], "Explain"), request)
        finally:
            channel.close()

    found: dict[str, Any] = msgspec.json.decode(run(work).report)
    return found


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """A report as people read it; nothing in it can command a terminal."""
    from eastwest.cli.table import printable

    for line in _lines(report):
        yield printable(line)


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    found = report["explanation"]
    asked, row = found["asked"], report.get("row") or {}
    verdict = found["verdict"].upper() if found["enforced"] else f"{found['verdict'].upper()} (reported only)"
    yield f"{verdict}  {found['code']}: {found['meaning']}"
    yield f"  call      {_call(asked)}"
    if row:
        yield f"  recorded  {row['time']}, row {row['row']}, version {row.get('policy_version', '')[:12]}"
        if row.get("caller") and row.get("claimed"):
            yield f"  claimed   {row['caller']} (a name that nobody verified)"
    if found.get("policy"):
        yield f"  policy    {found['policy']}  {found.get('where', '')}"
    if deciding := found.get("deciding"):
        yield f"            {deciding['reason']}"
        if not deciding["applies"]:
            yield "            would permit it but for"
        yield from _parts(deciding)
    for forbid in found.get("forbids", ()):
        if forbid["policy"] != found.get("policy"):
            yield f"  forbids   {forbid['policy']}  {forbid['where']}"
    if (nearest := found.get("nearest")) and nearest["policy"] != found.get("policy"):
        yield f"  nearest   {nearest['policy']}  {nearest['where']}: would permit it but for"
        yield from _parts(nearest)
    for hint in found.get("hints", ()):
        yield f"  note      {hint}"
    unlocks = [*found.get("unlocks", ()), *found.get("together", ())]
    for unlock in unlocks:
        yield f"  unlocks   {unlock['sentence']}"
    if found["verdict"] == "deny" and not unlocks and found.get("nearest"):
        yield "  unlocks   nothing that was tried: no other tenant, caller, token, approval or attribute"
    if found["fix"] and not unlocks:
        yield f"  fix       {found['fix']}"
    if opinion := found.get("report"):
        by = f" by {opinion['policy']}  {opinion['where']}" if opinion.get("policy") else ""
        yield f"  on trial  rules in report mode would make it {opinion['code']}{by}"
    if report.get("in_force"):
        yield f"  now       version {report['in_force'][:12]} is in force and would say {report['now']}"
    if report.get("others"):
        yield f"  others    {report['others']} more recorded calls have this reference; this is the newest"
    if report.get("note"):
        yield f"  note      {report['note']}"


def _call(asked: Mapping[str, Any]) -> str:
    what = asked.get("operation") or f"{asked.get('method', '')} {asked.get('path', '')} of {asked.get('service', '')}"
    more = [f"tenant {asked['tenant']}"] if asked.get("tenant") else []
    if asked.get("token"):
        more.append("with a token" + (f" approved by {asked['approver']}" if asked.get("approver") else ""))
    return f"{asked.get('caller') or 'somebody who proves nothing'} -> {what}{', '.join(['', *more])}"


def _parts(applied: Mapping[str, Any]) -> Iterator[str]:
    for part in applied["parts"]:
        word = "holds" if part["holds"] else "fails"
        text = f"{part['kind']} {part['text']}" if part["kind"] in {"when", "unless"} else part["text"]
        yield f"            {word}: {text}  {part['where']}"
        for name, value in part.get("values", {}).items():
            yield f"                   {name} is {value}"
