"""Replaying the record gives the oracle's answer to the call that was recorded, or says why it cannot: never another.

Random estates, random edits of them, random calls: rows as sidecars and our library write them, tokens and tenants
included, judged by Cedar straight and by the replay.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from random import Random

import msgspec
import pytest

from eastwest.errors import Error
from eastwest.policy.enforcement import DecisionCode, MtlsMode, Verdict
from eastwest.policy.load import load_estate
from eastwest.policy.oracle import Oracle
from eastwest.policy.replay import Answer, Input, Replayer, Unsure
from eastwest.policy.table import compile_estate
from eastwest.testing.calls import fingerprint, random_calls
from eastwest.testing.estates import random_estate
from eastwest.testing.recorded import Question, flooded, inbounds, random_edit, recorded

NOW = datetime(2026, 11, 22, tzinfo=UTC)
ESTATES, EDITS, CALLS = 5, 2, 30
"""For each of the parts below."""


def rows_of(random: Random, made, compiled, calls: int):
    """Calls with the rows that are written of them."""
    places = inbounds(compiled.sidecars)
    for number, made_call in enumerate(random_calls(random, made, calls)):
        call = replace(made_call, caller=None) if random.random() < 0.03 else made_call
        sidecar, inbound = places[call.service]
        asked = Question.of(call, fingerprint(call.caller or ""), tcp=inbound.protocol == "tcp")
        if asked is None:
            continue
        used = random.random() < 0.3
        sensor = random.choice(("envoy", "sdk"))
        yield asked, recorded(sidecar, asked, NOW, sensor=sensor, reference=f"r{number}", used=used)


def expected(oracle: Oracle, inbound, asked: Question, row) -> Answer:
    """Cedar's answer, as the service's mode makes it, where the token is used as it was when recorded."""
    verdict, code, policy, name = oracle.decide(*asked.arguments)
    enforced = inbound.mode is MtlsMode.STRICT
    operation = next((o for o in inbound.operations if o.name == name), None)
    if row.code is DecisionCode.TOKEN_USED and verdict is Verdict.ALLOW and operation.single_use and enforced:
        verdict, code, policy = Verdict.DENY, DecisionCode.TOKEN_USED, ""
    return Answer(verdict, code, policy, name, enforced)


@pytest.mark.parametrize("part", range(3))
def test_a_replay_is_exact_or_says_that_it_is_not(part: int) -> None:
    told: Counter[str] = Counter()
    for seed in range(part * ESTATES, (part + 1) * ESTATES):
        random = Random(seed)
        made = random_estate(random)
        before = compile_estate(load_estate(made.files))
        rows = list(rows_of(random, made, before, CALLS))
        known = Replayer(before)
        for _ in range(EDITS):
            try:
                estate = load_estate(random_edit(random, made.files))
                after = compile_estate(estate)
            except Error:
                continue
            oracle, replayer, places = Oracle(estate), Replayer(after), inbounds(after.sidecars)
            for asked, row in rows:
                kept = flooded(row) if row.verdict is Verdict.DENY and random.random() < 0.2 else row
                found = replayer.decide(Input.of(kept), known)
                if isinstance(found, Unsure):
                    told[found.reason] += 1
                    continue
                truth = expected(oracle, places[row.service][1], asked, row)
                if found.code is DecisionCode.CERTIFICATE_REFUSED:
                    assert truth.verdict is Verdict.DENY, "whose bundle is trusted no more is not allowed anything"
                    continue
                assert found == truth, (seed, asked, kept)
                told[found.code] += 1
    sure = sum(count for code, count in told.items() if code in DecisionCode.__members__)
    assert sure > 0.85 * told.total(), told
    assert {"ALLOWED", "OPERATION_NOT_PERMITTED", "UNLISTED_OPERATION", "UNKNOWN_CALLER"} <= told.keys()


def test_on_its_own_rules_a_row_gives_what_it_says() -> None:
    codes: Counter[DecisionCode] = Counter()
    for seed in range(100, 120):
        random = Random(seed)
        made = random_estate(random)
        files = random_edit(random, made.files)
        try:
            compiled = compile_estate(load_estate(files))
        except Error:
            files, compiled = made.files, compile_estate(load_estate(made.files))
        if inbounds(compiled.sidecars).keys() != set(made.services):
            continue
        replayer = Replayer(compiled)
        for _, row in rows_of(random, made, compiled, 40):
            answer = replayer.decide(Input.of(row))
            assert answer == Answer(row.verdict, row.code, row.policy, row.operation, row.enforced), (seed, row)
            codes[row.code] += 1
    assert len(codes) >= 12, codes


def test_a_flood_is_decided_only_where_what_it_leaves_out_makes_no_difference() -> None:
    decided = unsure = 0
    for seed in range(200, 206):
        random = Random(seed)
        made = random_estate(random)
        compiled = compile_estate(load_estate(made.files))
        replayer = Replayer(compiled)
        for _, row in rows_of(random, made, compiled, 40):
            if row.verdict is Verdict.DENY:
                answer = replayer.decide(Input.of(msgspec.structs.replace(flooded(row), count=7)))
                if isinstance(answer, Answer):
                    assert (answer.code, answer.operation) == (row.code, row.operation)
                    decided += 1
                else:
                    unsure += 1
    assert decided > unsure > 0
