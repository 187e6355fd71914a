"""Forty callers, planted faults among them: the break list equals the set that fails after the flip."""

from pathlib import Path

import pytest
from server_process import eastwest
from strict_world import StrictWorld, named, planted, spiffe

CALLERS = planted(good=27, plaintext=7, expired=3, foreign=2, absent=1)


@pytest.fixture
async def world(tmp_path_factory):
    place: Path = tmp_path_factory.mktemp("s")
    for each in (place, *place.parents[:2]):
        each.chmod(0o755)
    made = StrictWorld(place, CALLERS)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


async def test_who_would_break_is_who_breaks(world):
    assert len(CALLERS) == 40
    await world.all_call()
    report = await world.recorded(39)
    listed = named(report, CALLERS)
    assert len(listed) == len(set(listed)) == 12
    refused = eastwest("mtls", "strict", "orders", "--data", world.data, "--yes")
    assert refused.returncode == 1
    assert f"{spiffe('monthly-0')} may call it and was never seen" in refused.stdout
    assert "calls every 31 days: 62 days are needed" in refused.stdout
    words = ("--data", world.data, "--override", "planted", "--yes")
    assert eastwest("mtls", "strict", "orders", *words).returncode == 0
    await world.turned(403)
    after = await world.all_call()
    assert {name for name, passed in after.items() if not passed} == set(listed)
