"""How long a bad rule lasts: from the first call that it denies to the first that goes through again, by itself.

Real processes: a server, an agent, four Envoys. The rule denies a call that is not on record yet, goes to the first of
two rings, and is brought back by the brake; the other ring's service is called all the time.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from bench.measure import Result

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "integration"))

NAMES = ("bad_rule_rollback_s", "bad_rule_calls_denied_elsewhere")
VERBS = ("write", "drop", "patch")


def run(*, quick: bool) -> list[Result]:
    """A round for each operation, since a call that was seen once is on record."""
    return asyncio.run(_measured(VERBS[:1] if quick else VERBS))


async def _measured(verbs: tuple[str, ...]) -> list[Result]:
    from rollout_world import RIGHT, RolloutWorld

    with tempfile.TemporaryDirectory(prefix="ew-") as place:
        Path(place).chmod(0o755)
        world = RolloutWorld(Path(place))
        times: list[float] = []
        elsewhere = denied = calls = 0
        try:
            await world.start()
            await world.apply(world.estate())
            for verb in verbs:
                await world.apply(world.estate(may=tuple(one for one in RIGHT if one != verb)))
                await world.until_state("soaking", "first")
                first = 0.0
                while True:
                    reply = await world.call("alpha", verb)
                    now = time.perf_counter()
                    elsewhere += (await world.call("beta", verb)).status != 200
                    calls += 1
                    if reply.status == 200:
                        break
                    denied += 1
                    first = first or now
                times.append(now - first)
                await world.until_state("braked")
        finally:
            await world.stop()
    note = (
        f"first denied call -> first that goes through; {min(times):.2f} to {max(times):.2f} s, {denied} calls denied"
    )
    return [
        Result("bad_rule_rollback_s", max(times), "s", len(times), note),
        Result("bad_rule_calls_denied_elsewhere", elsewhere, "", calls, "the same call of the other ring's service"),
    ]
