"""Eight drifts planted one after another in a mesh of real processes: how long until each is found and named."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from bench.measure import Result

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "integration"))

NAMES = ("drift_found_s_max", "drift_clean_run_s")
INTERVAL = 30.0
"""Seconds between two runs of a server that proves by itself, as the guide has it: the most that a drift waits."""


def run(*, quick: bool) -> list[Result]:
    """Plant, run, mend. What is told is the longest wait for a run, and the longest run that found its drift."""
    from drift_mesh import DRIFTS, DriftMesh

    chosen = DRIFTS[::3] if quick else DRIFTS
    with tempfile.TemporaryDirectory(prefix="ew-") as place:
        mesh = DriftMesh(Path(place))
        try:
            mesh.start()
            began = time.monotonic()
            assert mesh.verify()["findings"] == []
            clean = time.monotonic() - began
            took = {}
            for drift in chosen:
                mesh.plant(drift)
                began = time.monotonic()
                found = {finding["drift"] for finding in mesh.verify()["findings"]}
                took[drift] = time.monotonic() - began
                assert found == {drift}, f"{drift}: {found}"
                mesh.mend(drift)
        finally:
            mesh.stop()
    slowest = max(took, key=lambda drift: took[drift])
    note = f"a run every {INTERVAL:.0f} s; the longest took {took[slowest]:.1f} s ({slowest}), of {len(took)} drifts"
    return [
        Result("drift_found_s_max", INTERVAL + took[slowest], "s", 1, note),
        Result("drift_clean_run_s", clean, "s", 1, "one service, certificates included"),
    ]
