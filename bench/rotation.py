"""A whole rotation of the root under new mTLS handshakes between two Envoys: how many were made, how many failed."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from bench.measure import Result

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "integration"))

NAMES = ("root_rotation_handshakes", "root_rotation_failed_handshakes")
BETWEEN = 1000
"""Handshakes between two steps of the rotation."""


def run(*, quick: bool) -> list[Result]:
    """One rotation: prepare, activate, taint, revoke, each once all have confirmed the one before."""
    made, failed, seconds = asyncio.run(_rotate(BETWEEN // 20 if quick else BETWEEN))
    note = f"prepare, activate, taint and revoke in {seconds:.1f} s, none resumed"
    return [
        Result("root_rotation_handshakes", made, "", 1, note),
        Result("root_rotation_failed_handshakes", failed, "", 1, ""),
    ]


async def _rotate(between: int) -> tuple[int, int, float]:
    from rotation_mesh import RotationMesh

    with tempfile.TemporaryDirectory(prefix="ew-") as place:
        Path(place).chmod(0o755)
        mesh = RotationMesh(Path(place))
        try:
            await mesh.start()
            mesh.load.start()
            await mesh.load.more(between, seconds=300)
            begin = asyncio.get_running_loop().time()
            async with mesh.ca() as ca:
                old = next(item.id for item in (await ca.state()).items if item.kind == "x509")
                prepared = (await ca.prepare("x509", "")).item.id
                await mesh.confirmed()
                await mesh.load.more(between, seconds=300)
                await ca.change("Activate", prepared)
                await mesh.load.more(between, seconds=300)
                await ca.change("Taint", old)
                await mesh.confirmed(released=True)
                await mesh.load.more(between, seconds=300)
                await ca.change("Revoke", old)
                await mesh.confirmed()
                await mesh.load.more(between, seconds=300)
            seconds = asyncio.get_running_loop().time() - begin
            await mesh.load.stop()
            made, resumed = await mesh.handshakes()
            assert resumed == 0
            return made, len(mesh.load.failed), seconds
        finally:
            await mesh.stop()
