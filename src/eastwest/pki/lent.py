"""A ``Signer`` in the shape of a private key, for cryptography's builders of requests, CRLs and OCSP answers.

The builders call ``sign`` and ``public_key`` and nothing else; everything that would show the key refuses.
"""

from __future__ import annotations

from typing import Any, NoReturn

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa

from eastwest.errors import Internal
from eastwest.pki.signer import HASHES, KeyAlgorithm, PrivateKey, Signer


def lend(signer: Signer) -> PrivateKey:
    """The signer as a private key that can sign and do nothing else."""
    if signer.algorithm is KeyAlgorithm.ED25519:
        return _LentEd25519(signer)
    if signer.algorithm is KeyAlgorithm.ML_DSA_65:
        return _LentMlDsa65(signer)
    return _LentEc(signer)


class _Lent:
    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def public_key(self) -> Any:
        return self._signer.public_key

    def _refuse(self, *_arguments: object) -> NoReturn:
        raise TypeError("this key signs, and cannot be seen or copied")

    private_bytes = private_bytes_raw = private_numbers = exchange = sign_mu = _refuse
    __copy__ = __deepcopy__ = __reduce__ = _refuse


class _LentEc(_Lent, ec.EllipticCurvePrivateKey):
    @property
    def curve(self) -> ec.EllipticCurve:
        key: ec.EllipticCurvePublicKey = self.public_key()
        return key.curve

    @property
    def key_size(self) -> int:
        return self.curve.key_size

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        wanted = getattr(signature_algorithm.algorithm, "name", "")
        if wanted != HASHES[self._signer.algorithm].name:
            raise Internal(f"a {self._signer.algorithm} key does not sign with {wanted}")
        return self._signer.sign(bytes(data))


class _LentEd25519(_Lent, ed25519.Ed25519PrivateKey):
    def sign(self, data: Any) -> bytes:
        return self._signer.sign(bytes(data))


class _LentMlDsa65(_Lent, mldsa.MLDSA65PrivateKey):
    def sign(self, data: Any, context: Any = None) -> bytes:
        if context:
            raise Internal("signatures with a context are not made here")
        return self._signer.sign(bytes(data))
