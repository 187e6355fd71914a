"""Fixtures of the interop tests; `make interop` builds what they need and runs them.

These tests are collected only when this folder is named: the default suite leaves them to `make interop`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from interop_harness import ROOT, Authority, Node, Peers, Workload, our_agent, spire_agent, workload

HERE = Path(__file__).resolve().parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    named = [Path(argument.split("::")[0]).resolve() for argument in config.args]
    if not any(path == HERE or HERE in path.parents for path in named):
        return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.interop)


@pytest.fixture(scope="session")
def peers() -> Peers:
    """The foreign programs; skips where they could not be built, fails in CI, which can build them."""
    told = subprocess.run(
        [sys.executable, ROOT / "tools" / "interop_build.py", "--where"], capture_output=True, text=True, check=True
    )
    where = json.loads(told.stdout)
    if where["missing"]:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no foreign peers: {where['missing']}")
    return Peers(**{name.replace("-", "_"): Path(path) for name, path in where["binaries"].items()})


@pytest.fixture(scope="module")
def authority(peers: Peers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    """A running server, for one file of tests."""
    made = Authority(tmp_path_factory.mktemp("authority") / "data", peers)
    made.initialise()
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module", params=["ours", "spire"])
def node(
    request: pytest.FixtureRequest, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    """A running agent: the same tests must hold for ours and for SPIRE's."""
    kind = our_agent if request.param == "ours" else spire_agent
    made = kind(authority, tmp_path_factory.mktemp(request.param))
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def new_workload(peers: Peers, node: Node, tmp_path: Path) -> Callable[[str], Workload]:
    """Makes a go-spiffe workload on the node's Workload API, told from others by its path; not registered yet."""
    return lambda name: workload(peers, node, tmp_path, name)
