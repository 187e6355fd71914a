"""Cedar and the table, as it travels, give one answer, code and policy included: random estates, random calls.

A real Envoy is asked the same in ``tests/integration/test_equality.py``.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from eastwest.policy.enforcement import DecisionCode, Verdict, decode_sidecar, encode_sidecar
from eastwest.policy.load import load_estate
from eastwest.policy.oracle import Oracle, lookup
from eastwest.policy.table import compile_estate
from eastwest.testing.calls import fingerprint, random_calls
from eastwest.testing.estates import FOREIGN, random_estate

ESTATES, CALLS = 25, 20
"""For each of the parts below."""
STATEFUL = {
    DecisionCode.MTLS_REQUIRED,
    DecisionCode.CERTIFICATE_REFUSED,
    DecisionCode.SERVER_REFUSED,
    DecisionCode.TOKEN_USED,
    DecisionCode.CHECK_UNAVAILABLE,
    DecisionCode.RECORD_UNAVAILABLE,
    DecisionCode.CALLER_CONTAINED,
    DecisionCode.TOKEN_CONTAINED,
    DecisionCode.IDENTITY_CONTAINED,
}
"""Codes that no table can give: they are about connections, about what was before, and about who is cut off."""


@pytest.mark.parametrize("part", range(4))
def test_the_table_gives_cedars_answer(part: int) -> None:
    codes: Counter[DecisionCode] = Counter()
    for seed in range(part * ESTATES, (part + 1) * ESTATES):
        random = Random(seed)
        made = random_estate(random, report=0.4 if seed % 3 == 0 else 0.0)
        estate = load_estate(made.files)
        oracle = Oracle(estate)
        reporting = Oracle(estate, report=True) if seed % 3 == 0 else oracle
        compiled = compile_estate(estate)
        tables = {i.service: decode_sidecar(encode_sidecar(s)) for s in compiled.sidecars.values() for i in s.inbound}
        for call in random_calls(random, made, CALLS):
            asked = (call.caller, call.service, call.method, call.target, call.headers, call.presented)
            certificate = fingerprint(call.caller or "")
            expected = oracle.decide(*asked, certificate)
            assert lookup(tables[call.service], *asked, certificate) == expected, (seed, call)
            codes[expected[1]] += 1
            if seed % 3 == 0:
                reported = lookup(tables[call.service], *asked, certificate, report=True)
                assert reported == reporting.decide(*asked, certificate), (seed, call)
            if expected[0] is Verdict.ALLOW and (call.caller or "").startswith(f"spiffe://{FOREIGN}/"):
                assert tables[call.service].federated_callers == (FOREIGN,), "admitted, so its bundle is trusted"
    assert codes[DecisionCode.ALLOWED] > ESTATES * CALLS // 12, codes


def test_the_generators_reach_every_code() -> None:
    wanted = set(DecisionCode) - STATEFUL
    codes: set[DecisionCode] = set()
    for seed in range(1000, 1120):
        if codes == wanted:
            break
        random = Random(seed)
        made = random_estate(random)
        compiled = compile_estate(load_estate(made.files))
        tables = {i.service: s for s in compiled.sidecars.values() for i in s.inbound}
        for call in random_calls(random, made, 60):
            asked = (call.caller, call.service, call.method, call.target, call.headers, call.presented)
            codes.add(lookup(tables[call.service], *asked, fingerprint(call.caller or ""))[1])
    assert codes == wanted
