"""One workload's rules as an agent is sent them: compiled, with what this server adds, and a token to compare by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from eastwest.policy.enforcement import Outbound, Sidecar, encode_sidecar
from eastwest.server.federation.estate import foreign_domains
from eastwest.spiffe.id import SpiffeId, TrustDomain


@dataclass(frozen=True, slots=True)
class SidecarConfig:
    """One workload's compiled rules, the text that tells them apart, and the services in them."""

    token: str
    services: tuple[str, ...]
    trust_domains: tuple[TrustDomain, ...]
    """Foreign trust domains whose bundles the sidecar needs."""
    compiled: Sidecar = field(compare=False, repr=False)
    offered: Outbound | None = field(compare=False)

    @classmethod
    def of(cls, compiled: Sidecar, offered: Outbound | None) -> SidecarConfig:
        """The rules, with one more service that the workload reaches."""
        return cls(
            f"{compiled.version} {offered}",
            tuple(inbound.service for inbound in compiled.inbound),
            foreign_domains(compiled),
            compiled,
            offered,
        )

    @property
    def reports(self) -> bool:
        """Whether rules are in report mode here."""
        return any(inbound.report for inbound in self.compiled.inbound)

    def without_report(self) -> SidecarConfig:
        """The same without them; what is enforced stays."""
        inbound = tuple(msgspec.structs.replace(one, report=()) for one in self.compiled.inbound)
        plain = msgspec.structs.replace(self.compiled, inbound=inbound, version=f"{self.compiled.version}-enforced")
        return SidecarConfig.of(plain, self.offered)

    @property
    def reached(self) -> tuple[str, ...]:
        """Services that the workload has a way to."""
        return tuple(outbound.service for outbound in _with(self.compiled, self.offered).outbound)

    def encode(self) -> bytes:
        """The rules as they travel. All workloads' together are large, so it is done for those that are sent."""
        return encode_sidecar(_with(self.compiled, self.offered))


Configs = Mapping[SpiffeId, SidecarConfig]


def configs(enforced: Mapping[str, Sidecar], offered: Outbound | None, before: Configs) -> Configs:
    """One for each workload of a table; those that stay as they are in ``before`` are the same objects."""
    made = {}
    for name, sidecar in enforced.items():
        spiffe_id = SpiffeId.parse(name)
        config = before.get(spiffe_id)
        if config is None or config.compiled is not sidecar or config.offered != offered:
            config = SidecarConfig.of(sidecar, offered)
        made[spiffe_id] = config
    return made


def _with(sidecar: Sidecar, offered: Outbound | None) -> Sidecar:
    """The sidecar with one more service that it reaches."""
    if offered is None:
        return sidecar
    others = [one for one in sidecar.outbound if one.service != offered.service]
    outbound = sorted((*others, offered), key=lambda one: one.service)
    return msgspec.structs.replace(sidecar, outbound=tuple(outbound))
