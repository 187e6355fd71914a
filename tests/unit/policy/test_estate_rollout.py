"""The rings of an estate: read, checked with their places, and no part of the version where there are none."""

import pytest

from eastwest.policy.estate import content
from eastwest.policy.load import load_estate
from eastwest.policy.problems import EstateInvalid

PLAIN = """trust_domain: td.test
environments: [{name: dev, kind: vm}]
domains: [{name: d, owners: ['group:d']}]
"""


def load(rollout: str = ""):
    return load_estate({"estate.yaml": (PLAIN + rollout).encode()})


def test_rings_are_read():
    made = load("rollout: {rings: [{name: a, domains: [d]}, {name: b, share: 20}], soak: 1h, advance: automatic}")
    rollout = made.settings.rollout
    assert [(ring.name, ring.domains, ring.share) for ring in rollout.rings] == [("a", ("d",), None), ("b", (), 20)]
    assert (rollout.soak, rollout.advance, rollout.brake) == ("1h", "automatic", True)
    assert b"rollout" in content(made)
    assert b"rollout" not in content(load())


@pytest.mark.parametrize(
    ("rings", "words"),
    [
        ("{name: a}", "needs exactly one of domains and share"),
        ("{name: a, domains: [d], share: 5}", "needs exactly one of domains and share"),
        ("{name: a, domains: [e]}", "unknown domain 'e'"),
        ("{name: everywhere, share: 5}", "is not declared"),
        ("{name: a, share: 5}, {name: a, share: 9}", "is declared twice"),
        ("{name: a, share: 9}, {name: b, share: 9}", "has nobody"),
    ],
)
def test_mistakes_are_told_with_their_places(rings, words):
    with pytest.raises(EstateInvalid) as refused:
        load(f"rollout: {{rings: [{rings}]}}\n")
    assert any(words in str(one) and "estate.yaml:4" in str(one) for one in refused.value.problems), refused.value
