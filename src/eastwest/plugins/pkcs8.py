"""Private keys under a passphrase, as PKCS #8 that OpenSSL reads: PBES2 with scrypt and AES-256-CBC.

Written out because the library's own "best available" derives the key with 2,048 rounds of PBKDF2, which a graphics
card undoes. Standards: RFC 5958 (EncryptedPrivateKeyInfo), RFC 8018 (PBES2), RFC 7914 (scrypt).
"""

from __future__ import annotations

import base64
import hashlib
import textwrap
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import mldsa, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from eastwest.entropy import Entropy
from eastwest.pki.signer import PrivateKey

SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Cost:
    """What one guess at a passphrase costs: scrypt's N, r and p."""

    n: int
    r: int
    p: int


FOR_PASSPHRASE = Cost(n=2**14, r=8, p=5)
"""16 MiB and about 0.2 s for each key that is made or opened. OpenSSL refuses more memory than 32 MiB."""
FOR_RANDOM_KEY = Cost(n=2**10, r=8, p=1)
"""About 2 ms: 256 random bits cannot be guessed, however cheap a guess is."""


def encrypt_pkcs8(
    key: PrivateKey | mldsa.MLDSA44PrivateKey | rsa.RSAPrivateKey, password: bytes, cost: Cost, entropy: Entropy
) -> bytes:
    """``key`` in PEM, as an EncryptedPrivateKeyInfo."""
    salt, start = entropy.token_bytes(SALT_BYTES), entropy.token_bytes(16)
    memory = 2 * 128 * cost.r * (cost.n + cost.p)
    derived = hashlib.scrypt(password, salt=salt, n=cost.n, r=cost.r, p=cost.p, dklen=32, maxmem=memory)
    padder = PKCS7(128).padder()
    plain = padder.update(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())) + padder.finalize()
    encryptor = Cipher(algorithms.AES256(derived), modes.CBC(start)).encryptor()
    sealed = encryptor.update(plain) + encryptor.finalize()
    parameters = _sequence(_octets(salt), _integer(cost.n), _integer(cost.r), _integer(cost.p), _integer(32))
    derivation = _sequence(_SCRYPT, parameters)
    encryption = _sequence(_AES_256_CBC, _octets(start))
    return _pem(_sequence(_sequence(_PBES2, _sequence(derivation, encryption)), _octets(sealed)))


def _pem(der: bytes) -> bytes:
    lines = textwrap.wrap(base64.b64encode(der).decode(), 64)
    return "\n".join([f"-----BEGIN {_LABEL}-----", *lines, f"-----END {_LABEL}-----", ""]).encode()


def _sequence(*parts: bytes) -> bytes:
    return _tagged(0x30, b"".join(parts))


def _octets(value: bytes) -> bytes:
    return _tagged(0x04, value)


def _integer(value: int) -> bytes:
    # One bit more than the number needs, since the first bit is the sign.
    return _tagged(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _tagged(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + content


_LABEL = "ENCRYPTED PRIVATE KEY"
_PBES2 = bytes.fromhex("06092a864886f70d01050d")  # 1.2.840.113549.1.5.13
_SCRYPT = bytes.fromhex("06092b06010401da47040b")  # 1.3.6.1.4.1.11591.4.11
_AES_256_CBC = bytes.fromhex("060960864801650304012a")  # 2.16.840.1.101.3.4.1.42
