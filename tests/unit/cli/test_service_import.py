"""``eastwest service import`` as people run it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from typer.testing import CliRunner

from eastwest.cli import estate, service

ROOT = Path(__file__).parents[3]
DOCUMENTS = ROOT / "tests/unit/policy_imports/documents"
NEW = (
    *("--workload", "spiffe://saas.example/prod/platform/console", "--owner", "group:platform"),
    *("--domain", "platform", "--port", "8555", "--upstream", "/run/shop/app.sock"),
)


def run(*arguments, **options):
    return CliRunner().invoke(service.app, ["import", *map(str, arguments)], **options)


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ROOT / "examples/estate", tmp_path / "estate")
    return tmp_path / "estate"


def test_a_new_file_is_part_of_the_estate(copy):
    file = copy / "services/shop.yaml"
    result = run("openapi", DOCUMENTS / "shop.yaml", "--service", "shop", "--into", file, *NEW)
    assert result.exit_code == 0, result.output
    assert f"{file} written; 6 operations: 6 appeared, 1 changed, 0 vanished, 0 left out\n" in result.output
    assert (
        "  + shop:order:create  POST /v1/stores/{store}/orders  (not classified, suggested: mutate)\n" in result.output
    )
    assert file.stat().st_mode & 0o777 == 0o644
    app = estate.typer.Typer()
    app.command("plan")(estate.plan)
    plan = CliRunner().invoke(app, [str(copy)], env={"EASTWEST_DATA": ""})
    assert plan.exit_code == 0, plan.output
    again = run("openapi", DOCUMENTS / "shop.yaml", "--service", "shop", "--into", file, "--check")
    assert again.exit_code == 0
    assert "stays as it is" in again.output


def test_check_and_dry_run_write_nothing(copy):
    file = copy / "services/billing.yaml"
    before = file.read_bytes()
    file.chmod(0o640)
    arguments = ("openapi", DOCUMENTS / "phone.yaml", "--service", "billing", "--into", file)
    dry = run(*arguments, "--dry-run")
    assert (dry.exit_code, file.read_bytes()) == (0, before)
    assert "would change; 8 operations: 3 appeared" in dry.output
    check = run(*arguments, "--check", "--json")
    assert (check.exit_code, file.read_bytes()) == (1, before)
    report = json.loads(check.output)
    assert report["changed"] is True
    assert [len(report[key]) for key in ("appeared", "vanished", "altered", "left_out")] == [3, 5, 0, 2]
    assert report["appeared"][0] == {
        "name": "billing:account:list",
        "what": "GET /2010-04-01/Accounts.json",
        "sensitivity": None,
        "suggested": "read",
    }
    assert run(*arguments).exit_code == 0
    assert file.read_bytes().startswith(before)
    assert file.stat().st_mode & 0o777 == 0o640, "a file keeps its mode"


def test_without_a_file_the_text_is_printed():
    data = (DOCUMENTS / "shop.yaml").read_bytes()
    result = run("openapi", "-", "--service", "shop", input=data)
    assert result.exit_code == 0
    assert result.stdout.startswith("service: shop\ntenant: {path: store}\noperations:\n  - name: shop:orders:list\n")
    assert "standard input:30:1: note: 1 webhooks" in result.stderr
    whole = run("openapi", "-", "--service", "shop", *NEW, input=data)
    assert "listen: {port: 8555, protocol: http, mtls: strict}\n" in whole.stdout
    as_json = json.loads(run("openapi", "-", "--service", "shop", "--json", input=data).stdout)
    assert as_json["text"] == result.stdout


def test_all_mistakes_are_told_with_their_places(tmp_path):
    wrong = tmp_path / "api.yaml"
    wrong.write_text("openapi: 3.1.0\npaths:\n  /a: {get: {x-eastwest-data: A}}\n  /b: [c]\n")
    result = run("openapi", wrong, "--service", "shop")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"{wrong}:3:14: x-eastwest-data: 'A' is not a name (use a-z, 0-9 and -, at most 63 characters)",
        f"{wrong}:4:3: '/b' must be a mapping (write its methods, such as get:)",
    ]
    missing = run("openapi", DOCUMENTS / "shop.yaml", "--service", "shop", "--into", tmp_path / "new.yaml")
    assert missing.exit_code == 1
    assert "--workload: a new service file needs its workload (give --workload, or" in missing.stderr
    assert len(missing.stderr.splitlines()) == 5
    assert not (tmp_path / "new.yaml").exists()
    assert run("openapi", tmp_path / "none.yaml", "--service", "shop").exit_code == 2


def test_descriptors(tmp_path, copy):
    made = FileDescriptorSet()
    file = made.file.add(name="notify.proto", package="notify.v1")
    file.service.add(name="Notify").method.add(name="Send")
    (tmp_path / "api.binpb").write_bytes(made.SerializeToString())
    into = copy / "services/notification.yaml"
    before = into.read_text()
    arguments = ("protobuf", tmp_path / "api.binpb", "--service", "notification", "--into", into)
    assert run(*arguments, "--package", "notify.v2").exit_code == 1
    result = run(*arguments, "--package", "notify.v1")
    assert result.exit_code == 0, result.output
    assert into.read_text() == before + (
        "  - name: notification:notify:send\n"
        "    match: {grpc: notify.v1.Notify/Send}\n"
        "    # suggested: sensitivity: mutate\n"
    )


def test_a_link_stays_a_link(copy, tmp_path):
    link = tmp_path / "billing.yaml"
    link.symlink_to(copy / "services/billing.yaml")
    assert run("openapi", DOCUMENTS / "phone.yaml", "--service", "billing", "--into", link).exit_code == 0
    assert link.is_symlink()
    assert "billing:account:list" in (copy / "services/billing.yaml").read_text()


def test_a_new_file_suggests_where_the_tenant_is(copy, tmp_path):
    document = tmp_path / "api.yaml"
    document.write_text("openapi: 3.1.0\npaths:\n  /t/{tenant_id}/things: {get: {operationId: listThings}}\n")
    file = copy / "services/shop.yaml"
    result = run("openapi", document, "--service", "shop", "--into", file, *NEW)
    assert f"{file}: warning: paths have {{tenant_id}}, and nothing says that this is the tenant" in result.output
    comment = "# suggested: tenant: {path: tenant_id}\noperations:\n"
    assert comment in file.read_text()
    assert comment in run("openapi", document, "--service", "shop").stdout
    file.write_text(file.read_text().replace("# suggested: tenant:", "tenant:"))
    again = run("openapi", document, "--service", "shop", "--into", file, "--check")
    assert again.exit_code == 0
    assert "warning" not in again.output


def test_an_operation_that_is_unclassified_again_is_told(copy, tmp_path):
    document = tmp_path / "api.yaml"
    paths = "openapi: 3.1.0\npaths:\n  /admin/users/{user}: {delete: {x-eastwest-name: 'admin:users:read'}}\n"
    document.write_text(paths)
    result = run("openapi", document, "--service", "admin", "--into", copy / "services/admin.yaml")
    assert "  ~ admin:users:read  sensitivity: restricted-read -> not classified\n" in result.output
    assert "  ~ admin:users:read  method: GET -> DELETE\n" in result.output
    assert "warning: admin:users:read was classified as restricted-read when it was GET" in result.output
    again = run("openapi", document, "--service", "admin", "--into", copy / "services/admin.yaml", "--check", "--json")
    assert json.loads(again.output)["altered"] == []
