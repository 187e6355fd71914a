"""`eastwest verify run` on processes as they run in earnest: nothing is found where nothing is wrong, and drift is.

All eight drifts are in tests/interop/test_drifts.py; here are those that most likely come about by themselves.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from drift_mesh import TD, WEB, DriftMesh


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
    report = mesh.verify()
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
        told = mesh.eastwest(*words, "--json", ok=(0, 1)).stdout
        assert json.loads(told)
        assert not [code for code in ("/eastwest/canary/", "CERTIFICATE_REFUSED", "ALLOWED") if code in told], words
    entries = mesh.eastwest("log", "search", "--kind", "verify.finished", "--json").stdout
    assert report["findings_sha256"] in entries


def test_a_canary_has_no_life_outside_a_run(mesh: DriftMesh):
    refused = mesh.eastwest("entry", "create", "--spiffe-id", f"spiffe://{TD}/eastwest/canary/x", ok=(1, 2))
    assert refused.returncode != 0
    asked = mesh.eastwest("verify", "run", "--service", "nowhere", ok=(1,))
    assert "no service 'nowhere'" in asked.stderr


def test_a_second_port_is_found_unless_it_is_allowed(mesh: DriftMesh):
    mesh.plant("bypass-port")
    try:
        assert mesh.verify(mesh.beside)["findings"] == []
        shown = mesh.eastwest("verify", "run", ok=(1,))
        assert (
            f"bypass-port  shop     shop-1  no listener beside the guarded one  127.0.0.1:{mesh.beside} of"
            in shown.stdout
        )
        assert mesh.eastwest("verify", "show", ok=(1,)).stdout == shown.stdout
    finally:
        mesh.mend("bypass-port")


@pytest.mark.parametrize("drift", ["stale-point", "permissive-left-on", "missing-read-rule"])
def test_drift_is_found_and_named(mesh: DriftMesh, drift: str):
    mesh.plant(drift)
    began = time.monotonic()
    report = mesh.verify()
    assert time.monotonic() - began < 30
    assert {finding["drift"] for finding in report["findings"]} == {drift}
    (finding,) = report["findings"]
    assert finding["service"] == "shop"
    assert all(finding[name] for name in ("point", "expected", "happened", "cause", "fix"))
    assert mesh.requests() == []
    if drift == "stale-point":  # the others each begin with an agent of their own
        mesh.mend(drift)


def canary_rows(mesh: DriftMesh) -> list[dict]:
    """The run's rows, once they have come in."""
    until = time.monotonic() + 20
    while True:
        told = mesh.eastwest("decisions", "search", "--canary", "--limit", 100, "--json", ok=(0, 1)).stdout
        rows = json.loads(told)["decisions"]
        if len(rows) >= 10 or time.monotonic() > until:
            return rows
        time.sleep(0.2)
