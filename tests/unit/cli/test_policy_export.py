"""``eastwest policy export`` as people run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eastwest.cli import policy
from eastwest.errors import NotFound
from eastwest.policy.exports.formats import FORMATS
from eastwest.policy.problems import EstateInvalid

EXAMPLE = Path(__file__).parents[3] / "examples" / "estate"


def run(*arguments):
    return CliRunner().invoke(policy.app, ["export", *map(str, arguments)], env={"EASTWEST_DATA": ""})


@pytest.mark.parametrize("wanted", FORMATS)
def test_every_format_is_printed_and_written(wanted, tmp_path):
    printed = run(EXAMPLE, "--format", wanted)
    assert printed.exit_code == 0, printed.output
    assert f"Made by eastwest policy export --format {wanted} from policy version" in printed.stdout
    written = run(EXAMPLE, "--format", wanted, "--out", tmp_path / "there")
    (file,) = (tmp_path / "there").iterdir()
    assert written.stdout == f"{file}\n"
    assert file.read_text() == printed.stdout
    assert json.loads(run(EXAMPLE, "--format", wanted, "--json").stdout)["files"] == {file.name: printed.stdout}


def test_what_is_narrower_is_told(tmp_path):
    result = run(EXAMPLE, "--format", "linkerd", "--service", "notification")
    told = "notification:messages:send is denied to"
    assert f"narrower: {told}" in result.stderr
    assert f"# narrower: {told}" in result.stdout
    report = json.loads(run(EXAMPLE, "--format", "linkerd", "--json").stdout)
    assert {n["operation"] for n in report["narrower"]} >= {"notification:messages:send"}


def test_wrong_usage(tmp_path):
    assert run(EXAMPLE, "--format", "word").exit_code == 2
    assert run("--format", "rego").exit_code == 2
    both = run(EXAMPLE, "--data", tmp_path)
    assert both.exit_code == 2
    assert "not both" in " ".join(both.output.replace("│", " ").split())
    elsewhere = CliRunner().invoke(policy.app, ["export", str(EXAMPLE)], env={"EASTWEST_DATA": str(tmp_path)})
    assert elsewhere.exit_code == 0, "what is set for all commands is no contradiction"
    assert isinstance(run(EXAMPLE, "--service", "biling").exception, NotFound)
    (tmp_path / "estate.yaml").write_text("trust_domain: x\n")
    assert isinstance(run(tmp_path).exception, EstateInvalid)
