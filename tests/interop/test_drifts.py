"""Eight planted drifts, each found and called by its name, and nothing found once it is mended."""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))
from drift_mesh import DRIFTS, DriftMesh


@pytest.fixture(scope="module")
def mesh() -> Iterator[DriftMesh]:
    with tempfile.TemporaryDirectory(prefix="ew-") as place:
        made = DriftMesh(Path(place))
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.mark.parametrize("drift", DRIFTS)
def test_a_planted_drift_is_found_in_time_and_named(mesh: DriftMesh, drift: str):
    assert mesh.verify()["findings"] == []
    mesh.plant(drift)
    began = time.monotonic()
    report = mesh.verify()
    assert time.monotonic() - began < 60
    assert {finding["drift"] for finding in report["findings"]} == {drift}
    mesh.mend(drift)
    assert mesh.verify()["findings"] == []
    assert mesh.requests() == []


def test_a_server_that_proves_by_itself_finds_it_within_a_minute():
    with tempfile.TemporaryDirectory(prefix="ew-") as place:
        made = DriftMesh(Path(place))
        try:
            made.start(settings="verify_interval = 10\n")
            made.plant("bypass-port")
            began = time.monotonic()
            while "bypass-port" not in made.eastwest("verify", "show", ok=(0, 1)).stdout:
                assert time.monotonic() - began < 60
                time.sleep(0.5)
            assert made.requests() == []
        finally:
            made.stop()
