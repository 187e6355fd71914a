import msgspec
from hypothesis import given
from hypothesis import strategies as st

from eastwest.mesh.action import ONCE_SUFFIX, ActionName, inbound_version
from eastwest.policy.enforcement import DecisionCode, Inbound, MtlsMode


@given(st.sampled_from(DecisionCode), st.text(), st.text(), st.booleans())
def test_a_name_comes_back_as_it_was(code, policy, operation, once):
    name = ActionName(code, policy, operation, "0123456789ab", once)
    assert ActionName.parse(name.encode()) == name
    assert name.encode().endswith(ONCE_SUFFIX) is once


@given(st.sampled_from(DecisionCode), st.sampled_from(DecisionCode), st.text(), st.text())
def test_a_name_that_tells_what_rules_in_report_mode_say(code, reported, policy, by):
    name = ActionName(code, policy, "s:a:do", "0123456789ab", report=(reported, by))
    assert ActionName.parse(name.encode()) == name


def test_foreign_names_are_nobodys():
    for text in (
        "",
        "default",
        "ALLOWED",
        "ALLOWED|a|b",
        "ALLOWED|a|b|c|d",
        "ALLOWED|a|b|c|once|once",
        "ALLOWED|a|b|c|report|NO_SUCH_CODE|p",
        "ALLOWED|a|b|c|report|ALLOWED",
        "ALLOWED|a|b|c|report|ALLOWED|p|x",
        "allowed|a|b|c",
    ):
        assert ActionName.parse(text) is None


def test_the_version_is_the_content():
    inbound = Inbound(
        service="s",
        address="127.0.0.1",
        port=1,
        protocol="http",
        mode=MtlsMode.STRICT,
        upstream="unix:/a",
        operations=(),
    )
    assert inbound_version(inbound) == inbound_version(msgspec.structs.replace(inbound))
    assert len(inbound_version(inbound)) == 12
    assert inbound_version(inbound) != inbound_version(msgspec.structs.replace(inbound, mode=MtlsMode.PERMISSIVE))
