"""Whatever is typed into an estate, the answer is an estate or a list of mistakes, each with a place."""

from __future__ import annotations

from pathlib import Path
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eastwest.policy.load import load_estate
from eastwest.policy.problems import EstateInvalid
from eastwest.policy.table import compile_estate

ROOT = Path(__file__).parents[2] / "examples" / "estate"
FILES = {p.relative_to(ROOT).as_posix(): p.read_text() for p in sorted(ROOT.rglob("*.*")) if p.suffix != ".md"}
PIECES = list("""\n\t :{}[]()"';#|>\\~\x00\ufeffé""")
PIECES += ["", "- ", "&a", "*a", "!x ", "null", "0", "-1", "permit", "@id", "//", "true", "tenant", "? ", "<<: "]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(min_value=0, max_value=2**32))
def test_typing_errors(seed: int) -> None:
    random = Random(seed)
    files = dict(FILES)
    for _ in range(random.randint(1, 3)):
        name = random.choice(sorted(files))
        text = files[name]
        start = random.randrange(len(text) + 1)
        files[name] = text[:start] + random.choice(PIECES) + text[start + random.choice([0, 0, 1, 5, 40]) :]
    for problem in problems({k: v.encode() for k, v in files.items()}):
        assert problem.where.file in files
        assert problem.message


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.binary(max_size=200))
def test_any_bytes(name: str, data: bytes) -> None:
    files = {k: v.encode() for k, v in FILES.items()}
    problems({**files, name: data})


def problems(files: dict[str, bytes]):
    """What is wrong with the files; any other way to fail is a mistake of ours."""
    try:
        return compile_estate(load_estate(files)).problems
    except EstateInvalid as error:
        return error.problems
