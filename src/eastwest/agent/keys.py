"""Keys that the agent makes for workloads: in memory, or sealed; never written in clear."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from eastwest.pki.csr import make_csr
from eastwest.pki.signer import KeyAlgorithm, generate_private_key
from eastwest.spiffe.id import SpiffeId


@dataclass(frozen=True, slots=True)
class WorkloadKey:
    """A key as the Workload API carries it: PKCS#8 in DER, of ML-DSA-65 the seed (RFC 9881). ``spki`` is its public
    half in DER.
    """

    pkcs8: bytes = field(repr=False)
    spki: bytes
    algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256


def new_key(spiffe_id: SpiffeId, algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256) -> tuple[WorkloadKey, bytes]:
    """A fresh key, and the request (PKCS#10, DER) to certify it for ``spiffe_id``."""
    private = generate_private_key(algorithm)
    key = WorkloadKey(
        pkcs8=private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        spki=private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        algorithm=algorithm,
    )
    return key, make_csr(private, spiffe_id)
