"""The pages about impact and suggestions: their commands run here as they stand, against a real server."""

import asyncio
import json
import os
import shutil

import guide_pages
import impact_world as world
import pytest
from server_process import eastwest

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the pages are written for bash")
SPAN = ("--from", "2026-11-15", "--to", "2026-11-23")


async def test_every_command_of_the_pages_prints_what_the_pages_show():
    pages = ("see-the-impact-of-a-change.md", "suggest-policies.md")
    blocks = [block for page in pages for block in guide_pages.blocks(page) if block.language == "sh"]
    assert len(blocks) >= 6
    async with world.serving() as server:
        printed = await asyncio.to_thread(
            guide_pages.run_in_one_shell, server.data.parent, [block.text for block in blocks], timeout=100
        )
    wrong = [
        complaint
        for block, text in zip(blocks, printed, strict=True)
        if block.output is not None and (complaint := guide_pages.complaint(block.output, text))
    ]
    assert not wrong, "\n".join(wrong)


async def test_a_server_and_its_files_tell_the_same():
    async with world.serving() as server:
        place = server.data.parent
        ledger = server.data / "server" / "ledger"
        words = ("policy", "impact", place / "candidate", *SPAN, "--json")
        asked = await asyncio.to_thread(eastwest, *words, "--data", server.data)
        read = await asyncio.to_thread(eastwest, *words, "--ledger", ledger, "--against", place / "estate")
        assert asked.returncode == read.returncode == 0, (asked.stderr, read.stderr)
        ours, theirs = json.loads(asked.stdout), json.loads(read.stdout)
        for name in ("totals", "newly_allowed", "newly_denied", "unsure", "calls", "before", "candidate", "lost"):
            assert ours[name] == theirs[name], name
        assert ours["totals"] | {"newly_allowed": 3, "newly_denied": 24} == ours["totals"]
        assert [row["operation"] for row in ours["newly_allowed"]] == ["billing:invoices:create"]
        assert ours["newly_allowed"][0]["samples"] == ["d6-6"], "the reference that the caller was given"
        assert ours["newly_denied"][0]["caller"] == world.JOBS
        assert ours["lost"] == 2
        assert ours["totals"]["unsure"] == 0
        assert ours["reproduced"] == ours["calls"], "what was recorded is what the rules in force say"
        words = ("policy", "impact", place / "candidate", "--data", server.data, *SPAN)
        widened, denied = await asyncio.gather(
            asyncio.to_thread(eastwest, *words, "--fail-on", "widened"),
            asyncio.to_thread(eastwest, *words, "--fail-on", "unsure"),
        )
        assert (widened.returncode, denied.returncode) == (1, 0)
        assert ours["window"]["from"] == "2026-11-15T00:00:00Z", "as every time of the report"
        for slip in (words, ("policy", "suggest", "--data", server.data, *SPAN)):
            refused = await asyncio.to_thread(eastwest, *slip, "--service", "biling")
            assert refused.returncode == 2, "not a report without rows"
            assert "did you mean" in refused.stderr
        (place / "candidate" / "estate.yaml").write_text("trust_domain: [\n")
        broken = await asyncio.to_thread(eastwest, *words)
        assert broken.returncode == 1
        assert "estate.yaml" in broken.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="asks as root, who administrates everything")
async def test_what_is_suggested_is_an_estate_that_changes_nothing_for_recorded_calls():
    async with world.serving() as server:
        place = server.data.parent
        out = place / "narrower"
        done = await asyncio.to_thread(
            eastwest, "policy", "suggest", "--data", server.data, *SPAN, "--out", out, "--json"
        )
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["totals"] == dict.fromkeys(report["totals"], 0)
        assert not report["unused"]
        callers = {caller for each in report["suggestions"] for caller in each["callers"]}
        assert callers == {world.WEB, world.JOBS}, "nobody whom no certificate named, or who is not registered"
        again = await asyncio.to_thread(
            eastwest,
            "policy",
            "impact",
            out,
            "--data",
            server.data,
            *SPAN,
            "--fail-on",
            "denied",
            "--fail-on",
            "widened",
        )
        assert again.returncode == 0, again.stdout
        plan = await asyncio.to_thread(eastwest, "plan", out, "--data", server.data)
        assert plan.returncode == 0, plan.stdout
