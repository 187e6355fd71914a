"""Certificates as a manufacturer or a company PKI gives them to machines, for tests of attestation by x509pop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from eastwest.testing.clock import START

DeviceKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True)
class Device:
    """A machine's certificate with the authorities under the root, leaf first, and its key."""

    chain: tuple[x509.Certificate, ...]
    key: DeviceKey = field(repr=False)

    @property
    def ders(self) -> list[bytes]:
        """The chain as it is sent."""
        return [certificate.public_bytes(Encoding.DER) for certificate in self.chain]

    def write(self, directory: Path) -> tuple[Path, Path]:
        """Certificate file (the whole chain) and private key file, both PEM."""
        certificate, key = directory / "device.pem", directory / "device.key"
        certificate.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in self.chain))
        # PKCS#8, the form that all readers take.
        key.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        for file in (certificate, key):
            file.chmod(0o600)
        return certificate, key


class DeviceCA:
    """A root and one authority below it. It certifies what it is told, mistakes included."""

    def __init__(self, now: datetime = START, name: str = "Devices") -> None:
        self.now = now
        self.root_key = ec.generate_private_key(ec.SECP256R1())
        self.root = self._sign(f"{name} Root", self.root_key, f"{name} Root", self.root_key, ca=True)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.issuing = self._sign(f"{name} Issuing", self.key, f"{name} Root", self.root_key, ca=True)

    def device(
        self,
        name: str = "edge-1",
        key: DeviceKey | None = None,
        *,
        names: Sequence[x509.GeneralName] = (),
        usage: bool | None = True,
        ca: bool = False,
        life: timedelta = timedelta(days=30),
        above: x509.Certificate | None = None,
        above_key: ec.EllipticCurvePrivateKey | None = None,
    ) -> Device:
        """A machine. ``usage``: with digitalSignature, without, or (None) no key usage at all."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        above = above or self.issuing
        issuer = above.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        leaf = self._sign(name, key, str(issuer), above_key or self.key, ca=ca, usage=usage, names=names, life=life)
        return Device((leaf, above), key)

    def write_root(self, path: Path) -> Path:
        """The root as a PEM file."""
        path.write_bytes(self.root.public_bytes(Encoding.PEM))
        return path

    def _sign(
        self,
        name: str,
        key: DeviceKey,
        issuer: str,
        issuer_key: ec.EllipticCurvePrivateKey,
        *,
        ca: bool = False,
        usage: bool | None = None,
        names: Sequence[x509.GeneralName] = (),
        life: timedelta = timedelta(days=365),
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - timedelta(hours=1))
            .not_valid_after(self.now + life)
        )
        if ca:
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        if usage is not None:
            used = x509.KeyUsage(usage, False, not usage, False, False, False, False, False, False)
            builder = builder.add_extension(used, critical=True)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(issuer_key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
