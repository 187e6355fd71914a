"""The readable pages of an archive: what was found, what is proven, and what is not."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from eastwest.cli.evidence.collect import Collected

MAX_TABLE = 500
"""Lines of a table in the page; the files have all."""
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1b1b1b;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;width:100%;font-size:13px}
th,td{text-align:left;padding:.25rem .5rem;border-bottom:1px solid #ccc;vertical-align:top;overflow-wrap:anywhere}
th{background:#f2f2f2}code{font-size:12px}caption{text-align:left;font-weight:600;padding:.3rem 0}
@media(prefers-color-scheme:dark){body{background:#161616;color:#e6e6e6}th{background:#262626}td,th{border-color:#444}}
"""
PROVEN = """
Each entry under log/entries is in the log: its proof leads to a checkpoint that the log's key signed, so it was there,
in these words, when that checkpoint was signed. Every issuance is recorded before it is released.

The files under estate/ are those that were applied: the log's entry of that moment has their hashes.

Segments of the decision ledger were sealed into the log with the hashes shown. A segment that is included in full is
proven byte for byte.

With a seal (seal/): the log itself recorded the manifest's hash when this archive was made, so nothing in it was
changed since.
"""
NOT_PROVEN = """
That nothing was left out: proofs show what is there. Compare with the whole log (eastwest log search) and, for
decisions, with whole segments (--segments).

That decisions are true: sidecars and applications report them; the ledger proves that they were not changed after they
were sealed. Rows of segments that are not included in full, and rows not sealed yet, rest on the manifest and its seal.

The time of day: times are those of the server's clock, and of agents' clocks for decisions. Cosignatures of witnesses
on the checkpoint bear times of theirs.

That refused requests were few: refusals are counted by the minute, and those of the last minute before a crash may be
missing.
"""


def readme(made: Collected, facts: dict[str, Any]) -> str:
    """``README.md``: what this is and how to judge it."""
    return f"""# Evidence about {made.principal}

From {facts["from"]} to {facts["to"]}, from the log {made.origin}.

Judge it on any machine with Python 3.9 or later, with the log's verifier key as you have it from a source you trust:

    python verify.py --vkey log.vkey

It reads the directory that it lies in; give it the archive to judge that instead. `summary.html` is for reading.

| path | what |
|---|---|
| `manifest.json` | what was collected, with the SHA-256 of every file |
| `log/entries/N.json`, `N.tlog-proof` | an entry of the log and its proof (c2sp.org/tlog-proof@v1) |
| `log/checkpoint`, `log/*.vkey` | the signed head of the log, and keys as its server has them |
| `estate/VERSION/` | the policy that was in force |
| `decisions/rows.jsonl` | decisions in which it called or was called, and what is known to be lost |
| `decisions/segments/` | whole segments of the ledger, where they were asked for |
| `seal/` | the log's entry about this manifest, where a running server made it |

Proven:

{_bullets(_paragraphs(PROVEN))}

Not proven:

{_bullets(_paragraphs(NOT_PROVEN))}

It has personal data where names, addresses or paths of your systems are such: treat it as such.
"""


def summary(made: Collected, facts: dict[str, Any]) -> str:
    """``summary.html``: one page that needs nothing else."""
    entries = [(index, json.loads(raw)) for index, (raw, _) in sorted(made.entries.items())]
    decided = facts["decisions"]
    parts = [
        f"<h1>Evidence about <code>{_text(made.principal)}</code></h1>",
        _table(
            "What this is",
            ("", ""),
            [
                ("from", facts["from"]),
                ("to", facts["to"]),
                ("log", f"{made.origin}, {made.size} entries"),
                ("root", made.root),
                ("its services", ", ".join(made.services) or "none"),
                ("entries of the log", len(entries)),
                ("decisions", f"{decided['calls']} calls in {decided['rows']} rows"),
                ("known to be lost", f"{decided['lost']} decisions"),
                ("rows not sealed yet", decided["unsealed_rows"]),
                ("made by", facts["made_by"]),
            ],
        ),
        _cut(made.cut),
        _issued(entries),
        _denied(entries),
        _calls(made),
        _refusals(made),
        _table(
            "Timeline: entries of the log",
            ("entry", "time", "kind", "subject", "actor"),
            [(i, e["time"], e["kind"], e["subject"], e["actor"]) for i, e in entries],
        ),
        _table(
            "Policy in force",
            ("entry", "from", "version", "files here"),
            [
                (i, e["time"], e["version"], "yes" if e["version"] in made.estates else "hashes only")
                for i, e in entries
                if e["kind"] == "policy.activated"
            ],
        ),
        _table(
            "Segments of the decision ledger",
            ("segment", "SHA-256", "rows", "sealed by entry", "here in full"),
            [
                (s["segment"], s["sha256"], f"{s['first_row']} to {s['last_row']}", s["entry"], s["included"])
                for s in made.segments
            ],
        ),
        f"<h2>Proven</h2><ul>{_items(_paragraphs(PROVEN))}</ul>",
        f"<h2>Not proven</h2><ul>{_items(_paragraphs(NOT_PROVEN))}</ul>",
    ]
    title = f"<title>Evidence about {_text(made.principal)}</title>"
    policy = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8">{policy}{title}<style>{_STYLE}</style>'
    return f"{head}<body>{''.join(parts)}</body></html>\n"


def _issued(entries: Sequence[tuple[int, dict[str, Any]]]) -> str:
    rows = [
        (i, e["time"], e["kind"], e.get("serial", ""), e["not_after"], e["node"], e["entry_id"], e["door"])
        for i, e in entries
        if e["kind"].endswith(".issued")
    ]
    return _table("Issued", ("entry", "time", "kind", "serial", "until", "node", "registration", "door"), rows)


def _denied(entries: Sequence[tuple[int, dict[str, Any]]]) -> str:
    rows = [
        (i, e["first"], e["last"], e["count"], e["code"], e["actor"], e["subject"])
        for i, e in entries
        if e["kind"] == "issuance.denied"
    ]
    return _table("Refused issuance", ("entry", "first", "last", "times", "code", "caller", "asked for"), rows)


def _calls(made: Collected) -> str:
    edges: Counter[tuple[str, ...]] = Counter()
    for row in made.rows:
        if row.get("kind", "decision") == "decision":
            caller = row.get("caller", "") or "(nobody proven)"
            if row.get("claimed"):
                caller += " (claimed, not proven)"
            place = (caller, row["service"], row.get("operation", ""), row["verdict"], row["code"])
            edges[place] += row.get("count", 1)
    rows = [(*edge, count) for edge, count in sorted(edges.items())]
    return _table("Calls", ("caller", "service", "operation", "verdict", "code", "times"), rows)


def _refusals(made: Collected) -> str:
    rows = [
        (r["row"], r["time"], r.get("caller", ""), r["service"], r.get("operation", ""), r["code"], r.get("policy", ""))
        for r in made.rows
        if r.get("verdict") == "deny"
    ]
    return _table("Refused calls", ("row", "time", "caller", "service", "operation", "code", "policy"), rows)


def _table(caption: str, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table, or a sentence where it would be empty; what is beyond the bound is said."""
    if not rows:
        return f"<h2>{_text(caption)}</h2><p>None.</p>"
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows[:MAX_TABLE])
    more = f"<p>{len(rows) - MAX_TABLE} more are in the files.</p>" if len(rows) > MAX_TABLE else ""
    heading = f"<thead><tr>{head}</tr></thead>" if any(names) else ""
    return f"<h2>{_text(caption)}</h2><table>{heading}<tbody>{body}</tbody></table>{more}"


def _cut(cut: Sequence[str]) -> str:
    return f"<h2>Left out</h2><ul>{_items(cut)}</ul>" if cut else ""


def _items(texts: Iterable[str]) -> str:
    return "".join(f"<li>{_text(text)}</li>" for text in texts)


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.strip().split("\n\n")]


def _bullets(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


def _text(value: object) -> str:
    return html.escape(str(value))
