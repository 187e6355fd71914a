"""``policy lint``, ``policy test`` and ``blast`` on what a server has in force, its registrations by API included."""

import json
import shutil
from pathlib import Path

import pytest
from server_process import ServerProcess, eastwest

ESTATE = Path(__file__).parents[2] / "examples" / "estate"
TD = "saas.example"
CONSOLE = f"spiffe://{TD}/prod/platform/console"


def told(*words, code=0):
    done = eastwest(*words, "--json")
    assert done.returncode == code, done.stderr + done.stdout
    return json.loads(done.stdout)


@pytest.fixture
def server(tmp_path):
    made = ServerProcess(tmp_path / "data", TD)
    assert eastwest("server", "init", "--data", made.data, "--trust-domain", TD, "--port", 0).returncode == 0
    made.start()
    assert eastwest("apply", ESTATE, "--data", made.data).returncode == 0
    yield made
    made.kill()


def test_what_is_in_force_is_judged_and_not_what_lies_in_files(tmp_path, server):
    assert told("policy", "lint", "--data", server.data)["findings"] == []
    reached = told("blast", CONSOLE, "--data", server.data)
    assert reached == told("blast", CONSOLE, ESTATE)
    files = tmp_path / "estate"
    shutil.copytree(ESTATE, files)
    policies = files / "policies" / "commerce.cedar"
    policies.write_text(policies.read_text().replace('principal in Domain::"commerce",', "principal,", 1))
    assert told("policy", "test", files, "--data", server.data)["ok"]
    assert not told("policy", "test", files, code=1)["ok"]

    # The same identity by API, for processes of another kind on another node.
    node = f"spiffe://{TD}/spire/agent/join_token/somewhere"
    made = eastwest(
        *("entry", "create", "--data", server.data, "--spiffe-id", CONSOLE, "--parent-id", node),
        *("--selector", "unix:user:contractor"),
    )
    assert made.returncode == 0, made.stderr
    (finding,) = told("policy", "lint", "--data", server.data, code=1)["findings"]
    assert (finding["rule"], finding["workloads"]) == ("shared-identity", [CONSOLE])
    assert "unix:user:contractor" in finding["message"]

    server.kill()
    assert eastwest("blast", CONSOLE, "--data", server.data).returncode == 3
