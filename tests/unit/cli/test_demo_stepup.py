"""The demo's tokens: asked for as RFC 8693 says, never shown, and only what was expected will do."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from eastwest.cli.demo import estate, stepup
from eastwest.cli.demo.calls import Made
from eastwest.cli.demo.place import SERVICES, Place, Uids
from eastwest.cli.estate import read_directory
from eastwest.issuance.presented import read
from eastwest.pki.compact import read_keys
from eastwest.policy.enforcement import DecisionCode
from eastwest.policy.load import load_estate
from eastwest.policy.oracle import decide
from eastwest.policy.transaction import HEADER, NoToken, Token
from eastwest.testing.tokens import TokenMint

TD = "spiffe://saas.example"
CONSOLE, NOTIFICATION = f"{TD}/prod/platform/console", f"{TD}/prod/messaging/notification"
SECRET = "eyJ-secret"
ASK = stepup.Ask(name="a", story="s", caller="console", operation="admin:users:disable", reason="r", incoming=SECRET)


def answered(ask, status, **body):
    return stepup.read(ask, Made(ask.call(), status=status, body=body))


def test_the_form_is_what_the_token_endpoint_takes():
    call = ASK.call()
    form = {name: values[0] for name, values in parse_qs(call.body, strict_parsing=True).items()}
    assert form["scope"] == "admin:users:disable"
    assert json.loads(form["request_details"]) == {"reason": "r"}
    assert form["subject_token"] == SECRET
    assert (call.service, call.method, call.path, call.via) == ("eastwest", "POST", "/token", "sidecar")


def test_no_token_is_shown():
    asked = answered(ASK, 200, access_token=SECRET, expires_in=120)
    assert asked.token == SECRET
    call = replace(stepup.mute("m", "s", 200), headers={HEADER: SECRET})
    for value in (
        ASK,
        ASK.call(),
        asked,
        Made(call, body={"access_token": SECRET}),
        stepup.StepUp([asked], [Made(call)]),
    ):
        assert SECRET not in repr(value)


@pytest.mark.parametrize(
    ("code", "status", "body", "ok"),
    [
        ("", 200, {"access_token": "t"}, True),
        ("", 200, {}, False),
        ("", 403, {"code": "APPROVAL_REQUIRED"}, False),
        ("APPROVAL_REQUIRED", 403, {"code": "APPROVAL_REQUIRED", "approval": "1"}, True),
        ("APPROVAL_REQUIRED", 403, {"code": "OPERATION_NOT_PERMITTED"}, False),
        ("APPROVAL_REQUIRED", 200, {"access_token": "t"}, False),
        ("APPROVAL_REQUIRED", 403, {"access_token": "t"}, False),
    ],
)
def test_only_the_expected_answer_will_do(code, status, body, ok):
    assert answered(replace(ASK, code=code), status, **body).ok is ok


def test_a_forged_token_differs_in_its_signature_alone():
    mint = TokenMint(TD)
    now = datetime.now(UTC)
    good = mint.mint(
        Token(
            id="1",
            transaction="2",
            caller=CONSOLE,
            certificate="00" * 32,
            action="admin:users:mute",
            resource="admin",
            origin=CONSOLE,
            expires=int(now.timestamp()) + 60,
        )
    )
    forged = stepup.forged(good)
    assert forged.rpartition(".")[0] == good.rpartition(".")[0]
    assert len(forged) == len(good)
    known = read_keys(mint.key_set)
    assert isinstance(read(good, known, TD, now), Token)
    assert read(forged, known, TD, now) is NoToken.INVALID


def rendered(tmp_path):
    place = Place(tmp_path, Uids(None))
    ports = {service.name: 9000 + number for number, service in enumerate(SERVICES)}
    intent = estate.Intent(billing_strict=True, billing_ttl="16s")
    return estate.render(place, ports, intent, datetime.now(UTC).date())


def example(_):
    return read_directory(Path(__file__).parents[3] / "examples" / "estate")


@pytest.mark.parametrize("files", [rendered, example])
def test_the_demo_and_the_example_tell_the_same_story(tmp_path, files):
    intended = load_estate(files(tmp_path))

    def ask(caller, operation, *, origin="", approver="", bring=True):
        token = Token(
            id="1",
            transaction="2",
            caller=caller,
            certificate="00",
            action=f"admin:users:{operation}",
            resource="admin",
            origin=origin or caller,
            expires=0,
            approval="7" if approver else "",
            approver=approver,
        )
        presented = token if bring else NoToken.MISSING
        path = f"/admin/users/u-17/{operation}"
        return decide(intended, caller, "admin", "POST", path, (), presented, "00")[1]

    assert ask(CONSOLE, "disable", bring=False) is DecisionCode.STEP_UP_REQUIRED
    assert ask(CONSOLE, "disable") is DecisionCode.APPROVAL_REQUIRED
    assert ask(CONSOLE, "disable", approver="unix:uid:0") is DecisionCode.ALLOWED
    assert ask(CONSOLE, "mute") is DecisionCode.ALLOWED
    assert ask(NOTIFICATION, "disable", approver="unix:uid:0") is DecisionCode.OPERATION_NOT_PERMITTED
    assert ask(NOTIFICATION, "mute", bring=False) is DecisionCode.STEP_UP_REQUIRED
    assert ask(NOTIFICATION, "mute") is not DecisionCode.ALLOWED
    assert ask(NOTIFICATION, "mute", origin=CONSOLE) is DecisionCode.ALLOWED
