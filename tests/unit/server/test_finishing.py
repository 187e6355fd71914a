"""What has begun is finished, whoever hangs up."""

import asyncio

import pytest

from eastwest.server.finishing import to_the_end


async def test_results_and_errors_pass():
    async def good():
        return 3

    async def bad():
        raise ValueError("no")

    assert await to_the_end(good()) == 3
    with pytest.raises(ValueError, match="no"):
        await to_the_end(bad())


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancelled_caller_holds_its_lock_until_the_work_is_done(fails):
    lock, gate, told = asyncio.Lock(), asyncio.Event(), []

    async def work():
        await gate.wait()
        told.append("stored")
        if fails:
            raise ValueError("no")

    async def caller():
        async with lock:
            await to_the_end(work())

    task = asyncio.ensure_future(caller())
    for _ in range(3):  # again and again, as a stopping server does
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert lock.locked()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == ["stored"]
    assert not lock.locked()
