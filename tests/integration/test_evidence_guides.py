"""The pages about receipts and evidence keep their promises: run as they stand, one after the other in one shell."""

import shutil

import guide_pages
import pytest

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the pages are written for a shell")
SECONDS = 90
PAGES = ("prove-an-issuance.md", "collect-evidence.md")


def test_every_command_prints_what_the_pages_show(tmp_path):
    blocks = [block for page in PAGES for block in guide_pages.blocks(page) if block.language == "sh"]
    assert len(blocks) == 9
    printed = guide_pages.run_in_one_shell(tmp_path, [block.text for block in blocks], timeout=SECONDS)
    assert len(printed) == len(blocks), printed
    shown = [(block.output, text) for block, text in zip(blocks, printed, strict=True) if block.output is not None]
    wrong = [told for output, text in shown if (told := guide_pages.complaint(output, text))]
    assert not wrong, "\n".join(wrong)
    assert len(shown) == 8
