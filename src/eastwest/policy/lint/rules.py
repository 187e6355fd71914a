"""The list of lint rules: names never change, as waivers and reports in other systems rest on them."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.StrEnum):
    """How bad it is: the words are those of SARIF. ``error``: rights that hardly anybody means to give."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"

    @property
    def rank(self) -> int:
        """Greater is worse."""
        return ("note", "warning", "error").index(self.value)


@dataclass(frozen=True, slots=True)
class LintRule:
    """One rule; ``level`` is that of its findings unless a finding says otherwise."""

    name: str
    level: Level
    meaning: str
    fix: str


_ALL = (
    LintRule(
        "wide-caller",
        Level.ERROR,
        "A permit asks nothing of who calls and reaches more than open operations.",
        "Name the callers that need it, or their domain, or ask for an attribute of theirs.",
    ),
    LintRule(
        "wide-action",
        Level.WARNING,
        "A permit names no action, so that it covers every operation of its services, those of tomorrow too.",
        "List the operations, or name a group such as read.",
    ),
    LintRule(
        "wide-resource",
        Level.WARNING,
        "A permit for a group of actions names no service, so that it covers every service, those of tomorrow too.",
        "Name the services, or one domain.",
    ),
    LintRule(
        "wide-domain",
        Level.WARNING,
        "A permit lets a whole domain or environment control something, or change things by a wildcard.",
        "Name the workloads that do it, and the operations.",
    ),
    LintRule(
        "read-wider-than-write",
        Level.WARNING,
        "Writes of a resource are kept to a few callers and its reads are open to most, or to every tenant's callers.",
        "Hold reads to the callers and tenants that need them, as writes are.",
    ),
    LintRule(
        "read-classified-low",
        Level.WARNING,
        "A read is classified lower than its resource's writes or its data elsewhere make likely.",
        "Classify it restricted-read, or read where it carries nobody's data.",
    ),
    LintRule(
        "write-wider-than-read",
        Level.WARNING,
        "Reads of a resource are kept to a few callers and more may write it.",
        "Hold writes to the callers that need them.",
    ),
    LintRule(
        "write-classified-low",
        Level.WARNING,
        "An operation that changes something, by its method or verb, is classified as a read.",
        "Classify it mutate, or control.",
    ),
    LintRule(
        "environment-inheritance",
        Level.ERROR,
        "An identity from outside production may do something in production.",
        "Forbid calls between environments, or give the caller an identity in production.",
    ),
    LintRule(
        "environment-administrator",
        Level.ERROR,
        "An identity from outside production may administer production.",
        "Limit the row by environments, or name an administrator in production.",
    ),
    LintRule(
        "environment-name",
        Level.ERROR,
        "A SPIFFE ID or a foreign trust domain says one environment and its registration says production.",
        "Register it in the environment that its name says, or rename it.",
    ),
    LintRule(
        "environment-groups",
        Level.ERROR,
        "A node outside production belongs to a node group of production too.",
        "Let the selectors of the two groups differ, so that no node can have both.",
    ),
    LintRule(
        "environment-unsaid",
        Level.WARNING,
        "No environment is production, so that nothing can be said of rights in it.",
        "Say production: true at the environments that are.",
    ),
    LintRule(
        "dead-policy",
        Level.WARNING,
        "A policy decides nothing: no caller, operation and tenant of the estate fit it.",
        "Remove it, or mend its head or conditions.",
    ),
    LintRule(
        "shadowed-policy",
        Level.WARNING,
        "A policy changes nothing: wherever it holds, others decide the same, or a forbid overrules it.",
        "Remove it, or narrow the policies that cover it.",
    ),
    LintRule(
        "control-without-step-up",
        Level.ERROR,
        "An operation of control needs no transaction token.",
        "Say demands: [step-up], or approval; or ask for context.step_up in the policy.",
    ),
    LintRule(
        "unowned",
        Level.WARNING,
        "Nobody known owns it: its owner is no owner of a domain and no group of the estate.",
        "Correct the owner, or declare it: domains[].owners or groups.",
    ),
    LintRule(
        "shared-identity",
        Level.WARNING,
        "One identity stands for several things, so that none can be contained or limited alone.",
        "Register one identity for each.",
    ),
    LintRule(
        "overlapping-selectors",
        Level.WARNING,
        "A process that is one workload is by its selectors another one too.",
        "Tell them apart by selectors, such as unix:user or unix:path.",
    ),
    LintRule(
        "broad-selectors",
        Level.WARNING,
        "The selectors of a workload fit processes of any kind.",
        "Add a selector that only this program has, such as unix:user or unix:path.",
    ),
    LintRule(
        "mtls-strict",
        Level.WARNING,
        "A service is permissive without an end, or past it: its rules are only reported.",
        "Write mtls: strict, or until: with the day.",
    ),
    LintRule(
        "unclassified",
        Level.WARNING,
        "An operation has no sensitivity, so that it is refused to everybody.",
        "Say open, read, restricted-read, mutate or control.",
    ),
    LintRule(
        "free-tenant",
        Level.WARNING,
        "Callers that serve tenants may name any tenant in a header that is their own word.",
        "Hold them to their tenants, or take the tenant from the path or the token.",
    ),
    LintRule(
        "restricted-across-domains",
        Level.WARNING,
        "A group of callers reads another domain's restricted data without any condition.",
        "Name the workloads that need it, or add a condition.",
    ),
    LintRule(
        "waiver-ended",
        Level.WARNING,
        "A waiver has ended, or excuses something that is not there.",
        "Remove it, or have it renewed.",
    ),
)
CATALOGUE = {rule.name: rule for rule in _ALL}
LINTS = frozenset(CATALOGUE)
"""Names that a waiver may have as its rule."""
ABOUT_SERVICES = frozenset({"mtls-strict", "unclassified", "control-without-step-up", "read-classified-low"})
"""Those whose findings are about a service alone, so that a waiver for workloads would excuse nothing."""
