"""An agent that is killed again and again under load: every call is in the record once, or is counted as lost."""

import asyncio
import random
from pathlib import Path

from agent_authority import FakeAuthority
from envoy_mesh import App, Http
from test_agent_sidecars import CLIENT, acknowledged, authority, data, sidecar, sidecars
from test_record import Calls, agent_process, recorded, rows

from eastwest.ledger.record import Lost, LostReason
from eastwest.testing.ports import free_port

__all__ = ["authority", "data"]  # fixtures
KILLS = 12


async def test_calls_recorded_and_lost_are_the_calls_that_were_made(authority: FakeAuthority, data: Path) -> None:
    chance = random.Random(6)
    data.mkdir()
    app = App(data / "app.sock")
    await app.start()
    for name in ("client", "billing"):
        authority.put(name, f"unix:path:{data / name / 'envoy'}")
    for each in sidecars(free_port(), app.path, "v1", CLIENT):
        authority.put_sidecar(each)
    done = asyncio.Event()

    async def load(call: Calls) -> None:
        while not done.is_set():
            assert (await call()).status == 200

    async with sidecar(data, "client") as way_out, sidecar(data, "billing"):
        async with agent_process(authority, data):
            async with asyncio.timeout(60):
                await authority.until(lambda: acknowledged(authority, "v1"))
            call = Calls(await Http.unix(way_out))
            await call.open()
        loading = asyncio.create_task(load(call))
        for number in range(KILLS):
            if number % 3 == 1:
                await authority.stop()
            async with agent_process(authority, data) as agent:
                await asyncio.sleep(chance.uniform(0.05, 3))
                agent.kill()
                await agent.wait()
            if number % 3 == 1:
                await authority.start()
        done.set()
        await loading
        async with agent_process(authority, data):
            async with asyncio.timeout(90):
                await authority.until(lambda: sum(recorded(authority)) >= call.made)
                await asyncio.sleep(12)  # nor is anything counted twice later
            kept, lost = recorded(authority)
            print(f"{call.made} calls, {KILLS} kills: {kept} recorded, {lost} lost")
            assert kept + lost == call.made
            assert lost > 0
        await call.close()
    causes = {row.cause for row in rows(authority) if isinstance(row, Lost)}
    assert causes <= {LostReason.PROXY_DROPPED, LostReason.DISK}
    await app.stop()
