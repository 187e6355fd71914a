"""Fixtures around real processes."""

import pytest
from log_entries import undeclared
from server_process import ServerProcess


@pytest.fixture
def server(tmp_path):
    """A running server of trust domain td.test; whatever a test made it record fits the published schema."""
    made = ServerProcess(tmp_path / "data")
    made.init()
    made.start()
    yield made
    made.kill()
    assert undeclared(made.data) == []
