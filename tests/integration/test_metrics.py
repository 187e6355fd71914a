"""What running processes expose is what the catalogue and the page list, neither more nor less."""

import asyncio
import re
import shutil
import tempfile
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sdk_world import SdkWorld

from eastwest.metrics import AGENT, BY_NAME, SERVER

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"


@pytest.fixture
async def world():
    root = Path(tempfile.mkdtemp(prefix="ewm-", dir="/tmp"))
    world = SdkWorld(root)
    (root / "agent.toml").write_text("health_port = 0\n")
    try:
        await world.start()
        yield world
    finally:
        await world.close()
        shutil.rmtree(root, ignore_errors=True)


async def families(port_file: Path):
    async with asyncio.timeout(30):
        while not port_file.exists():
            await asyncio.sleep(0.05)
    url = f"http://127.0.0.1:{port_file.read_text().strip()}/metrics"
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
    # The text format tells by a series of its own when a counter began.
    return [one for one in text_string_to_metric_families(text) if not one.name.endswith("_created")]


def shown_name(family) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


async def test_processes_expose_what_is_listed(world):
    for where, listed in (
        (world.server.data / "server" / "health.port", SERVER),
        (world.agent_data / "agent" / "health.port", AGENT),
    ):
        found = await families(where)
        names = [shown_name(family) for family in found]
        assert len(names) == len(set(names))
        # What needs witnesses, sinks and the like is not there without them.
        assert {metric.name for metric in listed if not metric.when} <= set(names)
        assert set(names) <= {metric.name for metric in listed}
        for family in found:
            metric = BY_NAME[shown_name(family)]
            assert family.type == metric.kind
            assert family.documentation == metric.help
            for sample in family.samples:
                assert sample.labels.keys() - {"le"} == set(metric.labels), sample
    # The agent has a certificate of its own, which the server made by a door that is counted, and holds its state.
    agent = {f.name: f.samples[0].value for f in await families(world.agent_data / "agent" / "health.port")}
    assert agent["eastwest_agent_connected"] == 1
    assert 0 < agent["eastwest_agent_x509_svid_seconds"] <= 3600
    server = await families(world.server.data / "server" / "health.port")
    ends = next(one for one in server if one.name == "eastwest_certificate_expiry_timestamp_seconds")
    assert {sample.labels["certificate"] for sample in ends.samples} == {"server", "issuing", "root"}


def test_the_page_lists_them_all():
    rows = re.findall(r"^\| `(\w+)(?:\{([\w,]+)\})?` \| (\w+) \| (\w+) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    told = {name: (kind, tuple(filter(None, labels.split(","))), unit) for name, labels, kind, unit, _ in rows}
    assert told == {metric.name: (metric.kind, metric.labels, metric.unit) for metric in (*SERVER, *AGENT)}
    meanings = {name: meaning for name, *_, meaning in rows}
    assert all(meanings[metric.name].startswith(metric.help) for metric in BY_NAME.values())


def test_names_follow_prometheus_conventions():
    for metric in BY_NAME.values():
        assert metric.name.startswith("eastwest_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        if metric.unit != "1":
            assert metric.name.endswith({"s": "_seconds", "By": "_bytes"}[metric.unit])
        assert not {"caller", "spiffe_id", "node", "agent", "peer"} & set(metric.labels), "identities are no labels"
