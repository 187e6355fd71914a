"""Approvals on a real server: asked for by workloads and people, decided by who answers for the service, ended."""

import asyncio
import json
import os

import pytest
from server_process import eastwest
from token_world import CONSOLE, TD, WEB, TokenWorld, read_claims

from eastwest import errors
from eastwest.cli.containment import Api
from eastwest.policy.transaction import from_claims

ROOT = f"unix:uid:{os.getuid()}"
OWNER, STRANGER, READER = f"{TD}/prod/shop/owner", f"{TD}/prod/base/stranger", f"{TD}/prod/base/reader"
CREDIT, ADJUST, ROTATE = "billing:credits:create", "billing:adjustments:create", "billing:keys:rotate"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    world = TokenWorld(tmp_path_factory.mktemp("approvals") / "data")
    try:
        asyncio.run(world.start())
        yield world
    finally:
        world.close()


@pytest.fixture
async def world(running):
    """The server, without approvals that still live."""
    running.agent.reconnect()
    for state in ("pending", "granted"):
        for one in (await running.approvals("ListApprovals", state=state)).approvals:
            await running.approvals("WithdrawApproval", id=one.id, reason="the next test begins")
    yield running
    running.agent.channel.close()


def asked(workload, operation, **more) -> str:
    """Ask for a token where an approval is needed; the approval's id."""
    status, said = workload.ask(operation, reason="ticket 4711", **more)
    assert (status, said["error"], said["code"]) == (403, "approval_required", "APPROVAL_REQUIRED"), said
    return said["approval"]


async def grant(world, approval: str, channel=None):
    return await world.approvals("GrantApproval", channel, id=approval, reason="agreed")


async def test_asked_for_once_granted_and_used_once(world) -> None:
    console = await world.workload(CONSOLE)
    status, said = console.ask(ADJUST, tenant="acme")
    assert (status, said["error"]) == (403, "approval_required")
    assert "approval" not in said, "nobody asks for an approval without a reason"
    approval = asked(console, ADJUST, tenant="acme")
    assert asked(console, ADJUST, tenant="acme") == approval
    assert asked(console, ADJUST, tenant="acme", approval=approval) == approval
    assert asked(console, ADJUST, tenant="globex") != approval
    granted = await grant(world, approval)
    assert (granted.state, granted.approver, granted.caller, granted.tenant) == ("granted", ROOT, CONSOLE, "acme")
    token = from_claims(read_claims(console.token(ADJUST, tenant="acme")))
    assert (token.approval, token.approver, token.tenant) == (approval, ROOT, "acme")
    assert token.expires <= granted.expires_at
    # The operation counts once, and so does its approval.
    assert (await world.approvals("GetApproval", id=approval)).state == "spent"
    status, said = console.ask(ADJUST, tenant="acme", approval=approval)
    assert (status, said["error"]) == (403, "access_denied")
    assert "is spent" in said["error_description"]
    assert asked(console, ADJUST, tenant="acme") != approval
    kinds = [
        (entry["kind"], entry["actor"])
        for entry in await world.recorded("approval.requested", "approval.granted", "token.minted")
        if entry.get("approval") == approval
    ]
    assert kinds == [("approval.requested", CONSOLE), ("approval.granted", ROOT), ("token.minted", CONSOLE)]


async def test_two_who_ask_at_once_share_one_token_of_a_single_use_approval(world) -> None:
    console = await world.workload(CONSOLE)
    await grant(world, asked(console, ADJUST, tenant="acme"))
    replies = await asyncio.gather(*(asyncio.to_thread(console.ask, ADJUST, tenant="acme") for _ in range(8)))
    assert [status for status, _ in replies].count(200) == 1


async def test_where_nothing_is_single_use_it_covers_tokens_until_its_end(world) -> None:
    console = await world.workload(CONSOLE)
    approval = asked(console, CREDIT, tenant="acme")
    await grant(world, approval)
    found = [from_claims(read_claims(console.token(CREDIT, tenant="acme"))) for _ in range(3)]
    assert {token.approval for token in found} == {approval}
    assert len({token.id for token in found}) == 3
    # For another tenant, operation or caller it is nothing.
    status, said = console.ask(CREDIT, tenant="globex", approval=approval)
    assert (status, said["error"], said["code"]) == (403, "access_denied", "APPROVAL_REQUIRED")
    status, said = console.ask(ADJUST, tenant="acme", approval=approval)
    assert (status, said["error"]) == (403, "access_denied")
    web = await world.workload(WEB)
    status, said = web.ask(CREDIT, tenant="acme", approval=approval)
    assert (status, said["error"]) == (403, "access_denied")


async def test_nobody_approves_its_own(world) -> None:
    console, owner = await world.workload(CONSOLE), await world.workload(OWNER)
    approval = asked(console, CREDIT, tenant="acme")
    with world.administering(console) as channel, pytest.raises(errors.PermissionDenied, match="may not grant it"):
        await grant(world, approval, channel)
    assert (await world.approvals("GetApproval", id=approval)).state == "pending"
    with world.administering(owner) as channel:
        assert (await grant(world, approval, channel)).approver == OWNER
    # Who asks for another is as little the one who grants it.
    request = {"caller": CONSOLE, "operation": CREDIT, "tenant": "globex", "reason": "month's end"}
    requested = await world.approvals("RequestApproval", **request)
    assert requested.requested_by == ROOT
    assert (await world.approvals("RequestApproval", **request)).id == requested.id
    with pytest.raises(errors.PermissionDenied, match="may not grant it"):
        await grant(world, requested.id)
    with world.administering(owner) as channel:
        await grant(world, requested.id, channel)
    assert from_claims(read_claims(console.token(CREDIT, tenant="globex"))).approver == OWNER


async def test_only_who_answers_for_the_service_decides(world) -> None:
    console, stranger, reader = [await world.workload(name) for name in (CONSOLE, STRANGER, READER)]
    approval = asked(console, CREDIT, tenant="acme")
    for forger in (stranger, reader):
        with world.administering(forger) as channel:
            for step in ("GrantApproval", "RefuseApproval", "WithdrawApproval"):
                with pytest.raises(errors.PermissionDenied):
                    await world.approvals(step, channel, id=approval, reason="mine")
            assert (await world.approvals("GetApproval", channel, id=approval)).state == "pending"
    web = await world.workload(WEB)
    with world.administering(web) as channel, pytest.raises(errors.PermissionDenied, match="no administrator"):
        await world.approvals("ListApprovals", channel)
    with world.administering(stranger) as channel, pytest.raises(errors.PermissionDenied):
        request = {"caller": CONSOLE, "operation": CREDIT, "tenant": "globex", "reason": "x"}
        await world.approvals("RequestApproval", channel, **request)


async def test_a_policy_may_name_the_approver(world) -> None:
    console, owner = await world.workload(CONSOLE), await world.workload(OWNER)
    approval = asked(console, ROTATE)
    with pytest.raises(errors.FailedPrecondition, match="no policy lets"):
        await grant(world, approval)
    with world.administering(owner) as channel:
        await grant(world, approval, channel)
    assert from_claims(read_claims(console.token(ROTATE))).approver == OWNER


async def test_refused_and_withdrawn(world) -> None:
    console = await world.workload(CONSOLE)
    approval = asked(console, CREDIT, tenant="acme")
    refused = await world.approvals("RefuseApproval", id=approval, reason="no")
    assert (refused.state, refused.decided_by, refused.decision_reason) == ("refused", ROOT, "no")
    status, said = console.ask(CREDIT, tenant="acme", approval=approval)
    assert (status, said["error"]) == (403, "access_denied")
    with pytest.raises(errors.FailedPrecondition, match="is refused"):
        await grant(world, approval)
    # A token of a withdrawn approval is refused where it is checked for single use.
    approval = asked(console, ADJUST, tenant="acme")
    await grant(world, approval)
    token = console.token(ADJUST, tenant="acme")
    withdrawn = await world.approvals("WithdrawApproval", id=approval, reason="a mistake")
    assert (withdrawn.state, withdrawn.approver) == ("withdrawn", ROOT)
    assert await world.use(token)
    with pytest.raises(errors.FailedPrecondition):
        await world.approvals("WithdrawApproval", id=approval, reason="again")
    for reason in ("", " ", "two\nlines", "x" * 2000):
        pending = asked(console, CREDIT, tenant="acme")
        with pytest.raises(errors.InvalidInput):
            await world.approvals("GrantApproval", id=pending, reason=reason)
    with pytest.raises(errors.NotFound):
        await world.approvals("GrantApproval", id="0123456789abcdef", reason="which?")


async def test_nothing_is_asked_for_that_would_not_help(world) -> None:
    for caller, operation, tenant in (
        (WEB, CREDIT, "acme"),
        (CONSOLE, "billing:nothing:do", ""),
        (CONSOLE, CREDIT, ""),
        (CONSOLE, CREDIT, "other"),
        (CONSOLE, "billing:reports:make", ""),
        (f"{TD}/nobody", CREDIT, "acme"),
    ):
        request = {"caller": caller, "operation": operation, "tenant": tenant, "reason": "x"}
        if operation == "billing:reports:make":
            # It needs a token, and an approval does not hurt.
            assert (await world.approvals("RequestApproval", **request)).state == "pending"
            continue
        with pytest.raises(errors.PermissionDenied):
            await world.approvals("RequestApproval", **request)


async def test_a_crash_loses_no_decision(world) -> None:
    console = await world.workload(CONSOLE)
    waiting, approval = asked(console, CREDIT, tenant="acme"), asked(console, ADJUST, tenant="globex")
    await grant(world, approval)
    world.restart()
    assert asked(console, CREDIT, tenant="acme") == waiting
    assert from_claims(read_claims(console.token(ADJUST, tenant="globex"))).approval == approval
    world.restart()
    assert (await world.approvals("GetApproval", id=approval)).state == "spent"


async def test_it_ends(tmp_path) -> None:
    world = TokenWorld(tmp_path / "data")
    try:
        await world.start(approval_life=1)
        console = await world.workload(CONSOLE)
        approval = asked(console, CREDIT, tenant="acme")
        granted = await grant(world, approval)
        assert from_claims(read_claims(console.token(CREDIT, tenant="acme"))).expires <= granted.expires_at
        async with asyncio.timeout(10):
            while (await world.approvals("GetApproval", id=approval)).state != "expired":
                await asyncio.sleep(0.05)
        status, said = console.ask(CREDIT, tenant="acme", approval=approval)
        assert (status, said["error"]) == (403, "access_denied")
        assert "is expired" in said["error_description"]
        assert asked(console, CREDIT, tenant="acme") != approval
    finally:
        world.close()


async def test_the_commands(world) -> None:
    data = world.server.data

    def run(*words, code=0):
        done = eastwest("approval", *words, "--data", data)
        assert done.returncode == code, done.stderr
        return done

    request = ["request", "--caller", CONSOLE, "--operation", CREDIT, "--tenant", "acme", "--reason", "ticket 1"]
    made = json.loads(run(*request, "--json").stdout)
    assert (made["state"], made["tenant"], made["decided_at"]) == ("pending", "acme", None)
    listed = json.loads(run("list", "--state", "pending", "--json").stdout)["approvals"]
    assert made in listed
    assert made["id"] in run("list", "--caller", CONSOLE).stdout
    assert "ticket 1" in run("show", made["id"]).stdout
    own = run("grant", made["id"], "--reason", "mine", code=1)
    assert "have another administrator grant it" in own.stderr
    assert run("grant", made["id"], code=2).returncode == 2, "a reason is needed"
    assert json.loads(run("refuse", made["id"], "--reason", "no", "--json").stdout)["state"] == "refused"
    again = json.loads(run(*request, "--json").stdout)
    assert "withdrawn" in run("withdraw", again["id"], "--reason", "wrong").stdout
    wrong = json.loads(run("list", "--state", "lost", "--json", code=1).stderr)
    assert wrong["error"]["code"] == "INVALID_INPUT"
    gone = json.loads(run("show", "ffff", "--json", code=1).stderr)
    told = {
        "code": "NOT_FOUND",
        "message": "there is no approval 'ffff'",
        "fix": "see eastwest approval list",
        "where": "",
    }
    assert gone["error"] == told
    # What is misspelt is not taken for what is not there, and programs get the exact code.
    misspelt = [CONSOLE.replace("console", "consle") if word == CONSOLE else word for word in request]
    error = json.loads(run(*misspelt, "--json", code=1).stderr)["error"]
    assert (error["code"], error["fix"]) == ("UNKNOWN_CALLER", f"did you mean '{CONSOLE}'?")
    misspelt = ["billing:credit:create" if word == CREDIT else word for word in request]
    error = json.loads(run(*misspelt, "--json", code=1).stderr)["error"]
    assert (error["code"], error["fix"]) == ("UNLISTED_OPERATION", f"did you mean '{CREDIT}'?")
    misspelt = ["nothing" if word == CREDIT else word for word in request]
    assert "--operation is the name of one operation" in run(*misspelt, code=1).stderr
    unknown = run("list", "--caller", f"{TD}/prod/shop/consle", code=1)
    assert "is not registered in the estate" in unknown.stderr
    assert CONSOLE in unknown.stderr
    assert run("list", "--caller", WEB).returncode == 0
    # Who granted stays when it is withdrawn.
    both = json.loads(run(*request, "--json").stdout)["id"]
    with world.administering(await world.workload(OWNER)) as channel:
        await grant(world, both, channel)
    shown = json.loads(run("withdraw", both, "--reason", "changed my mind", "--json").stdout)
    assert (shown["state"], shown["decided_by"], shown["decision_reason"]) == ("withdrawn", OWNER, "agreed")
    assert (shown["withdrawn_by"], shown["withdrawal_reason"]) == (ROOT, "changed my mind")
    assert json.loads(run("show", both, "--json").stdout) == shown


async def contain(world, *names: str) -> str:
    """Cut off; the containment's id."""

    def ask() -> str:
        with Api(world.server.data) as api:
            return api.ask("StartContainment", spiffe_ids=list(names), selector=names[0], reason="a test")["id"]

    return await asyncio.to_thread(ask)


async def release(world, containment: str) -> None:
    def ask() -> None:
        with Api(world.server.data) as api:
            api.ask("EndContainment", id=containment, reason="the test is over")

    await asyncio.to_thread(ask)


async def test_whoever_is_contained_gets_no_token_and_its_approvals_are_gone_for_good(world) -> None:
    console, owner = await world.workload(CONSOLE), await world.workload(OWNER)
    waiting = asked(console, ADJUST, tenant="acme")
    mine = asked(console, CREDIT, tenant="acme")
    with world.administering(owner) as channel:
        await grant(world, mine, channel)
    before = console.token("billing:reports:make")
    containment = await contain(world, CONSOLE)
    status, said = console.ask("billing:reports:make")
    assert (status, said["error"], said["code"]) == (403, "access_denied", "IDENTITY_CONTAINED")
    billing = await world.workload(f"{TD}/prod/shop/billing")
    status, said = billing.ask("ledger:entries:write", tenant="acme", subject_token=before)
    assert (status, said["code"]) == (403, "IDENTITY_CONTAINED"), "nor what others make of its token"
    states = [(await world.approvals("GetApproval", id=one)).state for one in (waiting, mine)]
    assert states == ["withdrawn"] * 2
    await release(world, containment)
    assert console.ask("billing:reports:make")[0] == 200
    assert asked(console, CREDIT, tenant="acme") != mine


async def test_what_somebody_contained_has_granted_is_gone_for_good_and_it_grants_nothing(world) -> None:
    console, owner = await world.workload(CONSOLE), await world.workload(OWNER)
    granted, waiting = asked(console, CREDIT, tenant="acme"), asked(console, CREDIT, tenant="globex")
    with world.administering(owner) as channel:
        await grant(world, granted, channel)
    containment = await contain(world, OWNER)
    assert console.ask(CREDIT, tenant="acme")[0] == 403
    with world.administering(owner) as channel, pytest.raises(errors.Error):
        await grant(world, waiting, channel)
    assert (await world.approvals("GetApproval", id=granted)).state == "withdrawn"
    assert (await world.approvals("GetApproval", id=waiting)).state == "pending"
    await release(world, containment)
    assert console.ask(CREDIT, tenant="acme")[0] == 403, "its word is not back"
