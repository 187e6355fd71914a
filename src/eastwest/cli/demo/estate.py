"""The demo's estate: the files in ``templates/`` with this demo's ports, sockets, selectors and dates filled in."""

from __future__ import annotations

import os
import string
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from importlib import resources
from importlib.resources.abc import Traversable

from eastwest.cli.demo.place import SERVICES, WORKLOADS, Place, Workload

PERMISSIVE_DAYS = timedelta(days=30)
"""How long the company gives itself to leave permissive mode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What of the estate changes while the demo runs."""

    billing_strict: bool
    billing_ttl: str


def render(place: Place, ports: Mapping[str, int], intent: Intent, today: date) -> dict[str, bytes]:
    """The estate's files by path."""
    until = (today + PERMISSIVE_DAYS).isoformat()
    values = {
        "administrator": str(os.geteuid()),
        "until": until,
        "billing_mode": "strict" if intent.billing_strict else f"permissive, until: {until}",
        "billing_ttl": intent.billing_ttl,
    }
    for workload in WORKLOADS:
        values[f"{workload.name}_selector"] = selector(place, workload)
    for service in SERVICES:
        values[f"{service.name}_port"] = str(ports[service.name])
        values[f"{service.name}_socket"] = str(place.app_socket(service))
    files = {
        path: string.Template(text).substitute(values).encode()
        for path, text in _templates(resources.files("eastwest.cli.demo") / "templates", "")
    }
    if intent.billing_strict:
        del files["waivers/billing-plaintext.yaml"]  # what it excused is over
    return files


def selector(place: Place, workload: Workload) -> str:
    """What tells the workload's sidecar from others: its uid, or without root the path of its program."""
    uid = place.uids.of(workload)
    return f"unix:path:{place.envoy(workload)}" if uid is None else f"unix:uid:{uid}"


def write(files: Mapping[str, bytes], place: Place) -> None:
    """Put the estate where a person can look at it and apply it again."""
    for old in [path for path in place.estate.rglob("*") if path.is_file()]:
        old.unlink()
    for path, content in files.items():
        target = place.estate / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _templates(folder: Traversable, prefix: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.is_dir():
            found += _templates(item, f"{prefix}{item.name}/")
        else:
            found.append((prefix + item.name, item.read_text(encoding="utf-8")))
    return found
