"""The documentation says what is there: links lead somewhere, names exist, tables are complete."""

import ast
import re
from pathlib import Path

import msgspec
import pytest

from eastwest.agent.config import AgentConfig
from eastwest.cli.main import COMMANDS
from eastwest.errors import Code
from eastwest.ledger.failure import CAUSES
from eastwest.log.kinds import KINDS
from eastwest.policy import estate
from eastwest.policy.enforcement import DecisionCode
from eastwest.policy.failures import FailureClass
from eastwest.server.config import ServerFile

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "src/eastwest"
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"), ROOT / "bench/README.md"]
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
MAP = (ROOT / "docs/map.md").read_text()


def reference(name):
    return (ROOT / f"docs/reference/{name}.md").read_text()


def prose(text):
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """The anchors that headings get."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(prose(page.read_text())):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{link}: no such heading"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    linked = {(ROOT / "docs" / link.partition("#")[0]).resolve() for link in LINK.findall(index)}
    pages = {page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "adr"}
    assert pages - linked == {ROOT / "docs/README.md"}


def test_the_map_names_what_exists():
    mentions = re.findall(r"`([\w/]+\.py)(?::(\w+))?`", MAP)
    assert len(mentions) > 80
    for file, name in mentions:
        if file == "file.py":  # how to read the page
            continue
        path = SOURCE / file if not file.startswith("tests/") else ROOT / file
        assert path.is_file(), file
        if name:
            assert name in top_level_names(path), f"{file} has no {name}"


def top_level_names(path):
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def test_the_map_has_every_package():
    packages = {str(init.parent.relative_to(SOURCE)) for init in SOURCE.glob("*/__init__.py")}
    packages |= {"cli/demo", "server/spire"}
    assert packages - {"api"} <= set(re.findall(r"^\| `([\w/]+)`", MAP, re.MULTILINE))


@pytest.mark.parametrize(("page", "struct"), [("server", ServerFile), ("agent", AgentConfig)])
def test_every_setting_is_explained_with_its_default(page, struct):
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", reference(page), re.MULTILINE))
    needed = {"trust_domain", "server"}
    required = {field.name: "x" for field in msgspec.structs.fields(struct) if field.required}
    for name, default in msgspec.structs.asdict(struct(**required)).items():
        if name in required:
            continue
        shown = rows[name].strip("`")
        if default is None:
            assert shown == "none", name
        elif not (name in needed and shown == "(needed)"):
            assert shown.strip('"') == (str(default).lower() if isinstance(default, bool) else str(default)), name
    assert set(struct.__struct_fields__) <= set(rows)


@pytest.mark.parametrize("name", [*FailureClass, *CAUSES])
def test_every_class_and_cause_of_a_failure_is_explained(name):
    assert f"`{name}`" in reference("codes")


@pytest.mark.parametrize("code", [*DecisionCode, *Code])
def test_every_code_is_explained(code):
    assert f"\n| `{code}` |" in reference("codes")


def test_every_noun_has_a_row():
    rows = re.findall(r"^\| `(\w+)", reference("cli"), re.MULTILINE)
    assert set(COMMANDS) <= set(rows)


@pytest.mark.parametrize(
    "struct",
    [
        estate.Settings,
        estate.Environment,
        estate.NodeGroup,
        estate.Administrator,
        estate.Profile,
        estate.Federation,
        estate.ForeignWorkload,
        estate.ForeignService,
        estate.Workload,
        estate.Service,
        estate.Listen,
        estate.Operation,
        estate.Waiver,
        estate.Slo,
        estate.SloEdge,
    ],
)
def test_every_field_of_the_estate_is_explained(struct):
    page = reference("estate")
    for name in struct.__struct_fields__:
        assert re.search(rf"`(\w+\.)?{name}(\[\])?`", page), f"{struct.__name__}.{name}"


def test_every_kind_of_log_entry_is_explained():
    """That nothing else is appended is a matter of tests/unit/log/test_log_kinds.py."""
    assert len(KINDS) > 40
    assert [kind for kind in KINDS if f"`{kind}`" not in reference("log")] == []
