"""The agent's answer about tokens that count once: to whom, about what, and in which words."""

from types import SimpleNamespace

import pytest
from envoy.service.auth.v3 import external_auth_pb2
from google.rpc import code_pb2

from eastwest.agent.authorization import Authorization
from eastwest.agent.xds import Principal
from eastwest.errors import InvalidInput, PermissionDenied, Unavailable
from eastwest.testing.tokens import TokenUses

ME = Principal(("spiffe://td.test/web",))
ASKED = {
    "x-eastwest-token-id": "jti-1",
    "x-eastwest-token-expires": "1800000000",
    "x-eastwest-token-approval": "a1",
    "x-eastwest-token-action": "web:x:do",
    "x-eastwest-token-resource": "web",
}


class OneService:
    """``web``, run by one workload, with one operation where tokens count once, and one where they do not."""

    def current(self, principal: Principal, service: str) -> object:
        if principal is not ME or service != "web":
            return None
        operations = [
            SimpleNamespace(name="web:x:do", single_use=True),
            SimpleNamespace(name="web:z:do", single_use=False),
        ]
        return SimpleNamespace(inbound=SimpleNamespace(operations=operations))


def service(uses: TokenUses, principal: Principal = ME) -> Authorization:
    async def identify(_) -> Principal:
        return principal

    return Authorization(identify, OneService(), uses.use_token)


async def ask(authorization: Authorization, **changed: str):
    said = {**ASKED, **{f"x-eastwest-token-{name}": value for name, value in changed.items()}}
    request = external_auth_pb2.CheckRequest()
    request.attributes.request.http.headers.update({name: value for name, value in said.items() if value})
    (methods,) = (one.methods() for one in authorization.services())
    assert list(methods) == ["/envoy.service.auth.v3.Authorization/Check"]
    return await authorization._check(request, None)


async def test_a_token_is_taken_once():
    uses = TokenUses()
    first = await ask(service(uses))
    assert first.status.code == code_pb2.OK
    assert first.HasField("ok_response")
    assert uses.used == {"jti-1": (1800000000, "a1", "web:x:do")}
    again = await ask(service(uses))
    assert again.status.code == code_pb2.PERMISSION_DENIED
    assert again.denied_response.status.code == 403
    assert (await ask(service(uses), id="jti-2", approval="")).status.code == code_pb2.OK


async def test_who_does_not_run_the_service_learns_nothing_and_uses_nothing():
    uses = TokenUses()
    for authorization, changed in (
        (service(uses, Principal(("spiffe://td.test/other",))), {}),
        (service(uses), {"resource": "other"}),
        (service(uses), {"action": "web:y:do"}),
        (service(uses), {"action": "web:z:do"}),
    ):
        with pytest.raises(PermissionDenied):
            await ask(authorization, **changed)
    assert not uses.used


@pytest.mark.parametrize(
    "changed",
    [
        {"id": ""},
        {"id": "x" * 257},
        {"expires": ""},
        {"expires": "soon"},
        {"expires": "-1"},
        {"expires": "9" * 30},
        {"expires": "٣"},
        {"approval": "x" * 257},
    ],
)
async def test_what_is_no_question_has_no_answer(changed):
    uses = TokenUses()
    with pytest.raises(InvalidInput):
        await ask(service(uses), **changed)
    assert not uses.used


async def test_when_the_server_is_away_nobody_says_yes():
    uses = TokenUses()
    uses.away = True
    with pytest.raises(Unavailable):
        await ask(service(uses))
