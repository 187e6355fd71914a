"""What was found out about one estate is never wrong about another: compiling with a memory gives the same tables."""

from __future__ import annotations

from pathlib import Path
from random import Random

import cedarpy
import msgspec
import pytest

from eastwest.policy import cedar
from eastwest.policy.cells import MAX_REMEMBERED, Memory
from eastwest.policy.load import load_estate
from eastwest.policy.problems import EstateInvalid, Findings
from eastwest.policy.schema import cedar_schema
from eastwest.policy.table import CompiledPolicy, compile_estate
from eastwest.testing.estates import random_estate

REFERENCE = Path(__file__).parents[1] / "golden" / "policy" / "reference"
EDITS = (
    ("policies/commerce.cedar", "principal.tenants.contains(context.tenant)", 'context.tenant == "acme"'),
    ("workloads/prod.yaml", '["acme", "globex"]', '["acme", "initech"]'),
    ("services/billing.yaml", "sensitivity: restricted-read", "sensitivity: read"),
    ("services/billing.yaml", "owner: group:commerce", "owner: group:platform"),
    ("policies/platform.cedar", "principal.environment == resource.environment", "principal.domain == resource.domain"),
)


def said(compiled: CompiledPolicy) -> CompiledPolicy:
    """All but how often Cedar was asked."""
    return msgspec.structs.replace(compiled, summary=msgspec.structs.replace(compiled.summary, asked=0))


def reference() -> dict[str, bytes]:
    return {p.relative_to(REFERENCE).as_posix(): p.read_bytes() for p in REFERENCE.rglob("*") if p.is_file()}


@pytest.mark.parametrize("seed", range(3))
def test_a_memory_of_other_estates_changes_nothing(seed):
    random, memory = Random(seed), Memory()
    compiled = 0
    for _ in range(15):
        estate = load_estate(random_estate(random).files)
        try:
            fresh = compile_estate(estate)
        except EstateInvalid:
            with pytest.raises(EstateInvalid):
                compile_estate(estate, memory)
            continue
        compiled += 1
        assert said(compile_estate(estate, memory)) == said(fresh)
        again = compile_estate(estate, memory)
        assert said(again) == said(fresh)
        assert again.summary.asked == 0
    assert compiled > 5


def test_a_version_and_its_next_share_what_did_not_change():
    memory, files = Memory(), reference()
    last = compile_estate(load_estate(files), memory)
    for path, old, new in EDITS:
        name = path if path in files else next(n for n in sorted(files) if n.startswith(path.partition("/")[0] + "/"))
        changed = {**files}
        for each in [name, *(n for n in files if n.partition("/")[0] == path.partition("/")[0])]:
            if old.encode() in files[each]:
                changed[each] = files[each].replace(old.encode(), new.encode(), 1)
                break
        assert changed != files, f"{old!r} is in no file of {path}"
        estate = load_estate(changed)
        compiled = compile_estate(estate, memory)
        assert said(compiled) == said(compile_estate(estate))
        kept = [name for name, sidecar in compiled.sidecars.items() if sidecar is last.sidecars.get(name)]
        for workload in kept:
            assert compiled.sidecars[workload].version == last.sidecars[workload].version
    assert said(compile_estate(load_estate(files), memory)) == said(compile_estate(load_estate(files)))


def test_only_sidecars_that_enforce_something_else_have_another_version():
    files = reference()
    name = "policies/commerce.cedar"
    before = compile_estate(load_estate(files))
    text = files[name].replace(b"principal.tenants.contains(context.tenant)", b'context.tenant == "acme"', 1)
    after = compile_estate(load_estate({**files, name: text}))
    assert before.version != after.version
    other = {name for name, sidecar in after.sidecars.items() if sidecar.version != before.sidecars[name].version}
    assert other == {"spiffe://saas.example/prod/commerce/billing"}
    reason = files[name].replace(b'@reason("', b'@reason("as agreed: ', 1)
    assert reason != files[name]
    same = compile_estate(load_estate({**files, name: reason}))
    assert same.version != before.version
    assert same.sidecars == before.sidecars


def test_too_much_is_forgotten(monkeypatch):
    assert MAX_REMEMBERED > 0
    monkeypatch.setattr("eastwest.policy.cells.MAX_REMEMBERED", 3)
    memory, estate = Memory(), load_estate(reference())
    first, second = compile_estate(estate, memory), compile_estate(estate, memory)
    assert second.summary.asked == first.summary.asked > 0
    assert said(first) == said(second)


@pytest.mark.parametrize("seed", range(2))
def test_a_policy_s_part_of_the_schema_validates_as_the_whole_does(seed):
    random = Random(seed)
    found = 0
    for _ in range(6):
        made = random_estate(random)
        estate = load_estate(made.files)
        schema = cedar_schema(estate.services, estate.callers)
        for policy in estate.policies:
            # Mistakes as well: attributes that nobody has, comparisons of different kinds.
            for old, new in (("", ""), ("principal.", "principal.no_such_"), ("==", "<"), ("context.", "context.un")):
                text = policy.text.replace(old, new) if old else policy.text
                parsed = cedar.read_policies("policies/x.cedar", text, Findings())
                for one in parsed:
                    part = cedar._SchemaParts(schema).for_policy(one)
                    whole = _complaints(text, schema)
                    assert _complaints(text, part) == whole
                    found += bool(whole)
    assert found > 10


def _complaints(text: str, schema: str) -> set[str]:
    """What is complained of, whichever operation it was noticed at."""
    return {error.error.partition(" for Action::")[0] for error in cedarpy.validate_policies(text, schema).errors}
