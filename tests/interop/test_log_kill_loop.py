"""kill -9 of an issuing process at 300 random moments: no certificate is out without its entry."""

from eastwest.testing.log_kills import kill_loop


async def test_no_certificate_is_released_without_its_entry_in_300_kills(tmp_path):
    outcome = await kill_loop(tmp_path, runs=300, seed=20261122)
    assert outcome.losses == []
    assert outcome.runs == 300
    assert outcome.released > 5000
    assert outcome.killed_while_opening > 5
    # What was recorded and never released is no loss, but some of it shows that kills came in between.
    assert outcome.entries > outcome.released
