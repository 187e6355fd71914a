"""Rows that a real Envoy's log became, replayed: on their own rules they give themselves, on others Cedar's answer."""

from __future__ import annotations

from collections import Counter
from random import Random

from equality_world import TCP, World

from eastwest.errors import Error
from eastwest.policy.enforcement import DecisionCode, MtlsMode, Verdict
from eastwest.policy.load import load_estate
from eastwest.policy.oracle import Oracle
from eastwest.policy.replay import Answer, Input, Replayer, Unsure
from eastwest.policy.table import compile_estate
from eastwest.testing.recorded import inbounds, random_edit


class Recording(World):
    """Keeps the rows that it compared."""

    def __init__(self, root) -> None:
        super().__init__(root)
        self.kept = []
        self.files: dict[str, bytes] = {}

    async def enforce(self, files, *arguments, **named):
        self.files = files
        return await super().enforce(files, *arguments, **named)

    def _compare_row(self, estate, call, expected, reference) -> None:
        self.kept.append((call, expected, self._rows[reference]))
        super()._compare_row(estate, call, expected, reference)


async def test_rows_of_envoy_replay_to_what_cedar_says(tmp_path_factory) -> None:
    world = Recording(tmp_path_factory.mktemp("w"))
    told: Counter[str] = Counter()
    try:
        for seed in (501, 502):
            world.kept.clear()
            await world.random_calls(seed, 150)
            assert not world.count.differences
            random = Random(seed)
            own = Replayer(compile_estate(load_estate(world.files)))
            for call, _, row in world.kept:
                answer = own.decide(Input.of(row))
                assert answer == Answer(row.verdict, row.code, row.policy, row.operation, row.enforced), (seed, call)
            for _ in range(4):
                told += replayed(world, random_edit(random, world.files), own)
    finally:
        await world.close()
    sure = sum(count for code, count in told.items() if code in DecisionCode.__members__)
    assert sure > 0.7 * told.total() > 300, told


def replayed(world, files, own) -> Counter[str]:
    """What became of every row on other rules; each answer is Cedar's."""
    told: Counter[str] = Counter()
    try:
        estate = load_estate(files)
        compiled = compile_estate(estate)
    except Error:
        return told
    oracle, candidate, places = Oracle(estate), Replayer(compiled), inbounds(compiled.sidecars)
    for call, expected, row in world.kept:
        if call.service == TCP or expected.request is None:
            continue
        found = candidate.decide(Input.of(row), own)
        if isinstance(found, Unsure):
            told[found.reason] += 1
            continue
        request = expected.request
        certificate = world.certificate(call.caller) if call.caller else ""
        question = (call.caller, call.service, request.method, request.matched, request.headers, call.presented)
        verdict, code, policy, name = oracle.decide(*question, certificate)
        inbound = places[call.service][1]
        operation = next((o for o in inbound.operations if o.name == name), None)
        enforced = inbound.mode is MtlsMode.STRICT
        once = verdict is Verdict.ALLOW and operation is not None and operation.single_use and enforced
        if row.code is DecisionCode.TOKEN_USED and once:
            verdict, code, policy = Verdict.DENY, DecisionCode.TOKEN_USED, ""
        if found.code is DecisionCode.CERTIFICATE_REFUSED:
            assert verdict is Verdict.DENY
        else:
            assert found == Answer(verdict, code, policy, name, enforced), call
        told[found.code] += 1
    return told
