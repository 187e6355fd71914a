"""The naming convention of SPIFFE IDs: templates by environment, what an ID says under them, and waivers that end.

A template is a path of whole segments, each a plain word or one of ``{environment}``, ``{domain}``, ``{service}``,
``{namespace}``, ``{serviceaccount}``. An ID follows the convention when the template of at least one environment
gives it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date

from eastwest.policy.estate import Environment, EnvironmentKind, Service, Settings, Waiver
from eastwest.spiffe.id import SpiffeId
from eastwest.spiffe.pattern import matches

DEFAULT_TEMPLATE = "/{environment}/{domain}/{service}"
KUBERNETES_TEMPLATE = "/{environment}/ns/{namespace}/sa/{serviceaccount}"
RULE = "naming"


@dataclass(frozen=True, slots=True)
class NameWaiver:
    """IDs that need not follow the convention through the day ``until``; ``pattern`` is one of ``spiffe.pattern``."""

    name: str
    pattern: str
    until: date


@dataclass(frozen=True, slots=True)
class Naming:
    """The convention: each environment's template, the domains that there are, and the waivers."""

    templates: Mapping[str, str]
    domains: frozenset[str] = frozenset()
    waivers: tuple[NameWaiver, ...] = ()

    @classmethod
    def of(cls, settings: Settings, waivers: Iterable[Waiver] = (), services: Iterable[Service] = ()) -> Naming:
        """The convention of an estate."""
        workloads = {service.service: service.workload for service in services}
        excused = []
        for waiver in waivers:
            scope = waiver.applies_to
            pattern = scope.workload or workloads.get(scope.service or "", "")
            if scope.rule == RULE and pattern:
                excused.append(NameWaiver(waiver.waiver, pattern, waiver.until))
        return cls(
            {environment.name: template(settings, environment) for environment in settings.environments},
            frozenset(domain.name for domain in settings.domains),
            tuple(excused),
        )

    def read(self, spiffe_id: SpiffeId) -> tuple[dict[str, str], ...]:
        """What the ID says under each environment whose template it fits; ``environment`` is always among it."""
        found = []
        for environment in self.templates:
            said = self.read_in(environment, spiffe_id)
            if said is not None and (not self.domains or said.get("domain", "") in {"", *self.domains}):
                found.append(said)
        return tuple(found)

    def read_in(self, environment: str, spiffe_id: SpiffeId) -> dict[str, str] | None:
        """What the ID says under the template of one environment; ``None`` when it does not fit."""
        segments = self.templates[environment][1:].split("/")
        parts = spiffe_id.path[1:].split("/")
        if len(segments) != len(parts):
            return None
        said = {"environment": environment}
        for segment, part in zip(segments, parts, strict=True):
            if not segment.startswith("{"):
                if segment != part:
                    return None
            elif said.setdefault(segment[1:-1], part) != part:
                return None
        return said

    def environment_of(self, spiffe_id: SpiffeId) -> str:
        """The one environment that the ID names, or ``""``."""
        names = {said["environment"] for said in self.read(spiffe_id)}
        return names.pop() if len(names) == 1 else ""

    def domain_of(self, spiffe_id: SpiffeId) -> str:
        """The one domain that the ID names, or ``""``."""
        names = {said.get("domain", "") for said in self.read(spiffe_id)}
        return names.pop() if len(names) == 1 else ""

    def waiver(self, spiffe_id: SpiffeId, today: date | None = None) -> NameWaiver | None:
        """A waiver that excuses the ID ``today``; without a day, any that ever did."""
        covering = [waiver for waiver in self.waivers if matches(waiver.pattern, spiffe_id)]
        return next((waiver for waiver in covering if today is None or today <= waiver.until), None)

    def complaint(self, spiffe_id: SpiffeId, today: date) -> tuple[str, str] | None:
        """Why the ID may not be registered ``today``, and the form to follow; ``None`` when it may."""
        if not self.templates or self.read(spiffe_id) or self.waiver(spiffe_id, today):
            return None
        over = self.waiver(spiffe_id)
        ended = f"; waiver {over.name!r} ended on {over.until}" if over else ""
        return (
            f"{spiffe_id} does not follow the naming convention{ended}",
            f"write {self.expected(spiffe_id)}, or add a waiver with rule: {RULE}",
        )

    def expected(self, spiffe_id: SpiffeId) -> str:
        """The forms to follow, nearest first, with the values that the ID gives already filled in."""
        path = spiffe_id.path[1:]
        parts = path.split("/")
        known = {*self.templates, *self.domains}
        forms = []
        for environment, text in self.templates.items():
            segments = text[1:].split("/")
            given = parts if len(parts) == len(segments) else [""] * len(segments)
            filled = [self._filled(s, environment, part) for s, part in zip(segments, given, strict=True)]
            near = difflib.SequenceMatcher(None, "/".join(filled), path).ratio()
            shared = sum(part in known and part in filled for part in parts)
            forms.append((-(near + shared), f"{spiffe_id.trust_domain.uri}/{'/'.join(filled)}"))
        return " or ".join(dict.fromkeys(text for _, text in sorted(forms)[:3]))

    def _filled(self, segment: str, environment: str, part: str) -> str:
        if segment == "{environment}":
            return environment
        if segment == "{domain}" and part not in self.domains:
            near = difflib.get_close_matches(part, self.domains, n=1)
            return near[0] if near else segment
        return (part or segment) if segment.startswith("{") else segment


def template(settings: Settings, environment: Environment) -> str:
    """The template of an environment: its own, else the estate's, else the default of its kind."""
    if environment.naming is not None:
        return environment.naming
    if settings.naming is not None:
        return settings.naming
    return KUBERNETES_TEMPLATE if environment.kind is EnvironmentKind.KUBERNETES else DEFAULT_TEMPLATE
