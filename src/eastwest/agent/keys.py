"""Keys that the agent makes for workloads: in memory, or sealed; never written in clear."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from eastwest.pki.csr import make_csr
from eastwest.spiffe.id import SpiffeId


@dataclass(frozen=True, slots=True)
class WorkloadKey:
    """A P-256 key as the Workload API carries it: PKCS#8 in DER. ``spki`` is its public half in DER."""

    pkcs8: bytes = field(repr=False)
    spki: bytes


def new_key(spiffe_id: SpiffeId) -> tuple[WorkloadKey, bytes]:
    """A fresh key, and the request (PKCS#10, DER) to certify it for ``spiffe_id``."""
    private = ec.generate_private_key(ec.SECP256R1())
    key = WorkloadKey(
        pkcs8=private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        spki=private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    )
    return key, make_csr(private, spiffe_id)
