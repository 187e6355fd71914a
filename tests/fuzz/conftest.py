"""One server for all the tests here that call it."""

from collections.abc import Iterator

import pytest
from fuzz_world import World


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("fuzz") / "data").open()
    yield world
    world.close()
