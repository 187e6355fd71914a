"""`eastwest verify run` on processes as they run in earnest: nothing is found where nothing is wrong, and drift is.

All eight drifts are in tests/interop/test_drifts.py; here are those that most likely come about by themselves.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from drift_mesh import FORBID, TD, WEB, DriftMesh

from eastwest.errors import NotFound


@pytest.fixture(scope="module")
def mesh() -> Iterator[DriftMesh]:
    with tempfile.TemporaryDirectory(prefix="ew-") as place:
        made = DriftMesh(Path(place))
        try:
            made.start()
            yield made
        finally:
            made.stop()


def test_a_clean_mesh_has_no_drift_and_canaries_leave_marked_rows(mesh: DriftMesh):
    mesh.prepare()
    report = json.loads(mesh.eastwest("verify", "run", "--json").stdout)
    assert (report["findings"], report["notes"]) == ([], [])
    assert (report["points"], report["reached"], report["sidecars"]) == (1, 1, 1)
    assert report["checks"] == 12
    assert mesh.requests() == []
    rows = canary_rows(mesh)
    proved = {"ALLOWED", "OPERATION_NOT_PERMITTED", "TENANT_NOT_PERMITTED", "UNKNOWN_CALLER"}
    assert {row["code"] for row in rows} >= proved
    assert WEB not in {row.get("caller") for row in rows}
    refused = {row["code"] for row in rows if not row.get("caller") or row.get("claimed")}
    assert refused == {"MTLS_REQUIRED", "CERTIFICATE_REFUSED"}  # what came without a name, or with a forged one
    for words in (("decisions", "top", "--by", "code"), ("decisions", "edges"), ("failures",)):
        told = mesh.ask(*words, "--json", ok=(0, 1))
        assert json.loads(told)
        assert not [code for code in ("/eastwest/canary/", "CERTIFICATE_REFUSED", "ALLOWED") if code in told], words
    plain = json.loads(mesh.ask("decisions", "--json"))
    assert not [row for row in plain["decisions"] if row.get("canary")]
    assert plain["canaries_left_out"] >= len(rows)
    entries = mesh.ask("log", "search", "--kind", "verify.finished", "--json")
    assert report["findings_sha256"] in entries


def test_a_canary_has_no_life_outside_a_run(mesh: DriftMesh):
    mesh.eastwest("entry", "create", "--spiffe-id", f"spiffe://{TD}/eastwest/canary/x", ok=(1, 2))
    with pytest.raises(NotFound, match="no service 'nowhere'"):
        mesh.verify(services=("nowhere",))


def test_a_second_port_is_found_unless_it_is_allowed(mesh: DriftMesh):
    mesh.plant("bypass-port")
    try:
        assert mesh.verify(mesh.beside)["findings"] == []
        assert [each["drift"] for each in mesh.verify()["findings"]] == ["bypass-port"]
        shown = mesh.ask("verify", "show", ok=(1,))
        assert f"bypass-port  shop     shop-1  no listener beside the guarded one  127.0.0.1:{mesh.beside} of" in shown
    finally:
        mesh.mend("bypass-port")


def test_runs_one_upon_the_other_are_not_confused(mesh: DriftMesh):
    for _ in range(3):  # the point may still be forgetting the canaries of the run before
        assert mesh.verify()["findings"] == []
    mesh.apply(more=FORBID)  # and it may not have this yet
    assert mesh.verify()["findings"] == []
    mesh.apply()
    assert mesh.verify()["findings"] == []


@pytest.mark.parametrize(
    ("planted", "drift"),
    [
        ("agent-gone", "stale-point"),
        ("permissive-left-on", "permissive-left-on"),
        ("missing-read-rule", "missing-read-rule"),
    ],
)
def test_drift_is_found_and_named(mesh: DriftMesh, planted: str, drift: str):
    mesh.plant(planted)
    began = time.monotonic()
    report = mesh.verify()
    assert time.monotonic() - began < 30
    assert {finding["drift"] for finding in report["findings"]} == {drift}
    (finding,) = report["findings"]
    assert finding["service"] == "shop"
    assert all(finding[name] for name in ("point", "expected", "happened", "cause", "fix"))
    assert mesh.requests() == []
    if planted == "agent-gone":
        mesh.apply()  # and the others each begin with an agent of their own


def canary_rows(mesh: DriftMesh) -> list[dict]:
    """The run's rows, once they have come in."""
    until = time.monotonic() + 20
    while True:
        told = mesh.ask("decisions", "search", "--canary", "--limit", 100, "--json", ok=(0, 1))
        rows = json.loads(told)["decisions"]
        if len(rows) >= 10 or time.monotonic() > until:
            return rows
        time.sleep(0.2)
