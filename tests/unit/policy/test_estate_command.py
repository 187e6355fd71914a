"""``eastwest plan`` and ``eastwest estate`` as people run them, without a server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from eastwest.cli import estate
from eastwest.errors import Unavailable
from eastwest.policy.load import load_estate

EXAMPLE = Path(__file__).parents[3] / "examples" / "estate"
app = typer.Typer()
app.add_typer(estate.estate_app, name="estate")
app.command("plan")(estate.plan)
app.command("apply")(estate.apply)


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"EASTWEST_DATA": ""})


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "estate")
    return tmp_path / "estate"


def test_plan_of_a_good_estate() -> None:
    result = run("plan", EXAMPLE)
    assert result.exit_code == 0
    assert "6 workloads, 5 services, 17 operations, 10 policies" in result.output
    assert "nothing to compare with" in result.output


def test_plan_of_a_bad_estate_names_file_line_and_fix(copy) -> None:
    service = copy / "services" / "billing.yaml"
    service.write_text(service.read_text().replace("owner:", "ownr:"))
    result = run("plan", copy)
    assert result.exit_code == 1
    assert f"{copy}/services/billing.yaml:3:1: unknown field 'ownr' (did you mean 'owner'?)\n" in result.output
    result = run("plan", copy, "--json")
    assert result.exit_code == 1
    assert json.loads(result.output)["problems"][1]["line"] == 3


def test_plan_as_json() -> None:
    result = run("plan", EXAMPLE, "--json")
    assert result.exit_code == 0
    assert json.loads(result.output)["difference"] is None


def test_wrong_usage(tmp_path) -> None:
    assert run("plan", tmp_path / "none").exit_code == 2
    assert run("plan").exit_code == 2
    assert run("estate", "schema", "--kind", "x").exit_code == 2


def test_no_server(tmp_path) -> None:
    assert isinstance(run("plan", EXAMPLE, "--data", tmp_path).exception, Unavailable)
    assert isinstance(run("apply", EXAMPLE, "--data", tmp_path).exception, Unavailable)


def test_schemas() -> None:
    assert json.loads(run("estate", "schema").output)["anyOf"]
    assert "Service" in json.loads(run("estate", "schema", "--kind", "services").output)["$defs"]
    assert run("estate", "schema", "--cedar", EXAMPLE).output == load_estate(estate.read_directory(EXAMPLE)).schema


def test_reading_leaves_out_what_is_no_part_of_an_estate(copy) -> None:
    (copy / ".git").mkdir()
    (copy / ".git" / "config.yaml").write_text("x")
    (copy / "services" / ".billing.yaml.swp").write_text("x")
    files = estate.read_directory(copy)
    assert "README.md" not in files
    assert len(files) == 12
    load_estate(files)
