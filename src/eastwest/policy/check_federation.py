"""Whether what an estate says of foreign trust domains holds together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from eastwest.policy.check import check_attributes
from eastwest.policy.decode import Path
from eastwest.policy.estate import Federation, Settings, Workload
from eastwest.policy.operations import OWN_SERVICE
from eastwest.policy.parts import Parts
from eastwest.policy.problems import Findings, Position, suggest
from eastwest.spiffe.id import SpiffeId

_ROOT = "federation"


def check_federation(
    settings: Settings,
    places: dict[Path, Position],
    workloads: Parts[Workload],
    services: Collection[str],
    files: Mapping[str, bytes],
    findings: Findings,
) -> None:
    """Write a finding for everything that does not fit. ``files`` are those of the folder ``federation``."""
    checker = _Checker(settings, places, findings)
    for i, one in enumerate(settings.federation):
        checker.relationship(i, one, files)
        checker.workloads(i, one)
        checker.services(i, one, services)
    checker.attribute_kinds(workloads)
    named = {one.trust_domain for one in settings.federation}
    for name, workload in workloads.items.items():
        for i, domain in enumerate(workload.federates_with):
            if domain not in named:
                fix = suggest(domain, named, otherwise=f"add it to {_ROOT} in estate.yaml")
                findings.error(workloads.at(name, "federates_with", i), f"no federation with {domain!r}", fix)
    used = {one.bundle for one in settings.federation}
    for name in sorted(files.keys() - used):
        findings.warning(Position(name), "this file is not read", f"name it as bundle: in {_ROOT} of estate.yaml")


class _Checker:
    def __init__(self, settings: Settings, places: dict[Path, Position], findings: Findings) -> None:
        self._settings = settings
        self._places = places
        self._findings = findings
        self._seen: dict[str, set[str]] = {"federation with": set(), "foreign workload": set(), "service": set()}

    def relationship(self, index: int, one: Federation, files: Mapping[str, bytes]) -> None:
        at = partial(self._at, index)
        self._once("federation with", one.trust_domain, at("trust_domain"))
        if one.trust_domain == self._settings.trust_domain:
            self._findings.error(
                at("trust_domain"), f"{one.trust_domain} is the estate's own trust domain", "name a foreign one"
            )
        if one.bundle is not None and one.bundle not in files:
            fix = suggest(one.bundle, files, otherwise="put the file there; bundle show --format spiffe makes it")
            self._findings.error(at("bundle"), f"there is no file {one.bundle}", fix)
        if one.endpoint is None and (one.endpoint_spiffe_id is not None or one.profile == "https_spiffe"):
            self._findings.error(at("profile"), "a profile without an endpoint", "add endpoint: https://...")
        elif one.profile == "https_spiffe":
            self._spiffe_endpoint(index, one)
        elif one.endpoint_spiffe_id is not None:
            self._findings.error(
                at("endpoint_spiffe_id"),
                "an endpoint of profile https_web has no SPIFFE ID",
                "write profile: https_spiffe, or remove the ID",
            )

    def workloads(self, index: int, one: Federation) -> None:
        environments, domains = self._names()
        for i, workload in enumerate(one.workloads):
            at = partial(self._at, index, "workloads", i)
            self._foreign_id(workload.spiffe_id, one.trust_domain, at("spiffe_id"))
            self._once("foreign workload", workload.spiffe_id, at("spiffe_id"))
            self._known("environment", workload.environment, environments, at("environment"))
            self._known("domain", workload.domain, domains, at("domain"))
            check_attributes(workload.attributes, partial(at, "attributes"), self._findings)

    def services(self, index: int, one: Federation, own: Collection[str]) -> None:
        environments, _ = self._names()
        for i, service in enumerate(one.services):
            at = partial(self._at, index, "services", i)
            self._foreign_id(service.workload, one.trust_domain, at("workload"))
            self._once("service", service.service, at("service"))
            self._known("environment", service.environment, environments, at("environment"))
            if service.service == OWN_SERVICE:
                self._findings.error(
                    at("service"), f"{OWN_SERVICE!r} is the server's own service", "name the foreign one otherwise"
                )
            if service.service in own:
                self._findings.error(
                    at("service"), f"{service.service!r} is a service of this estate", "name the foreign one otherwise"
                )

    def attribute_kinds(self, workloads: Parts[Workload]) -> None:
        """An attribute is a text everywhere or a list everywhere, here and abroad."""
        kinds: dict[str, tuple[type, str]] = {}
        for name, own in workloads.items.items():
            for key, value in own.attributes.items():
                kinds.setdefault(key, (type(value), name))
        for index, one in enumerate(self._settings.federation):
            for i, workload in enumerate(one.workloads):
                for key, value in workload.attributes.items():
                    kind, holder = kinds.setdefault(key, (type(value), workload.spiffe_id))
                    if kind is not type(value) and key != "tenants":
                        self._findings.error(
                            self._at(index, "workloads", i, "attributes", key),
                            f"attribute {key!r} is not of the same kind at {holder}",
                            "write a text at both, or a list at both",
                        )

    def _spiffe_endpoint(self, index: int, one: Federation) -> None:
        if one.endpoint_spiffe_id is None:
            self._findings.error(
                self._at(index, "profile"),
                "profile https_spiffe needs the SPIFFE ID of the endpoint",
                f"add endpoint_spiffe_id: spiffe://{one.trust_domain}/spire/server",
            )
            return
        prover = SpiffeId.parse(one.endpoint_spiffe_id).trust_domain.name
        where = self._at(index, "endpoint_spiffe_id")
        if prover == self._settings.trust_domain:
            self._findings.error(where, "the endpoint is not one of our own workloads", "name the foreign server's ID")
        elif prover == one.trust_domain and one.bundle is None:
            self._findings.warning(
                where,
                "without a bundle to begin with, nothing verifies the endpoint",
                "add bundle: federation/NAME.json, or set one by API",
            )

    def _foreign_id(self, spiffe_id: str, trust_domain: str, where: Position) -> None:
        if SpiffeId.parse(spiffe_id).trust_domain.name != trust_domain:
            self._findings.error(
                where, f"{spiffe_id} is not of the trust domain {trust_domain}", "list it where its trust domain is"
            )

    def _once(self, what: str, name: str, where: Position) -> None:
        if name in self._seen[what]:
            self._findings.error(where, f"{what} {name!r} is declared twice", "keep one")
        self._seen[what].add(name)

    def _known(self, what: str, name: str, known: Collection[str], where: Position) -> None:
        if name not in known:
            fix = suggest(name, known, otherwise=f"declare the {what}, or correct the name")
            self._findings.error(where, f"unknown {what} {name!r}", fix)

    def _names(self) -> tuple[set[str], set[str]]:
        return {e.name for e in self._settings.environments}, {d.name for d in self._settings.domains}

    def _at(self, index: int, *path: Any) -> Position:
        whole: Path = (_ROOT, index, *path)
        while len(whole) > 1 and whole not in self._places:
            whole = whole[:-1]
        return self._places.get(whole, Position("estate.yaml"))
