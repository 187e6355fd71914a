"""``eastwest approval``: somebody answers for what a workload is about to do, or does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from eastwest.cli.options import AsJson, DataDir, examples, print_json, run, utc

if TYPE_CHECKING:
    from pathlib import Path

    from eastwest.api.eastwest.approvals.v1 import approvals_pb2

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Approvals: let a workload do one thing, for a short time."
)

ApprovalId = Annotated[str, typer.Argument(metavar="ID", help="As eastwest approval list shows it.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is recorded in the log.")]


@app.command(
    epilog=examples(
        "eastwest approval request --data data --caller spiffe://saas.example/prod/shop/console"
        ' --operation billing:adjustments:create --tenant acme --reason "ticket 4711"'
    )
)
def request(
    data: DataDir,
    caller: Annotated[str, typer.Option(metavar="ID", help="SPIFFE ID of the workload that is to do it.")],
    operation: Annotated[str, typer.Option(metavar="NAME", help="Such as billing:adjustments:create.")],
    reason: Reason,
    tenant: Annotated[str, typer.Option(help="Where the operation is per tenant.")] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Ask on behalf of a workload; workloads ask by themselves at the token endpoint. Another must then decide."""
    _change(data, "RequestApproval", as_json=as_json, caller=caller, operation=operation, tenant=tenant, reason=reason)


@app.command(
    "list",
    epilog=examples("eastwest approval list --data data --state pending", "eastwest approval list --data data --json"),
)
def list_(
    data: DataDir,
    state: Annotated[str, typer.Option(help="Only pending, granted, refused, withdrawn, expired or spent ones.")] = "",
    caller: Annotated[str, typer.Option(metavar="ID", help="Only those for this workload.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many, the newest.")] = 100,
    *,
    as_json: AsJson = False,
) -> None:
    """List approvals, newest first."""
    reply = run(lambda: _call(data, "ListApprovals", state=state, caller=caller, limit=limit))
    rows = [_shown(approval) for approval in reply.approvals]
    if as_json:
        print_json({"approvals": rows})
        return
    from eastwest.cli.table import print_table

    columns = ["id", "state", "expires_at", "caller", "operation", "tenant", "reason"]
    heads = ["UNTIL" if name == "expires_at" else name.upper() for name in columns]
    print_table(heads, [[row[name] or "" for name in columns] for row in rows])


@app.command(epilog=examples("eastwest approval show 1f2e3d4c5b6a7988 --data data"))
def show(approval: ApprovalId, data: DataDir, *, as_json: AsJson = False) -> None:
    """Show one approval: who asked, why, who decided, and who ended it before its time."""
    _print(run(lambda: _call(data, "GetApproval", id=approval)), as_json=as_json)


@app.command(
    epilog=examples('eastwest approval grant 1f2e3d4c5b6a7988 --data data --reason "agreed with the customer"')
)
def grant(approval: ApprovalId, data: DataDir, reason: Reason, *, as_json: AsJson = False) -> None:
    """Grant it, for as long as the server's settings say. Not by who asked, nor by the caller itself."""
    _change(data, "GrantApproval", as_json=as_json, id=approval, reason=reason)


@app.command(epilog=examples('eastwest approval refuse 1f2e3d4c5b6a7988 --data data --reason "wrong customer"'))
def refuse(approval: ApprovalId, data: DataDir, reason: Reason, *, as_json: AsJson = False) -> None:
    """Refuse it."""
    _change(data, "RefuseApproval", as_json=as_json, id=approval, reason=reason)


@app.command(epilog=examples('eastwest approval withdraw 1f2e3d4c5b6a7988 --data data --reason "not needed any more"'))
def withdraw(approval: ApprovalId, data: DataDir, reason: Reason, *, as_json: AsJson = False) -> None:
    """End one that waits or was granted. Tokens under it that count once are refused from then on; others end soon."""
    _change(data, "WithdrawApproval", as_json=as_json, id=approval, reason=reason)


def _change(data: Path, name: str, *, as_json: bool, **fields: Any) -> None:
    _print(run(lambda: _call(data, name, **fields)), as_json=as_json)


async def _call(data: Path, name: str, **fields: Any) -> Any:
    from google.protobuf.message_factory import GetMessageClass

    from eastwest.api.eastwest.approvals.v1 import approvals_pb2
    from eastwest.cli.admin import admin_channel
    from eastwest.cli.token_client import NO_ENDPOINT, NO_ENDPOINT_FIX, in_options
    from eastwest.errors import Error, FailedPrecondition
    from eastwest.rpc.client import method
    from eastwest.rpc.status import Unimplemented

    service = approvals_pb2.DESCRIPTOR.services_by_name["Approvals"]
    called = service.methods_by_name[name]
    channel = admin_channel(data)
    try:
        return await channel.unary(method(service, name), GetMessageClass(called.input_type)(**fields))
    except Unimplemented:
        raise FailedPrecondition(NO_ENDPOINT, fix=NO_ENDPOINT_FIX) from None
    except Error as error:
        error.fix = in_options(error.fix)
        raise
    finally:
        channel.close()


def _print(approval: approvals_pb2.Approval, *, as_json: bool) -> None:
    row = _shown(approval)
    if as_json:
        print_json(row)
        return
    from eastwest.cli.table import EMPTY, printable

    for name, value in row.items():
        print(f"{name.replace('_', ' '):18} {printable(value or EMPTY)}")


def _shown(approval: approvals_pb2.Approval) -> dict[str, Any]:
    return {
        "id": approval.id,
        "state": approval.state,
        "caller": approval.caller,
        "operation": approval.operation,
        "tenant": approval.tenant,
        "reason": approval.reason,
        "requested_by": approval.requested_by,
        "requested_at": utc(approval.requested_at),
        "expires_at": utc(approval.expires_at),
        "decided_by": approval.decided_by,
        "decided_at": utc(approval.decided_at),
        "decision_reason": approval.decision_reason,
        "withdrawn_by": approval.withdrawn_by,
        "withdrawn_at": utc(approval.withdrawn_at),
        "withdrawal_reason": approval.withdrawal_reason,
        "approver": approval.approver,
        "service": approval.service,
        "domain": approval.domain,
    }
