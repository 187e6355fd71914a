"""Making what signs: keys in the key store, certificates for them, and the two put together for use."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509

from eastwest.clock import Clock
from eastwest.entropy import Entropy, random_hex, serial_numbers
from eastwest.errors import Corrupt, FailedPrecondition, NotFound
from eastwest.pki.ca import certify_ca_key, make_ca_csr
from eastwest.pki.chain import build_path, dump_chain_pem
from eastwest.pki.hierarchy import Authority, create_root
from eastwest.pki.jwt import JwtSigningKey
from eastwest.pki.rotation.state import Hierarchy, IssuingCa, JwtKey, Root, Source, Stage, State
from eastwest.pki.signer import KeyAlgorithm, KeyStore, KeyStoreContext, Signer, SubjectKey
from eastwest.pki.upstream import CaRequest, UpstreamAuthority
from eastwest.process.files import replace_file
from eastwest.process.plugins import KEY_STORES, load_plugin
from eastwest.server.config import ServerConfig
from eastwest.spiffe.id import TrustDomain

LOG_KEY = "log-1"
DEFAULT = ""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long what is made lives."""

    root: timedelta
    issuing: timedelta
    jwt: timedelta

    @classmethod
    def of(cls, config: ServerConfig) -> Lifetimes:
        """As the configuration says."""
        file = config.file
        return cls(
            timedelta(days=file.root_days), timedelta(days=file.intermediate_days), timedelta(days=file.jwt_key_days)
        )


@dataclass(frozen=True, slots=True)
class Signing:
    """What issues now: the CA of each environment ("" is the default one), the key of JWT-SVIDs, and the CA of each
    environment for ML-DSA-65 keys.
    """

    authorities: Mapping[str, Authority]
    jwt_key: JwtSigningKey
    post_quantum: Mapping[str, Authority]


class Maker:
    """Makes keys and certificates. Nothing that it makes counts before the CA's state says so.

    Key stores may be far away and certificates take signatures, so everything runs in threads.
    """

    def __init__(
        self,
        trust_domain: TrustDomain,
        keys: KeyStore,
        clock: Clock,
        entropy: Entropy,
        lifetimes: Lifetimes,
        upstream: UpstreamAuthority | None = None,
        depth: int = 0,
        algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256,
    ) -> None:
        """``depth``: how many CAs may stand below an issuing CA. ``algorithm``: of new classical CA keys."""
        self._depth = depth
        self._algorithms = {Hierarchy.CLASSICAL: algorithm, Hierarchy.POST_QUANTUM: KeyAlgorithm.ML_DSA_65}
        self.trust_domain = trust_domain
        self.upstream = upstream
        self._keys = keys
        self._clock = clock
        self._entropy = entropy
        self._lifetimes = lifetimes
        self._signers: dict[str, Signer] = {}

    def names(self, *kinds: str) -> list[str]:
        """A fresh key name for each kind (``root``, ``issuing``, ``jwt``): say them in the state before using them."""
        return [f"{kind}-{random_hex(self._entropy, 6)}" for kind in kinds]

    async def root(
        self, names: Sequence[str], environments: Sequence[str], hierarchy: Hierarchy = Hierarchy.CLASSICAL
    ) -> Root:
        """A new generation of our own: the root's key has the first name, the issuing CAs' keys the others."""
        signer = await self._create_ca(names[0], hierarchy)
        serial = serial_numbers(self._entropy, 1)[0]
        certificate = await asyncio.to_thread(
            create_root, signer, self.trust_domain, serial, self._clock.now(), self._lifetimes.root
        )
        root = msgspec.structs.replace(root_of(certificate, Source.OWN, key=names[0]), hierarchy=hierarchy)
        issuing = [await self.issuing(root, key, env) for key, env in zip(names[1:], environments, strict=True)]
        return _with(root, issuing)

    async def issuing(self, root: Root, name: str, environment: str) -> IssuingCa:
        """A new issuing CA below one of our own roots."""
        signer = await self._create_ca(name, root.hierarchy)
        above = await self.signer(root.key)
        serial = serial_numbers(self._entropy, 1)[0]
        certificate = await asyncio.to_thread(
            certify_ca_key,
            signer.public_key,
            root.certificate,
            above,
            self.trust_domain,
            serial,
            self._clock.now(),
            self._lifetimes.issuing,
            path_length=self._depth,
        )
        return issuing_of(name, environment, [certificate])

    async def upstream_issuing(self, name: str, environment: str) -> tuple[IssuingCa, Root, tuple[bytes, ...]]:
        """A new issuing CA below the upstream authority, the root that it chains to, and all roots it came with."""
        assert self.upstream is not None
        signer = await self._create_ca(name, Hierarchy.CLASSICAL)
        csr = await asyncio.to_thread(make_ca_csr, signer, self.trust_domain)
        minted = await self.upstream.mint(
            CaRequest(
                csr_der=csr,
                trust_domain=self.trust_domain,
                environment=environment,
                lifetime=self._lifetimes.issuing,
                path_length=self._depth,
            )
        )
        ca, root = checked_chain(self.trust_domain, signer, name, environment, minted.chain, minted.roots)
        return ca, root_of(root, Source.UPSTREAM), minted.roots

    async def request(self, name: str) -> tuple[str, bytes]:
        """A key that waits for its certificate: its identifier, and the request in DER."""
        signer = await self._create_ca(name, Hierarchy.CLASSICAL)
        return signer.key_id, await asyncio.to_thread(make_ca_csr, signer, self.trust_domain)

    async def jwt(self, name: str) -> JwtKey:
        """A new key for JWT-SVIDs."""
        signer = await self._create(name, KeyAlgorithm.EC_P256)
        now = self._clock.now()
        return JwtKey(
            id=signer.key_id,
            key=name,
            spki=SubjectKey.of(signer.public_key).spki,
            not_before=int(now.timestamp()),
            not_after=int((now + self._lifetimes.jwt).timestamp()),
            stage=Stage.PREPARED,
        )

    async def log_key(self) -> Signer:
        """The key that signs the log."""
        return await asyncio.to_thread(self._keys.create, LOG_KEY, KeyAlgorithm.ED25519)

    async def signer(self, name: str) -> Signer:
        """A key by its name; raises ``NotFound``."""
        found = self._signers.get(name)
        if found is None:
            found = self._signers[name] = await asyncio.to_thread(self._keys.load, name)
        return found

    async def assemble(self, state: State) -> Signing:
        """Everything that signs by ``state``, checked; raises ``FailedPrecondition`` or ``Corrupt`` where it is not
        whole. Signs once with each CA that has not been checked before.
        """
        root, jwt = state.active_root, state.active_jwt
        if root is None or DEFAULT not in state.issuing():
            raise FailedPrecondition(
                "the trust domain has no issuing CA yet",
                fix="run `eastwest ca export-csr`, have it signed where the root is, then `eastwest ca import`",
            )
        if jwt is None:
            raise Corrupt("the CA's state names no JWT key")
        authorities = {env: await self.authority(root, ca) for env, ca in state.issuing().items()}
        key = JwtSigningKey(await self.signer(jwt.key), datetime.fromtimestamp(jwt.not_after, UTC))
        quantum_safe = state.active_of(Hierarchy.POST_QUANTUM)
        post_quantum = (
            {env: await self.authority(quantum_safe, ca) for env, ca in state.issuing(quantum_safe.hierarchy).items()}
            if quantum_safe is not None
            else {}
        )
        return Signing(authorities, key, post_quantum)

    async def authority(self, root: Root, ca: IssuingCa) -> Authority:
        """One issuing CA ready for use."""
        chain = (*ca.chain, *root.cross)
        signer = await self.signer(ca.key)
        return await asyncio.to_thread(Authority.create, self.trust_domain, signer, chain, [root.certificate])

    async def destroy(self, names: Collection[str]) -> list[str]:
        """Destroy keys; gives the names that are gone now. One that is not there counts as gone."""
        gone = []
        for name in names:
            self._signers.pop(name, None)
            with suppress(NotFound):
                await asyncio.to_thread(self._keys.delete, name)
            gone.append(name)
        return gone

    async def _create_ca(self, name: str, hierarchy: Hierarchy) -> Signer:
        return await self._create(name, self._algorithms[hierarchy])

    async def _create(self, name: str, algorithm: KeyAlgorithm) -> Signer:
        self._signers[name] = signer = await asyncio.to_thread(self._keys.create, name, algorithm)
        return signer


def root_of(certificate: bytes, source: Source, key: str = "") -> Root:
    """A root as the state holds it, before it has a place there."""
    loaded = x509.load_der_x509_certificate(certificate)
    return Root(
        id=subject_key_id(loaded),
        source=source,
        certificate=certificate,
        key=key,
        not_before=int(loaded.not_valid_before_utc.timestamp()),
        not_after=int(loaded.not_valid_after_utc.timestamp()),
        stage=Stage.PREPARED,
    )


def issuing_of(key: str, environment: str, chain: Sequence[bytes]) -> IssuingCa:
    """An issuing CA as the state holds it, before it has a place there."""
    loaded = x509.load_der_x509_certificate(chain[0])
    return IssuingCa(
        id=subject_key_id(loaded),
        key=key,
        environment=environment,
        chain=tuple(chain),
        not_before=int(loaded.not_valid_before_utc.timestamp()),
        not_after=int(loaded.not_valid_after_utc.timestamp()),
        stage=Stage.ACTIVE,
    )


def checked_chain(
    trust_domain: TrustDomain,
    signer: Signer,
    key: str,
    environment: str,
    chain: Sequence[bytes],
    roots: Sequence[bytes],
) -> tuple[IssuingCa, bytes]:
    """An issuing CA that somebody else certified, and the root it chains to; raises ``UnfitAuthority``."""
    Authority.create(trust_domain, signer, chain, roots)
    path = build_path([x509.load_der_x509_certificate(der) for der in chain], roots, below=1)
    anchor = next(der for der in roots if x509.load_der_x509_certificate(der) == path[-1])
    return issuing_of(key, environment, chain[: len(path) - 1]), anchor


def subject_key_id(certificate: x509.Certificate) -> str:
    """The certificate's subject key identifier in hex; computed where it does not say one."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        found = x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())
    return found.digest.hex()


def write_public(directory: Path, state: State) -> None:
    """The certificates as PEM files, for people and their tools; nothing here reads them again."""
    directory.mkdir(mode=0o700, exist_ok=True)
    roots = [root.certificate for root in state.roots]
    replace_file(directory / "bundle.pem", dump_chain_pem(roots) if roots else b"", 0o644)
    for hierarchy, first in ((Hierarchy.CLASSICAL, "issuing"), (Hierarchy.POST_QUANTUM, "post-quantum-issuing")):
        for environment, ca in state.issuing(hierarchy).items():
            name = f"{first}-{environment}.pem" if environment else f"{first}.pem"
            replace_file(directory / name, dump_chain_pem(ca.chain), 0o644)


def open_key_store(config: ServerConfig, directory: Path | None = None) -> KeyStore:
    """The key store that the configuration names, from the ``eastwest.key_stores`` entry points.

    ``directory`` stands in for the usual one, while a server is made.
    """
    name = config.file.key_store
    context = KeyStoreContext(directory=str(directory or config.paths.keys))
    where = f"{config.paths.config}: key_stores.{name}"
    store: KeyStore = load_plugin(KEY_STORES, name, config.file.key_stores.get(name, {}), context, where)
    return store


def log_name(trust_domain: TrustDomain) -> str:
    """The origin line of the trust domain's log."""
    return f"{trust_domain.name}/eastwest-log"


def _with(root: Root, issuing: Sequence[IssuingCa]) -> Root:
    return msgspec.structs.replace(root, issuing=tuple(issuing))
