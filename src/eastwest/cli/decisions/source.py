"""Where answers come from: a running server, over its admin socket, or segments on disk, without one."""

from __future__ import annotations

import asyncio
import tomllib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from msgspec.structs import replace

from eastwest.errors import InvalidInput, NotFound
from eastwest.ledger.query import MAX_PAGE, DecisionQuery, LedgerStore
from eastwest.policy.problems import suggest, suggest_id

if TYPE_CHECKING:
    from eastwest.cli.admin import AdminClient
    from eastwest.store.ledger_reader import LedgerReader

LOOK_AGAIN = 0.5
"""Seconds between two looks while following."""
CHUNK = 1 << 20


class Source(ABC):
    """What all sources have in common; ``open`` gives one of the two below."""

    @staticmethod
    @asynccontextmanager
    async def open(data: Path | None, ledger: Path | None, clickhouse: Path | None = None) -> AsyncIterator[Source]:
        """The table that ``clickhouse`` names, the files of ``ledger``, or the server of ``data``: the first given."""
        if clickhouse is not None:
            yield Table.of(clickhouse)
        elif ledger is not None:
            from eastwest.store.ledger_reader import LedgerReader

            with LedgerReader(ledger) as reader:
                yield Files(reader)
        elif data is not None:
            from eastwest.cli.admin import AdminClient

            async with AdminClient.connect(data) as admin:
                yield Server(admin)
        else:
            raise typer.BadParameter(
                "say which ledger: --data DIR of a server, or --ledger DIR of files", param_hint="--data"
            )

    @abstractmethod
    async def page(self, query: DecisionQuery) -> tuple[list[dict[str, Any]], int]:
        """Matching rows, and how many decisions were lost in all."""

    @abstractmethod
    async def totals(self, query: DecisionQuery, by: str) -> list[dict[str, Any]]:
        """Totals by a dimension, or ``edges``."""

    def export(self, query: DecisionQuery, form: str) -> AsyncIterator[bytes]:
        """A file of all matching rows, in pieces; raises ``InvalidInput`` where there is none."""
        del query, form
        raise InvalidInput(
            "this ledger gives no files", fix="ask the server or its segments, or the other store itself"
        )

    async def notes(self, query: DecisionQuery) -> Sequence[str]:
        """Why nothing may have been found."""
        del query
        return ()

    async def lost(self) -> int:
        """How many decisions were lost in all."""
        return (await self.page(DecisionQuery(limit=1, newest_first=True)))[1]

    async def rows(self, query: DecisionQuery) -> tuple[list[dict[str, Any]], int, Sequence[str]]:
        """Matching rows, oldest first; losses; and notes where nothing was found."""
        rows, lost = await self.page(query)
        rows.sort(key=lambda row: row["row"])
        return rows, lost, () if rows else await self.notes(query)

    async def canaries_beside(self, query: DecisionQuery, rows: Sequence[dict[str, Any]]) -> int:
        """How many calls of canaries ``query`` left out among these rows, which are sorted; up to a page of them."""
        if not query.no_canary:
            return 0
        page, _ = await self.page(replace(query, no_canary=False, canary=True, limit=MAX_PAGE))
        if len(rows) < query.limit:
            return len(page)
        return sum(rows[0]["row"] < row["row"] < rows[-1]["row"] for row in page)

    async def follow(self, query: DecisionQuery, rows: Sequence[dict[str, Any]]) -> AsyncIterator[list[dict[str, Any]]]:
        """Matching rows that come after these, as they come."""
        if rows:
            last = rows[-1]["row"]
        else:
            newest, _ = await self.page(DecisionQuery(limit=1, newest_first=True))
            last = newest[0]["row"] if newest else 0
        while True:
            more, _ = await self.page(replace(query, after=last, newest_first=False, limit=MAX_PAGE))
            if more:
                last = more[-1]["row"]
                yield more
            else:
                await asyncio.sleep(LOOK_AGAIN)

    async def edges(self, query: DecisionQuery, limit: int) -> list[dict[str, Any]]:
        """All edges up to a limit, page by page."""
        found: list[dict[str, Any]] = []
        while len(found) < limit:
            page = await self.totals(replace(query, after=len(found), limit=min(MAX_PAGE, limit - len(found))), "edges")
            found += page
            if len(page) < MAX_PAGE:
                break
        return found

    async def of_class(self, query: DecisionQuery, name: str) -> DecisionQuery:
        """The query, held to one class of failure: to the codes and causes of that class which there are."""
        if not name:
            return query
        from eastwest.ledger.failure import classify
        from eastwest.policy.failures import FailureClass

        names = [str(kind) for kind in FailureClass]
        if name not in names:
            raise InvalidInput(
                f"{name[:32]!r} is no class of failure", fix=suggest(name, names, otherwise=", ".join(names))
            )
        found = await self.totals(replace(query, verdict="deny", after=0, limit=MAX_PAGE), "cause")
        pairs = [(row["code"], row["cause"]) for row in found if classify(row["code"], row["cause"]) == name]
        return replace(query, reasons=tuple(pairs))


class Server(Source):
    """A running server."""

    def __init__(self, admin: AdminClient) -> None:
        self._admin = admin

    async def page(self, query: DecisionQuery) -> tuple[list[dict[str, Any]], int]:
        return await self._admin.ledger_rows(query)

    async def totals(self, query: DecisionQuery, by: str) -> list[dict[str, Any]]:
        return await self._admin.count_decisions(query, by)

    def export(self, query: DecisionQuery, form: str) -> AsyncIterator[bytes]:
        return self._admin.export_decisions(query, form)

    async def notes(self, query: DecisionQuery) -> Sequence[str]:
        """What was asked for and the estate does not have."""
        from eastwest.api.eastwest.admin.v1 import admin_pb2 as pb
        from eastwest.policy.load import load_estate

        caller, service = query.caller, query.service
        if not (caller or service):
            return ()
        status = await self._admin.estate_status()
        if status is None:
            return ()
        estate = load_estate(status["files"])
        notes = []
        services = [one.service for one in estate.services]
        if service and service not in services:
            notes.append(
                f"the estate has no service {service[:64]!r} ({suggest(service, services, otherwise='see plan')})"
            )
        callers = [one.spiffe_id for one in estate.callers]
        if caller and caller not in callers and not await self._admin.entries(pb.ListEntriesRequest(spiffe_id=caller)):
            near = suggest_id(caller, callers, otherwise="give a whole SPIFFE ID")
            notes.append(f"nobody is registered as {caller[:300]!r} ({near})")
        return notes


class Files(Source):
    """Segments on disk; nobody has verified them (``eastwest decisions verify`` does)."""

    def __init__(self, reader: LedgerReader) -> None:
        self._reader = reader

    async def page(self, query: DecisionQuery) -> tuple[list[dict[str, Any]], int]:
        lost = self._reader.top(DecisionQuery(kind="lost", limit=MAX_PAGE), "agent")
        return self._reader.search(query), sum(row["count"] for row in lost)

    async def totals(self, query: DecisionQuery, by: str) -> list[dict[str, Any]]:
        return self._reader.edges(query) if by == "edges" else self._reader.top(query, by)

    async def export(self, query: DecisionQuery, form: str) -> AsyncIterator[bytes]:
        path = self._reader.scratch / "export"
        self._reader.export(query, form, path)
        with path.open("rb") as file:
            while piece := file.read(CHUNK):
                yield piece
        path.unlink()


class Table(Source):
    """A ClickHouse table that a server fills (``[export.clickhouse]``)."""

    def __init__(self, store: LedgerStore) -> None:
        self._store = store

    @classmethod
    def of(cls, settings: Path) -> Table:
        """The table that a ``server.toml`` names. Raises ``InvalidInput`` naming file and table."""
        from eastwest.plugins.clickhouse_ledger import ClickHouseLedger
        from eastwest.process.plugins import check_options

        where = f"{settings}: export.clickhouse"
        try:
            found = tomllib.loads(settings.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NotFound(
                f"there is no file {settings}", fix="give the server.toml of the server that exports"
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(f"not TOML: {error}", where=str(settings)) from None
        table = found.get("export", {}).get("clickhouse")
        if not isinstance(table, dict):
            raise InvalidInput("names no table", where=where, fix="see docs/how-to/export-decisions.md")
        return cls(ClickHouseLedger(check_options(ClickHouseLedger.Options, table, where)))

    async def page(self, query: DecisionQuery) -> tuple[list[dict[str, Any]], int]:
        lost = await self._store.top(DecisionQuery(kind="lost", limit=MAX_PAGE), "agent")
        return await self._store.search(query), sum(row["count"] for row in lost)

    async def totals(self, query: DecisionQuery, by: str) -> list[dict[str, Any]]:
        return await (self._store.edges(query) if by == "edges" else self._store.top(query, by))
