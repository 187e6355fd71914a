"""The page about asking the ledger: its commands run here as they stand and print what the page shows."""

import asyncio
import re
import shutil

import guide_pages
import ledger_world as world
import pytest

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the page is written for bash")
SETTINGS = "\n[ledger]\nseal_interval = 0.2\nseal_rows = 3\n"


def fixed(text):
    """Without the hour in which a segment was sealed, and the number of log entries that a start makes."""
    text = re.sub(r"dt=[\d-]+/hour=\d\d/", "dt=DAY/hour=HH/", text)
    return re.sub(r"checkpoint of \d+ entries", "checkpoint of N entries", text)


async def test_every_command_of_the_page_prints_what_the_page_shows():
    blocks = [block for block in guide_pages.blocks("ask-the-ledger.md") if block.language == "sh"]
    assert len(blocks) == 8
    async with world.serving(SETTINGS) as server:
        await world.report(server, *world.ROWS)
        async with asyncio.timeout(30), server.admin() as admin:
            while not world.all_sealed(server):
                await asyncio.sleep(0.05)
            await admin.flush_log()
        place = server.data.parent
        printed = await asyncio.to_thread(
            guide_pages.run_in_one_shell, place, [block.text for block in blocks], timeout=100
        )
    wrong = [
        complaint
        for block, text in zip(blocks, printed, strict=True)
        if (complaint := guide_pages.complaint(fixed(block.output or ""), fixed(text)))
    ]
    assert not wrong, "\n".join(wrong)
