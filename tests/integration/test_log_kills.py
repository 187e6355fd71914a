"""kill -9 of an issuing process at random moments (300 of them in tests/interop), and that such a loop can tell."""

from eastwest.testing.log_kills import kill_loop


async def test_no_certificate_is_released_without_its_entry(tmp_path):
    outcome = await kill_loop(tmp_path, runs=40, seed=20261122)
    assert outcome.losses == []
    assert outcome.runs == 40
    assert outcome.released > 300


async def test_a_release_before_the_entry_is_durable_is_noticed(tmp_path):
    outcome = await kill_loop(tmp_path, runs=8, seed=1, broken=True)
    assert any("were released and have no entry" in loss for loss in outcome.losses)
