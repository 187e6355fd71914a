"""How a command fails: a line for people, one JSON object for machines, and the same exit code."""

import io
import json
import sys
from pathlib import Path

import pytest

from eastwest.cli import transaction
from eastwest.cli.main import EXIT_REFUSED, EXIT_UNREACHABLE, main

EXIT_USAGE = 2


def fail(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["eastwest", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert told.out == ""
    return ended.value.code, told.err


@pytest.fixture
def nowhere(tmp_path):
    return ("node", "list", "--data", tmp_path)


def test_a_person_reads_one_line(monkeypatch, capsys, nowhere):
    code, told = fail(monkeypatch, capsys, *nowhere)
    assert code == EXIT_UNREACHABLE
    assert told == f"error: no server runs on {nowhere[-1]} (start it: eastwest server run --data {nowhere[-1]})\n"


def test_a_machine_reads_one_object(monkeypatch, capsys, nowhere):
    code, told = fail(monkeypatch, capsys, *nowhere, "--json")
    assert code == EXIT_UNREACHABLE
    assert json.loads(told) == {
        "error": {
            "code": "UNAVAILABLE",
            "message": f"no server runs on {nowhere[-1]}",
            "fix": f"start it: eastwest server run --data {nowhere[-1]}",
            "where": "",
        }
    }


def test_the_exact_code_is_for_both(monkeypatch, capsys, tmp_path):
    token = tmp_path / "token"
    token.write_text("x")
    words = ("transaction", "request", "--operation", "a:b:c", "--socket", "s", "--subject-token", token)
    code, told = fail(monkeypatch, capsys, *words)
    assert (code, told.partition(" (")[0]) == (EXIT_REFUSED, "error: what --subject-token names is no token")
    refused = transaction._refusal(
        403, {"code": "TENANT_MISSING", "error_description": "scope", "fix": "subject_token"}
    )
    monkeypatch.setattr("eastwest.cli.main.app", lambda **_: (_ for _ in ()).throw(refused))
    code, told = fail(monkeypatch, capsys)
    assert (code, told) == (EXIT_REFUSED, "error: TENANT_MISSING: --operation (--subject-token)\n")
    code, told = fail(monkeypatch, capsys, "--json")
    assert json.loads(told)["error"]["code"] == "TENANT_MISSING"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("witness", "run", "--config", "{dir}"), "{dir}: Is a directory"),
        (("log", "prove", "0", "--data", "{dir}"), "there is no log in {dir}/server/log"),
        (("agent", "receipt", "--data", "{dir}"), "there is no agent in {dir}"),
        (("evidence", "verify", "{dir}/none.zip"), "there is no {dir}/none.zip"),
        (("evidence", "verify", "{dir}", "--vkey", "none"), "there is no verifier key none"),
        (("evidence", "--data", "{dir}", "--principal", "spiffe://a/b"), "it is not said from when (give --from TIME)"),
        (("evidence", "--data", "{dir}"), "about whom and from when (give --principal ID and --from TIME)"),
        (("decisions", "export", "--ledger", "{dir}", "--out", "{dir}"), "{dir} is a directory (name a file in it)"),
        (("decisions", "export", "--ledger", "{dir}", "--out", "{dir}/n/o"), "no directory {dir}/n (make it: mkdir -p"),
        (("decisions", "--ledger", "{dir}"), "there is no ledger in {dir}"),
    ],
)
def test_a_path_that_leads_nowhere_is_named(monkeypatch, capsys, tmp_path, words, named):
    code, told = fail(monkeypatch, capsys, *(word.format(dir=tmp_path) for word in words))
    assert code == EXIT_REFUSED
    assert named.format(dir=tmp_path) in told


def test_where_it_is_stays_apart_from_the_message(monkeypatch, capsys, tmp_path):
    damaged = tmp_path / "a.pem"
    damaged.write_text("-----BEGIN CERTIFICATE-----")
    code, told = fail(monkeypatch, capsys, "certificate", "lint", damaged, "--json")
    assert code == EXIT_REFUSED
    assert json.loads(told)["error"]["where"] == str(damaged)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("node", "list", "--no-such"), "No such option"),
        (("node", "show", "--data", "x"), "Missing argument"),
        (("entry", "explain", "--data", "x"), "give either --pid"),
    ],
)
def test_wrong_usage_is_told_in_the_same_form(monkeypatch, capsys, words, message):
    code, told = fail(monkeypatch, capsys, *words, "--json")
    error = json.loads(told)["error"]
    assert (code, error["code"]) == (2, "USAGE")
    assert message in error["message"]
    assert error["fix"].endswith("--help")
    code, told = fail(monkeypatch, capsys, *words)
    assert code == 2
    assert not told.startswith("{")


def test_a_check_that_finds_something_keeps_its_exit_code(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["eastwest", "server", "check", "--data", str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == EXIT_REFUSED
    assert json.loads(capsys.readouterr().out)["ok"] is False


ESTATE = Path(__file__).parents[3] / "examples" / "estate"
CONSOLE = "spiffe://saas.example/prod/platform/console"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("policy", "impact", ESTATE), "say which ledger"),
        (("policy", "impact", ESTATE, "--data", "none", "--window", "banana"), "'banana' is no time"),
        (("policy", "suggest"), "say which ledger"),
        (("decisions", "search"), "say which ledger"),
        (("explain", "--caller", "console", "--operation", "billing:invoices:list", ESTATE), "'console' is not a"),
        (("explain", "--caller", CONSOLE, "--service", "billing", "--method", "GET", ESTATE), "--method and --path"),
        (("explain", "--caller", CONSOLE, "--operation", "x", ESTATE, "--data", "none"), "not both"),
        (("contain", CONSOLE, "--data", "none", "--reason", "x"), "nobody is there to be asked"),
        (("mtls", "permissive", "billing", "--data", "none", "--until", "soon"), "'soon' is no date"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage_and_no_finding(monkeypatch, capsys, words, told):
    monkeypatch.delenv("EASTWEST_DATA", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    code, error = fail(monkeypatch, capsys, *words, "--json")
    assert code == EXIT_USAGE
    assert json.loads(error)["error"]["code"] == "USAGE"
    assert told in json.loads(error)["error"]["message"]
