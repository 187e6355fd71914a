"""The authority's keys and certificates on disk: made once by ``init``, loaded at each start."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from eastwest.entropy import Entropy, serial_numbers
from eastwest.errors import Corrupt, FailedPrecondition
from eastwest.log.note import NoteKey
from eastwest.pki.chain import dump_chain_pem, load_chain_pem
from eastwest.pki.hierarchy import Authority, create_intermediate, create_root
from eastwest.pki.jwt import JwtSigningKey
from eastwest.pki.signer import KeyAlgorithm, KeyStore, KeyStoreContext, Signer
from eastwest.process.files import replace_file
from eastwest.process.plugins import KEY_STORES, load_plugin
from eastwest.server.config import ServerConfig, ServerFile
from eastwest.spiffe.bundle import Bundle, X509Authority
from eastwest.spiffe.id import TrustDomain

REFRESH_HINT = 300


class AuthorityState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``ca/authority.json``: which key of the key store plays which part. Times are Unix seconds."""

    root: str
    intermediate: str
    jwt: str
    jwt_expires_at: int
    log: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything that signs."""

    authority: Authority
    jwt_key: JwtSigningKey
    log_signer: Signer
    log_key: NoteKey
    bundle: Bundle


def create_authority(
    keys: KeyStore, directory: Path, file: ServerFile, trust_domain: TrustDomain, now: datetime, entropy: Entropy
) -> Loaded:
    """Make root, issuing CA, JWT key and log key, and write them below ``directory``."""
    root_signer = keys.create("root-1", KeyAlgorithm.EC_P256)
    signer = keys.create("intermediate-1", KeyAlgorithm.EC_P256)
    keys.create("jwt-1", KeyAlgorithm.EC_P256)
    keys.create("log-1", KeyAlgorithm.ED25519)
    serials = serial_numbers(entropy, 2)
    root = create_root(root_signer, trust_domain, serials[0], now, timedelta(days=file.root_days))
    lifetime = timedelta(days=file.intermediate_days)
    intermediate = create_intermediate(signer.public_key, root, root_signer, trust_domain, serials[1], now, lifetime)
    directory.mkdir(mode=0o700)
    replace_file(directory / "root-1.pem", dump_chain_pem([root]), 0o644)
    replace_file(directory / "intermediate-1.pem", dump_chain_pem([intermediate]), 0o644)
    state = AuthorityState(
        root="root-1",
        intermediate="intermediate-1",
        jwt="jwt-1",
        jwt_expires_at=int((now + lifetime).timestamp()),
        log="log-1",
        sequence=1,
    )
    replace_file(directory / "authority.json", msgspec.json.format(msgspec.json.encode(state)), 0o600)
    return load_authority(keys, directory, trust_domain)


def load_authority(keys: KeyStore, directory: Path, trust_domain: TrustDomain) -> Loaded:
    """Load and check; raises ``Corrupt`` or ``FailedPrecondition`` when the parts do not belong together."""
    path = directory / "authority.json"
    try:
        state = msgspec.json.decode(path.read_bytes(), type=AuthorityState)
        root = load_chain_pem((directory / f"{state.root}.pem").read_bytes())
        chain = load_chain_pem((directory / f"{state.intermediate}.pem").read_bytes())
    except OSError as error:
        raise FailedPrecondition(
            f"the authority is incomplete: {error.filename}: {error.strerror}", fix="restore the data directory"
        ) from None
    except msgspec.MsgspecError as error:
        raise Corrupt(f"not the authority's state: {error}", where=str(path)) from None
    authority = Authority.create(trust_domain, keys.load(state.intermediate), chain, root)
    expires_at = datetime.fromtimestamp(state.jwt_expires_at, authority.not_after.tzinfo)
    jwt_key = JwtSigningKey(keys.load(state.jwt), expires_at)
    log_signer = keys.load(state.log)
    bundle = Bundle(
        trust_domain=trust_domain,
        x509_authorities=tuple(X509Authority(der) for der in root),
        jwt_authorities=(jwt_key.authority,),
        sequence=state.sequence,
        refresh_hint=REFRESH_HINT,
    )
    return Loaded(authority, jwt_key, log_signer, NoteKey.of(log_name(trust_domain), log_signer), bundle)


def open_key_store(config: ServerConfig) -> KeyStore:
    """The key store that the configuration names, from the ``eastwest.key_stores`` entry points."""
    name = config.file.key_store
    context = KeyStoreContext(directory=str(config.paths.keys))
    where = f"{config.paths.config}: key_stores.{name}"
    store: KeyStore = load_plugin(KEY_STORES, name, config.file.key_stores.get(name, {}), context, where)
    return store


def log_name(trust_domain: TrustDomain) -> str:
    """The origin line of the trust domain's log."""
    return f"{trust_domain.name}/eastwest-log"
