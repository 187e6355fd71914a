"""Certificates and bundles as Envoy secrets, under SPIRE's names.

``default`` is the first identity, a SPIFFE ID that identity, ``ROOTCA`` the own bundle, ``spiffe://td`` one
bundle, ``ALL`` every bundle; ``eastwest:callers`` the bundles of the trust domains that callers come from. Their
ML-DSA-65 roots alone are ``eastwest:post-quantum:td`` and ``eastwest:callers:post-quantum``.
Bundles are always the SPIFFE validator's, which binds each trust domain to its own roots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_spiffe_validator_config_pb2

from eastwest.mesh import names
from eastwest.mesh.matching import pack
from eastwest.mesh.snapshot import Resource, Snapshot
from eastwest.spiffe.id import SCHEME, SpiffeId, TrustDomain

DEFAULT = "default"
ROOT_CA = "ROOTCA"
ALL = "ALL"
_POST_QUANTUM = names.post_quantum_bundle("")
_VALIDATOR = "envoy.tls.cert_validator.spiffe"


@dataclass(frozen=True, slots=True)
class Identity:
    """A live X.509-SVID with its key, both PEM; the chain is leaf first, without the root."""

    spiffe_id: str
    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SecretSet:
    """All that one workload may be given: its identities, the first of them the default, and bundles in PEM."""

    identities: tuple[Identity, ...]
    trust_domain: str
    bundles: Mapping[str, bytes]  # trust domain name → concatenated PEM roots
    callers: tuple[str, ...] = ()  # trust domains for `eastwest:callers`; those without a bundle are left out
    marker: object = None  # what all this stands for, to be told once it is acknowledged
    post_quantum: Mapping[str, bytes] = field(default_factory=dict)  # as ``bundles``, but ML-DSA-65 roots only

    def find(self, name: str) -> Resource | None:
        """The secret called ``name``, or None where there is none (yet)."""
        message = self._message(name)
        return None if message is None else Resource.of(name, names.SECRET, message)

    def all_names(self) -> tuple[str, ...]:
        """Every secret by its full name: what an empty list of names asks for."""
        return (
            *(identity.spiffe_id for identity in self.identities),
            *(SCHEME + trust_domain for trust_domain in sorted(self.bundles)),
        )

    def resources(self) -> tuple[Resource, ...]:
        """Every secret a sidecar's own config refers to."""
        quantum_safe = [names.post_quantum_bundle(trust_domain) for trust_domain in sorted(self.post_quantum)]
        own = (*self.all_names(), names.CALLERS_SECRET, *quantum_safe, names.POST_QUANTUM_CALLERS_SECRET)
        found = (self.find(name) for name in own)
        return tuple(resource for resource in found if resource is not None)

    def snapshot(self) -> Snapshot:
        """Every secret under every name, for incremental streams of secrets alone."""
        aliases = (self.find(name) for name in (DEFAULT, ROOT_CA, ALL))
        found = [*self.resources(), *(resource for resource in aliases if resource is not None)]
        return Snapshot.of("", found, self.marker)

    def _message(self, name: str) -> Any:
        if name == DEFAULT:
            return _certificate(name, self.identities[0]) if self.identities else None
        if name == ROOT_CA:
            return self._bundles(name, (self.trust_domain,))
        if name == ALL:
            return self._bundles(name, self.bundles)
        if name == names.CALLERS_SECRET:
            return self._bundles(name, self.callers or (self.trust_domain,))
        if name == names.POST_QUANTUM_CALLERS_SECRET:
            return self._bundles(name, self.callers or (self.trust_domain,), self.post_quantum)
        if name.startswith(_POST_QUANTUM):
            return self._bundles(name, (name.removeprefix(_POST_QUANTUM),), self.post_quantum)
        for identity in self.identities:
            if identity.spiffe_id == name:
                return _certificate(name, identity)
        return self._bundles(name, (name.removeprefix(SCHEME),)) if name.startswith(SCHEME) else None

    def _bundles(self, name: str, trust_domains: Iterable[str], bundles: Mapping[str, bytes] | None = None) -> Any:
        bundles = self.bundles if bundles is None else bundles
        known = sorted(trust_domain for trust_domain in set(trust_domains) if bundles.get(trust_domain))
        if not known:
            return None
        validator = tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig()
        for trust_domain in known:
            validator.trust_domains.add(name=trust_domain, trust_bundle={"inline_bytes": bundles[trust_domain]})
        context = common_pb2.CertificateValidationContext(
            custom_validator_config={"name": _VALIDATOR, "typed_config": pack(validator)}
        )
        return secret_pb2.Secret(name=name, validation_context=context)


def trust_domains_of(spiffe_ids: Iterable[str]) -> tuple[str, ...]:
    """The trust domain names of ``spiffe_ids``, sorted."""
    domains: set[TrustDomain] = {SpiffeId.parse(spiffe_id).trust_domain for spiffe_id in spiffe_ids}
    return tuple(sorted(domain.name for domain in domains))


def _certificate(name: str, identity: Identity) -> Any:
    return secret_pb2.Secret(
        name=name,
        tls_certificate={
            "certificate_chain": {"inline_bytes": identity.chain},
            "private_key": {"inline_bytes": identity.key},
        },
    )
