from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def example() -> dict[str, bytes]:
    """The files of examples/estate by relative path; what operations demand is left for tests to say."""
    root = ROOT / "examples" / "estate"
    files = {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
    return {name: re.sub(rb"\n    demands: .*", b"", data) for name, data in files.items()}


@pytest.fixture
def edited(example: dict[str, bytes]):
    """The example estate with one text replaced in one file, or a whole file put in (``old`` None)."""

    def edit(file: str, old: str | None, new: str) -> dict[str, bytes]:
        files = dict(example)
        if old is not None:
            text = files[file].decode()
            assert old in text
            new = text.replace(old, new, 1)
        files[file] = new.encode()
        return files

    return edit
