"""From permissive to strict with real processes: who would break is who breaks, and the gate holds until then."""

import json

import pytest
from server_process import eastwest
from strict_world import StrictWorld, named, planted, spiffe

CALLERS = planted(good=3, plaintext=3, expired=1, foreign=1, absent=1)


@pytest.fixture
async def world(tmp_path_factory):
    place = tmp_path_factory.mktemp("s")
    for each in (place, *place.parents[:2]):
        each.chmod(0o755)
    made = StrictWorld(place, CALLERS)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


def mtls(world: StrictWorld, *words: str):
    return eastwest("mtls", *words, "--data", world.data)


async def test_the_break_list_is_who_fails_after_the_flip(world):
    before = await world.all_call()
    assert {name for name, passed in before.items() if not passed} == {"late-0", "alien-0"}
    report = await world.recorded(8)

    # Each row names its caller, by the best word that there is for it.
    rows = dict(zip(named(report, CALLERS), report["breaks"], strict=True))
    assert rows["plain-0"]["likely"] == spiffe("plain-0")
    assert rows["plain-0"]["owner"] == "group:plain-0"
    assert rows["late-0"]["risk"] == "restricted-read"
    assert rows["plain-0"]["sources"] == rows["plain-1"]["sources"] == ["127.0.1.1"]
    assert rows["plain-2"]["caller"].startswith(f"uid:{CALLERS[5].uid} exe:/")
    assert rows["plain-2"]["caller"].endswith("program:plain-2.py")
    assert (rows["late-0"]["cause"], rows["late-0"]["confidence"]) == ("expired", "claimed")
    assert rows["alien-0"]["cause"] == "wrong_trust_domain"
    assert {row["risk"] for row in report["breaks"] if row["cause"] == "plaintext"} == {"restricted-read"}
    assert all(row["fix"] for row in report["breaks"])

    # It is not ready, and says why: callers break, too little was seen, and three who may call never did.
    kinds = {reason["kind"] for reason in report["reasons"]}
    assert kinds == {"breaks", "window", "unseen"}
    assert report["unseen"] == sorted(map(spiffe, ("late-0", "monthly-0", "plain-0", "plain-1")))
    shown = mtls(world, "who-breaks", "orders")
    assert shown.returncode == 1, shown.stderr
    assert "verdict: NOT READY" in shown.stdout
    status = mtls(world, "status")
    assert status.returncode == 0, status.stderr
    assert "NOT READY: breaks, window, unseen" in status.stdout

    # So the gate holds, and nothing changes.
    refused = mtls(world, "strict", "orders", "--yes")
    assert refused.returncode == 1, refused.stderr
    assert "refused: orders is NOT READY" in refused.stdout
    assert mtls(world, "strict", "orders", "--override", "the test").returncode == 2
    async with world.server.admin() as admin:
        assert (await admin.estate_status())["files"] == world.estate()
    # Past the gate, apply says so.
    changed = dict(world.estate())
    changed["services/orders.yaml"] = changed["services/orders.yaml"].replace(
        b"permissive, until: 2099-01-01", b"strict"
    )
    async with world.server.admin() as admin:
        planned = await admin.plan_estate(changed)
    assert any("orders turns strict and is NOT READY" in warning for warning in planned.warnings)

    # Whoever overrides it is in the log, and one line of one file changes, here and in their own files.
    files = world.place / "files"
    for name, content in world.estate().items():
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_bytes(content)
    words = ("--override", "all of them were told", "--yes", "--json", "--write", str(files))
    done = mtls(world, "strict", "orders", *words)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["after"] == outcome["before"].replace("permissive, until: 2099-01-01", "strict")
    async with world.server.admin() as admin:
        in_force = (await admin.estate_status())["files"]
    assert in_force == changed
    assert (files / "services/orders.yaml").read_bytes() == changed["services/orders.yaml"]
    logged = eastwest("log", "show", "--data", world.data, "--kind", "mtls.overridden", "--json")
    assert "all of them were told" in logged.stdout, logged.stderr
    assert spiffe("late-0") in logged.stdout

    # And now those fail who were said to, and no others.
    await world.turned(403)
    after = await world.all_call()
    assert {name for name, passed in after.items() if not passed} == set(rows)

    # What is done is not asked again, nor judged.
    again = mtls(world, "strict", "orders")
    assert (again.returncode, again.stdout) == (0, "orders is strict already: nothing to change\n")
    shown = mtls(world, "who-breaks", "orders")
    assert shown.returncode == 0, "nothing is left to be ready for"
    assert "verdict: strict already; these are refused" in shown.stdout

    # Back, until a day.
    assert mtls(world, "permissive", "orders", "--until", "2001-01-01", "--yes").returncode == 1
    back = mtls(world, "permissive", "orders", "--until", "2099-02-01", "--yes")
    assert back.returncode == 0, back.stderr
    await world.turned(200)
    assert "2099-02-01" in mtls(world, "status").stdout
