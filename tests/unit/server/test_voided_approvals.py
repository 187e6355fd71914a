"""What a server that was killed right after a deny did not come to void, the next one voids when it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eastwest.clock import SystemClock
from eastwest.entropy import SystemEntropy
from eastwest.errors import Unavailable
from eastwest.registry import containment as steps
from eastwest.registry.containment import Containment
from eastwest.server.containment.keeper import Containments
from eastwest.server.journal import Journal
from eastwest.store.containment import SqliteContainments
from eastwest.store.database import Database


class Log:
    """Takes what is recorded."""

    async def append(self, *entries: Any, **_more: Any) -> list[int]:
        return list(range(len(entries)))


def begun(known: Sequence[Containment], name: str) -> Containment:
    return steps.start(
        known,
        containment_id=name,
        spiffe_ids=[f"spiffe://td.test/{name}"],
        selector="",
        reason="ticket",
        actor="unix:uid:0",
        now=1,
        evidence="",
    )


async def test_approvals_of_who_is_contained_still_are_voided_once_more_and_of_who_is_released_are_not(
    tmp_path: Path,
) -> None:
    database = Database.open(tmp_path / "server.db", trust_domain="td.test", clock=SystemClock())
    store = SqliteContainments(database)
    known: list[Containment] = []
    for name in ("released", "unlucky", "held"):
        known.append(begun(known, name))
    known[0] = steps.end(known, "released", reason="over", actor="unix:uid:0", now=2)
    for one in known:
        await store.save(one)
    kept = Containments(store, Journal(Log(), SystemClock()), SystemClock(), SystemEntropy())
    await kept.load()
    asked: list[tuple[Sequence[str], str, str]] = []

    async def void(names: Sequence[str], actor: str, containment: str) -> int:
        asked.append((names, actor, containment))
        if containment == "unlucky":
            raise Unavailable("the log is away")
        return 1

    kept.void = void
    await kept.void_again()
    assert sorted(asked) == [
        (("spiffe://td.test/held",), "unix:uid:0", "held"),
        (("spiffe://td.test/unlucky",), "unix:uid:0", "unlucky"),
    ]
    await database.close()
