"""An agent that knows no report mode keeps the rules that it had, and never gets fewer than are enforced."""

import msgspec
import pytest

from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    Rule,
    Sidecar,
    Verdict,
)
from eastwest.server.sidecar_configs import SidecarConfig
from eastwest.server.tables import Given
from eastwest.server.view import AgentView
from eastwest.spiffe.id import SpiffeId

AGENT, OTHER = (SpiffeId.parse(f"spiffe://td.test/spire/agent/{name}") for name in "ab")
CALLER, SERVED = "spiffe://td.test/caller", SpiffeId.parse("spiffe://td.test/served")


def operation(verdict: Verdict) -> OperationRules:
    code = DecisionCode.ALLOWED if verdict is Verdict.ALLOW else DecisionCode.FORBIDDEN_BY_POLICY
    cell = Cell(callers=(CALLER,), rule=Rule(verdict=verdict, code=code, policy="p"))
    return OperationRules(name="s:a:do", match=HttpMatch(method="GET", path="/"), cells=(cell,))


def given(version: str, *, report: bool) -> Given:
    inbound = Inbound(
        service="s",
        address="127.0.0.1",
        port=1,
        protocol="http",
        mode=MtlsMode.STRICT,
        upstream="unix:/a",
        operations=(operation(Verdict.ALLOW),),
        report=(operation(Verdict.DENY),) if report else (),
    )
    sidecar = Sidecar(spiffe_id=str(SERVED), version=f"sidecar-{version}", known_callers=(CALLER,), inbound=(inbound,))
    return Given(SidecarConfig.of(sidecar, None), version)


@pytest.fixture
def view():
    """Of no server: what is given is decided elsewhere."""
    return AgentView(None, None, None, None, None)


def test_it_keeps_the_last_that_it_can_read(view):
    first, second, third = (given(f"v{n}", report=n == 2) for n in (1, 2, 3))
    assert view.without_report(AGENT, SERVED, first) is first
    assert view.without_report(AGENT, SERVED, second) is first, "nothing new while rules are in report mode"
    assert view.without_report(AGENT, SERVED, third) is third


def test_what_nobody_remembers_is_what_is_enforced(view):
    rules = given("v2", report=True)
    found = view.without_report(OTHER, SERVED, rules)
    [before], [now] = rules.config.compiled.inbound, found.config.compiled.inbound
    assert now == msgspec.structs.replace(before, report=())
    assert found.config.token != rules.config.token
    assert not found.config.reports
