"""What every test gets."""

import asyncio
import inspect
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
LONGEST = (
    "integration/test_server_process.py",
    "integration/test_federation_commands.py",
    "integration/test_demo.py",
    "integration/test_guide.py",
    "integration/test_web_federation.py",
    "integration/test_nested_servers.py",
    "integration/test_equality.py",
    "integration/test_policy_guides.py",
    "integration/test_transaction_tokens.py",
    "integration/test_normalise_like_envoy.py",
    "integration/test_sdk.py",
    "integration/test_root_rotation.py",
    "integration/test_ca_guides.py",
    "integration/test_hostile_agents.py",
    "property/test_four_deciders.py",
)
"""The files that take longest, half a minute or so; after them come those that start processes."""
FOLDERS = ("integration", "fuzz", "property", "contract", "unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: `make test` gives each worker a file at a time, and none should be left alone with a long one.

    The order inside a file stays.
    """
    places = {HERE / file: place for place, file in enumerate(LONGEST)}
    folders = {folder: place for place, folder in enumerate(FOLDERS)}

    def place(item: pytest.Item) -> tuple[int, int]:
        folder = item.path.relative_to(HERE).parts[0] if HERE in item.path.parents else ""
        return places.get(item.path, len(places)), folders.get(folder, len(folders))

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """Let closed connections end before the loop does, so that a warning about one is about a real leak."""
    test = pyfuncitem.obj
    if inspect.iscoroutinefunction(test):

        async def drained(*args, **kwargs):
            try:
                return await test(*args, **kwargs)
            finally:
                for _ in range(4):
                    await asyncio.sleep(0)

        pyfuncitem.obj = drained
    return (yield)
