"""``eastwest blast``: what a principal reaches, directly and by hops, and what a change or containment makes of it.

Exit codes: 0 done, 1 there is no such principal, or the estate has errors, 2 wrong usage, 3 the server does not answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eastwest.cli.estate_source import AppliedData, MaybeDirectory, Source, from_files, source
from eastwest.cli.options import AsJson, counted, examples, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eastwest.policy.blast import Blast, Change, Reached
    from eastwest.policy.estate import Sensitivity

_COLUMNS = ("WEIGHT", "OPERATION", "SENSITIVITY", "TENANTS", "NEEDS", "HOPS", "HOW")
EXAMPLES = {
    "blast": examples(
        "eastwest blast spiffe://saas.example/prod/messaging/notification estate",
        "eastwest blast --selector unix:user:notification --data data",
        "eastwest blast spiffe://saas.example/prod/messaging/notification estate --contained",
        "eastwest blast spiffe://saas.example/prod/messaging/notification estate --against changed",
    )
}


def blast(
    context: typer.Context,
    principal: Annotated[
        str, typer.Argument(metavar="ID", help="The SPIFFE ID; leave it out with --selector.", show_default=False)
    ] = "",
    directory: MaybeDirectory = None,
    data: AppliedData = None,
    selector: Annotated[
        list[str] | None,
        typer.Option(metavar="T:V", help="Instead of ID: all that have this selector; may be repeated, all must hold."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="DIR", exists=True, file_okay=False, help="Compare with this estate: before and after."),
    ] = None,
    contained: Annotated[
        bool, typer.Option("--contained", help="Compare with the principal itself contained.")
    ] = False,
    contain: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Compare with this one contained; may be repeated.")
    ] = None,
    through: Annotated[
        str,
        typer.Option(
            metavar="LEVEL", help="The least sensitivity of an operation by which its service is had: open, read, ..."
        ),
    ] = "read",
    as_strict: Annotated[bool, typer.Option("--as-strict", help="As if every service were strict.")] = False,
    top: Annotated[int, typer.Option(metavar="K", min=0, max=10_000, help="How many paths to show.")] = 10,
    *,
    as_json: AsJson = False,
) -> None:
    """Say what a principal reaches: its own rights, and those of the services that it may come to hold by them."""
    from eastwest.policy.blast import Change, World
    from eastwest.policy.estate import Sensitivity

    if through not in list(Sensitivity):
        raise typer.BadParameter(f"{through[:80]!r} is none of {', '.join(Sensitivity)}", param_hint="--through")
    if selector and principal and directory is None and Path(principal).is_dir():
        principal, directory = "", Path(principal)  # with --selector the first word is the estate
    if bool(principal) == bool(selector):
        raise typer.BadParameter("say an ID or --selector, and not both", param_hint="ID")
    if against is not None and (contained or contain):
        raise typer.BadParameter("compare with an estate or with containment, not both", param_hint="--against")
    found = source(context, directory, data)
    level = Sensitivity(through)
    world = World(found.compiled, found.estate, as_strict=as_strict)
    start = _start(found, principal, selector or (), world.principals)
    now = world.blast(start, through=level)
    after = None
    if against is not None:
        after = _other(against, start, level, as_strict=as_strict)
    elif contained or contain:
        unknown = sorted(set(contain or ()) - set(world.principals))
        _known(unknown[0] if unknown else start[0], world.principals)
        after = world.blast(start, contained={*(contain or ()), *(start if contained else ())}, through=level)
    change = Change(before=now, after=after) if after is not None else None
    if as_json:
        print_json(now.to_dict() if change is None else _plain(change))
    elif change is None:
        _show(now, top)
    else:
        _show_change(change, top)


def _start(found: Source, principal: str, selectors: Sequence[str], known: object) -> tuple[str, ...]:
    from eastwest.errors import NotFound
    from eastwest.policy.blast import selected

    if principal:
        _known(principal, known)
        return (principal,)
    start = selected(found.estate, selectors)
    if not start:
        raise NotFound(f"no workload has {' and '.join(selectors)}", fix="see selectors in workloads/")
    return start


def _known(principal: str, known: Any) -> None:
    from eastwest.errors import NotFound
    from eastwest.policy.problems import suggest_id

    if principal not in known:
        raise NotFound(
            f"nobody registered {principal[:512]}", fix=suggest_id(principal, known, otherwise="see workloads/")
        )


def _other(against: Path, start: tuple[str, ...], through: Sensitivity, *, as_strict: bool) -> Blast:
    """Whoever is not registered there any more reaches nothing."""
    from eastwest.cli.estate import read_directory
    from eastwest.policy.blast import World

    other = from_files(read_directory(against))
    world = World(other.compiled, other.estate, as_strict=as_strict)
    return world.blast(start, contained=set(start) - set(world.principals), through=through)


def _plain(change: Change) -> dict[str, Any]:
    return {
        "before": change.before.to_dict(),
        "after": change.after.to_dict(),
        "gone": [one.operation for one in change.gone],
        "gained": [one.operation for one in change.gained],
        "changed": [new.operation for _, new in change.changed],
    }


def _show(blast: Blast, top: int) -> None:
    from eastwest.cli.table import print_table

    print(f"{', '.join(blast.principals)} (tenants: {', '.join(blast.tenants) or 'none of its own'})")
    facts = blast.to_dict(0)
    print(
        f"reaches {counted(facts['operations'], 'operation')}, {facts['direct']} directly, {facts['held']} only with a "
        f"token or an approval, {facts['across_tenants']} beyond its tenants"
    )
    print(f"weight {blast.weight}, and {blast.held_weight} behind a token or an approval")
    for name, counts in (("by sensitivity", facts["by_sensitivity"]), ("by data", facts["by_data"])):
        if counts:
            print(f"{name}: {', '.join(f'{key} {count}' for key, count in counts.items())}")
    if blast.identities:
        print(f"may come to hold: {', '.join(blast.identities[:20])}{_more(len(blast.identities), 20)}")
    if blast.reached and top:
        print()
        print_table(_COLUMNS, _rows(blast.paths(top)))
        if len(blast.reached) > top:
            print(f"and {len(blast.reached) - top} more: --top, or --json for all")


def _rows(reached: Sequence[Reached]) -> list[tuple[str, ...]]:
    return [
        (
            str(one.weight),
            one.operation,
            str(one.sensitivity or "unclassified"),
            one.tenants + (" (beyond its own)" if one.across else ""),
            str(one.held),
            str(one.hops),
            _how(one),
        )
        for one in reached
    ]


def _how(one: Reached) -> str:
    calls = " > ".join(step.operation + (f" ({step.held})" if step.held else "") for step in one.path)
    return f"{calls} by {', '.join(one.policies)}" if one.policies else calls


def _show_change(change: Change, top: int) -> None:
    from eastwest.cli.table import print_table

    print(f"{', '.join(change.before.principals)}")
    names = ("operations", "direct", "held", "across_tenants", "weight", "held_weight")
    before, after = change.before.to_dict(0), change.after.to_dict(0)
    rows = [(name.replace("_", " "), str(before[name]), str(after[name])) for name in names]
    rows.append(("identities", str(len(before["identities"])), str(len(after["identities"]))))
    print_table(("REACHED", "BEFORE", "AFTER"), rows)
    for title, found in (("no longer reached", change.gone), ("newly reached", change.gained)):
        if found and top:
            print(f"\n{title} ({len(found)}):")
            print_table(_COLUMNS, _rows(found[:top]))
    if change.changed and top:
        print(f"\nreached otherwise ({len(change.changed)}):")
        print_table(
            ("OPERATION", "WEIGHT BEFORE", "AFTER", "NEEDS BEFORE", "AFTER"),
            [(n.operation, str(o.weight), str(n.weight), str(o.held), str(n.held)) for o, n in change.changed[:top]],
        )


def _more(count: int, shown: int) -> str:
    return f" and {count - shown} more" if count > shown else ""
