"""Input that is not as it should be denies; what counts once is named."""

from __future__ import annotations

import json

import pytest
import regopy

from eastwest.policy.exports.rego import export_rego

CALLER = "spiffe://t.example/prod/d/a"
CERTIFICATE = "ab" * 32
PAY = 'name: "s:pay:do", match: {method: POST, path: "/t/{tenant}/pay"}, sensitivity: mutate, '
PAY += "demands: [step-up, single-use]"
CLAIMS = {
    "sub": CALLER,
    "tctx": {
        "action": "s:pay:do",
        "resource": "s",
        "origin": CALLER,
        "certificate": CERTIFICATE,
        "tenant": "acme",
    },
}
CALL = {
    "caller": CALLER,
    "service": "s",
    "method": "POST",
    "path": "/t/acme/pay",
    "headers": [],
    "certificate": CERTIFICATE,
    "token": {"status": "valid", "claims": CLAIMS},
}


@pytest.fixture
def decide(compiled):
    policies = ["permit (principal, action, resource) when { context has step_up };"]
    module = export_rego(compiled({"s": [PAY]}, policies, tenant="tenant: {path: tenant}")).files["eastwest.rego"]
    interpreter = regopy.Interpreter()
    interpreter.add_module("eastwest.rego", module)

    def ask(call):
        interpreter.set_input_term(json.dumps(call))
        return dict(interpreter.query("data.eastwest.decision").results[0].expressions[0])

    return ask


def test_a_token_that_counts_once_is_named(decide):
    assert decide(CALL) == {
        "verdict": "allow",
        "code": "ALLOWED",
        "policy": "p0",
        "operation": "s:pay:do",
        "once": True,
    }


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"caller": None}, "MTLS_REQUIRED"),
        ({"caller": ""}, "UNKNOWN_CALLER"),
        ({"caller": [CALLER]}, "MTLS_REQUIRED"),
        ({"service": None}, "UNLISTED_OPERATION"),
        ({"method": None}, "UNLISTED_OPERATION"),
        ({"path": None}, "UNLISTED_OPERATION"),
        ({"path": "/t/acme/pay/"}, "UNLISTED_OPERATION"),
        ({"path": "/t/../pay"}, "UNLISTED_OPERATION"),
        ({"path": "/t/globex/pay"}, "TENANT_NOT_PERMITTED"),
        ({"token": None}, "STEP_UP_REQUIRED"),
        ({"token": {"status": "good"}}, "TOKEN_INVALID"),
        ({"token": {"status": "valid"}}, "TOKEN_INVALID"),
        ({"token": {"status": "valid", "claims": {}}}, "TOKEN_INVALID"),
        ({"token": {"status": "valid", "claims": {**CLAIMS, "sub": 1}}}, "TOKEN_INVALID"),
        ({"certificate": None}, "TOKEN_WRONG_KEY"),
        ({"certificate": ""}, "TOKEN_WRONG_KEY"),
    ],
)
@pytest.mark.parametrize("absent", [False, True])
def test_what_is_missing_or_wrong_denies(decide, change, code, absent):
    call = CALL | change
    if absent:
        call = {key: value for key, value in call.items() if value is not None}
    answer = decide(call)
    assert answer["verdict"] == "deny"
    assert answer["code"] == code


@pytest.mark.parametrize("name", ["sub", "action", "resource", "origin", "certificate"])
def test_a_claim_that_is_missing_denies(decide, name):
    context = {key: value for key, value in CLAIMS["tctx"].items() if key != name}
    claims = {key: value for key, value in CLAIMS.items() if key != name} | {"tctx": context}
    assert decide(CALL | {"token": {"status": "valid", "claims": claims}})["code"] == "TOKEN_INVALID"
    without_tenant = {**CLAIMS, "tctx": {k: v for k, v in CLAIMS["tctx"].items() if k != "tenant"}}
    assert decide(CALL | {"token": {"status": "valid", "claims": without_tenant}})["code"] == "TOKEN_WRONG_TENANT"
