"""Where the tree of rules in report mode stands in a service's filter, in each mode, and what a log makes of it."""

from __future__ import annotations

import pytest
from envoy.data.accesslog.v3 import accesslog_pb2

from eastwest.agent.entries import decided
from eastwest.mesh import names, rbac
from eastwest.mesh.action import ActionName, InForce, inbound_version
from eastwest.mesh.contained import contained_filters
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    Rule,
    Verdict,
)
from eastwest.registry.containment import Contained

CALLER, OTHER = "spiffe://td.test/caller", "spiffe://td.test/other"
ALLOWED = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="p")
FORBIDDEN = Rule(verdict=Verdict.DENY, code=DecisionCode.FORBIDDEN_BY_POLICY, policy="trial")


def service(mode: MtlsMode, *, report: bool = True) -> Inbound:
    def operations(rule: Rule) -> tuple[OperationRules, ...]:
        match = HttpMatch(method="GET", path="/")
        return (OperationRules(name="s:a:do", match=match, cells=(Cell(callers=(CALLER,), rule=rule),)),)

    return Inbound(
        service="s",
        address="127.0.0.1",
        port=1,
        protocol="http",
        mode=mode,
        upstream="unix:/a",
        operations=operations(ALLOWED),
        report=operations(FORBIDDEN) if report else (),
    )


def operations_filter(inbound: Inbound, contained: tuple[str, ...] = ()):
    filters = rbac.filters(inbound, (CALLER, OTHER), "spiffe://td.test")
    if contained:
        filters = contained_filters(inbound, filters, Contained(1, contained), "spiffe://td.test/served")
    return filters[names.operations_filter("s")]


def test_a_service_whose_rules_are_all_enforced_has_one_tree():
    strict = operations_filter(service(MtlsMode.STRICT, report=False))
    assert not strict.HasField("shadow_matcher")
    permissive = operations_filter(service(MtlsMode.PERMISSIVE, report=False))
    assert not permissive.HasField("matcher")


@pytest.mark.parametrize("contained", [(), (OTHER,)])
def test_each_tree_is_read_by_its_own_name(contained):
    strict = operations_filter(service(MtlsMode.STRICT), contained)
    assert (strict.rules_stat_prefix, strict.shadow_rules_stat_prefix) == (rbac.OPERATIONS, rbac.REPORT)
    assert strict.matcher != strict.shadow_matcher
    permissive = operations_filter(service(MtlsMode.PERMISSIVE), contained)
    assert (permissive.rules_stat_prefix, permissive.shadow_rules_stat_prefix) == (rbac.REPORT, rbac.OPERATIONS)
    # Actions are packed: a deny is field 2 with value 1, which no end of the enforced tree may have by itself.
    denies = permissive.matcher.SerializeToString().count(b"\x10\x01")
    assert denies == (1 if contained else 0), "a permissive service refuses nobody but who is contained"


@pytest.mark.parametrize("mode", MtlsMode)
@pytest.mark.parametrize(
    ("said", "report", "expected"),
    [
        (ALLOWED, FORBIDDEN, (DecisionCode.ALLOWED, "p", "FORBIDDEN_BY_POLICY", "trial")),
        (ALLOWED, ALLOWED, (DecisionCode.ALLOWED, "p", "", "")),
        (FORBIDDEN, ALLOWED, (DecisionCode.FORBIDDEN_BY_POLICY, "trial", "ALLOWED", "p")),
        (Rule(verdict=Verdict.DENY, code=DecisionCode.CALLER_CONTAINED),) * 2
        + ((DecisionCode.CALLER_CONTAINED, "", "", ""),),
    ],
)
def test_a_row_tells_both_answers(mode, said, report, expected):
    inbound = service(mode)
    version = inbound_version(inbound)
    keys = {
        MtlsMode.STRICT: (rbac.OPERATIONS + rbac.ENFORCED_POLICY, rbac.REPORT + rbac.SHADOW_POLICY),
        MtlsMode.PERMISSIVE: (rbac.OPERATIONS + rbac.SHADOW_POLICY, rbac.REPORT + rbac.ENFORCED_POLICY),
    }[mode]
    entry = accesslog_pb2.HTTPAccessLogEntry()
    fields = entry.common_properties.metadata.filter_metadata[rbac.HTTP_METADATA].fields
    for key, rule in zip(keys, (said, report), strict=True):
        fields[key].string_value = ActionName(rule.code, rule.policy, "s:a:do", version).encode()
    entry.common_properties.start_time.seconds = 1_795_000_000
    row = decided(entry, InForce("s", version, "v", mode, inbound), lambda _: None, "n")
    assert row is not None
    assert (row.code, row.policy, row.report_code, row.report_policy) == expected
    assert row.enforced == (mode is MtlsMode.STRICT or said.code is DecisionCode.CALLER_CONTAINED)
