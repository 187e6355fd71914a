"""Fixtures around real processes."""

import pytest
from server_process import ServerProcess


@pytest.fixture
def server(tmp_path):
    """A running server of trust domain td.test."""
    made = ServerProcess(tmp_path / "data")
    made.init()
    made.start()
    yield made
    made.kill()
