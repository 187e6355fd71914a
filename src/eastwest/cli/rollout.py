"""``eastwest policy status|versions|promote|pause|resume|rollback``: versions, and how their rules get to sidecars.

Exit codes: 0 fine, 1 refused or not as intended, 2 wrong usage, 3 the server does not answer.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from eastwest.cli.options import NOBODY_TO_ASK, AsJson, DataDir, Yes, examples, print_json, run, utc

ROLLOUT_EXAMPLES = {
    "status": examples("eastwest policy status --data data", "eastwest policy status --data data --json"),
    "versions": examples("eastwest policy versions --data data"),
    "promote": examples("eastwest policy promote --data data"),
    "pause": examples("eastwest policy pause --data data"),
    "resume": examples("eastwest policy resume --data data"),
    "rollback": examples(
        "eastwest policy rollback --data data",
        "eastwest policy rollback 6e2f0c1d --data data --yes",
    ),
}


def status(data: DataDir, *, as_json: AsJson = False) -> None:
    """Show what every enforcement point should run and runs, and each rule's rung; exit 1 when anything differs."""
    from eastwest.cli.rollout_client import RolloutClient
    from eastwest.cli.rollout_table import print_status

    async def work() -> dict[str, Any]:
        async with RolloutClient.connect(data) as rollout:
            return await rollout.status()

    told = run(work)
    if as_json:
        print_json(told | {"rollout": timed(told["rollout"])})
    else:
        print_status(told)
    if not told["in_step"]:
        raise typer.Exit(1)


def versions(
    data: DataDir,
    limit: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="How many, the newest first.")] = 20,
    *,
    as_json: AsJson = False,
) -> None:
    """Show what was ever in force: when, by whom, who approved, on what evidence, and what became of it."""
    from eastwest.cli.rollout_client import RolloutClient
    from eastwest.cli.rollout_table import print_versions

    async def work() -> list[dict[str, Any]]:
        async with RolloutClient.connect(data) as rollout:
            return await rollout.versions(limit)

    told = run(work)
    if as_json:
        print_json({"versions": [one | {"rollout": timed(one["rollout"])} for one in told]})
    else:
        print_versions(told)


def promote(data: DataDir, *, as_json: AsJson = False) -> None:
    """Take the new rules to the next ring now; after the last one, end the watch over them."""
    _step(data, "Promote", as_json=as_json)


def pause(data: DataDir, *, as_json: AsJson = False) -> None:
    """Stop the rollout where it is; the brake goes on watching."""
    _step(data, "Pause", as_json=as_json)


def resume(data: DataDir, *, as_json: AsJson = False) -> None:
    """Let a paused rollout go on; its ring is watched anew."""
    _step(data, "Resume", as_json=as_json)


def rollback(
    data: DataDir,
    version: Annotated[
        str,
        typer.Argument(
            metavar="VERSION", help="As eastwest policy versions shows it, or its beginning; the one before without."
        ),
    ] = "",
    change: Annotated[str, typer.Option(metavar="ID", help="The approved change that this is.")] = "",
    *,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Put a version in force again, everywhere and at once; shows what would change, then asks."""
    from eastwest.cli.rollout_client import RolloutClient
    from eastwest.cli.rollout_table import print_rollback

    async def work(expected: str) -> dict[str, Any]:
        async with RolloutClient.connect(data) as rollout:
            if expected:
                return await rollout.roll_back(version, expected, change)
            return await rollout.preview(version)

    preview = run(lambda: work(""))
    if not as_json:
        print_rollback(preview)
    if not yes:
        if as_json:
            print_json(preview | {"done": False})
        _ask("Go back to this version?")
    done = run(lambda: work(preview["from"]))
    if as_json:
        print_json(preview | done | {"done": True})
    else:
        print(f"in force: version {done['version']}")


def timed(rollout: dict[str, Any] | None) -> dict[str, Any] | None:
    """A rollout as JSON has it: its moments as every command's, not as the server counts them."""
    if rollout is None:
        return None
    return rollout | {name: utc(int(rollout[name] or 0)) for name in ("started", "since", "due")}


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter(NOBODY_TO_ASK, param_hint="--yes")
    if not typer.confirm(question, err=True):
        print("nothing was done")
        raise typer.Exit(1)


def _step(data: DataDir, verb: str, *, as_json: bool) -> None:
    from eastwest.cli.rollout_client import RolloutClient
    from eastwest.cli.rollout_table import print_rollout

    async def work() -> dict[str, Any]:
        async with RolloutClient.connect(data) as rollout:
            return await rollout.step(verb)

    told = run(work)
    if as_json:
        print_json(timed(told))
    else:
        print_rollout(told)
