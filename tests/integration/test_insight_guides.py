"""The pages about lint, cases and the blast radius keep their promises: their commands print what they show."""

import shutil
import tempfile
from pathlib import Path

import guide_pages
import pytest

pytestmark = [
    pytest.mark.skipif(shutil.which("bash") is None, reason="the pages are written for bash"),
    pytest.mark.timeout(120),
]


@pytest.mark.parametrize(
    ("page", "count"), [("lint-policies.md", 5), ("test-policies.md", 4), ("see-the-blast-radius.md", 3)]
)
def test_every_command_prints_what_the_page_shows(page, count):
    place = Path(tempfile.mkdtemp(prefix="ewi-", dir="/tmp"))
    try:
        blocks = [block for block in guide_pages.blocks(page) if block.language == "sh"]
        assert len(blocks) == count
        example = str(guide_pages.ROOT / "examples" / "estate")
        scripts = [
            block.text.replace("examples/estate", example)
            .replace("/tmp/lint", str(place / "lint"))
            .replace("/tmp/cases", str(place / "cases"))
            for block in blocks
        ]
        printed = guide_pages.run_in_one_shell(place, scripts, timeout=100)
        wrong = [guide_pages.complaint(b.output or "", text) for b, text in zip(blocks, printed, strict=True)]
        assert not any(wrong), "\n".join(wrong)
        assert [path.name for path in place.iterdir()] == ["bin"]
    finally:
        shutil.rmtree(place, ignore_errors=True)
