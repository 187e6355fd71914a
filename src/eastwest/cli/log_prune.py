"""``eastwest log prune`` and the part of ``verify`` that needs the server's database: what is done on its machine."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eastwest.cli.log_reading import locate
from eastwest.cli.options import moment_of, print_json, run
from eastwest.errors import FailedPrecondition, Unavailable

if TYPE_CHECKING:
    from eastwest.log.ports import LogFiles
    from eastwest.log.verify import Problem, Report
    from eastwest.store.log import SqliteLog

Before = Annotated[
    str, typer.Option("--before", metavar="TIME", help="Entries older than this: 2026-01-01 (UTC), or 90d ago.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would go, and change nothing.")]


def database_problems(data: Path, files: LogFiles, report: Report) -> list[Problem] | None:
    """What differs between the server's database and its log; None where there is none that this user may read."""
    from eastwest.log.proven import ProvenReader
    from eastwest.store.log_check import verify_database

    if report.checkpoint is None:
        return []
    path = data / "server" / "server.db"
    try:
        with _reading(path) as connection:
            reader = ProvenReader(files, report.checkpoint)
            return verify_database(connection, reader, "server.db", pruned=report.pruned)
    except (sqlite3.Error, OSError) as error:
        if not os.access(path, os.R_OK):
            return None
        from eastwest.log.verify import Problem

        return [Problem("server.db", f"is damaged: {error}")]


def prune(data: Path, before: str, *, dry_run: bool, json: bool) -> None:
    """What ``eastwest log prune`` does."""
    from eastwest.clock import SystemClock
    from eastwest.store.log_rows import prunable, pruned_before

    moment = moment_of(before, SystemClock().now(), "--before")
    files, key = locate(data, None, None)
    if dry_run:
        from eastwest.log.checkpoint import open_checkpoint
        from eastwest.log.entry import timestamp
        from eastwest.log.tiles import CHECKPOINT_PATH

        size = open_checkpoint(files.read(CHECKPOINT_PATH), key).size
        try:
            with _reading(data / "server" / "server.db") as connection:
                first, end = pruned_before(connection), prunable(connection, timestamp(moment), size)
        except (sqlite3.Error, OSError) as error:
            raise Unavailable(
                f"the server's database cannot be read: {error}", fix="run it as the server's user"
            ) from None
        _say(first, end, done=False, json=json)
        return
    first, end = run(lambda: _prune(data, moment))
    _say(first, end, done=True, json=json)


async def _prune(data: Path, moment: datetime) -> tuple[int, int]:
    from contextlib import AsyncExitStack

    from eastwest.clock import SystemClock
    from eastwest.entropy import SystemEntropy
    from eastwest.server.ca.opening import open_authority
    from eastwest.server.config import ServerConfig
    from eastwest.server.log_retention import prune as prune_log

    config = ServerConfig.load(data)
    async with AsyncExitStack() as stack:
        stack.enter_context(_unless_running(config.paths.lock))
        opened = await open_authority(config, SystemClock(), SystemEntropy(), stack)
        log: SqliteLog = opened.log
        first, end = await log.pruned_before(), await log.prunable(moment)
        if end > first:
            await prune_log(
                log,
                opened.journal,
                end,
                actor=f"{config.trust_domain.uri}/spire/server",
                subject=config.trust_domain.uri,
                reason=f"eastwest log prune --before {moment:%Y-%m-%dT%H:%M:%SZ}",
            )
    return first, end


@contextmanager
def _unless_running(lock: Path) -> Iterator[None]:
    from eastwest.process.locked import locked

    try:
        with locked(lock, "server"):
            yield
    except FailedPrecondition as error:
        raise FailedPrecondition(
            error.message, fix="stop it, or let it prune by itself: keep_entries_days in [log] of server.toml"
        ) from None


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        connection.execute("BEGIN")
        yield connection
    finally:
        connection.close()


def _say(first: int, end: int, *, done: bool, json: bool) -> None:
    if json:
        print_json({"from": first, "before": end, "entries": end - first, "pruned": done and end > first})
    elif end == first:
        print("no whole bundle of 256 entries is that old")
    elif done:
        print(f"entries {first} to {end - 1} are pruned, and the log says so; their hashes and all proofs stay")
    else:
        print(f"entries {first} to {end - 1} would be pruned; their hashes and all proofs would stay")
