"""Keys in a PKCS #11 token: an HSM, a smart card, or SoftHSM. Needs the extra ``pkcs11`` (python-pkcs11).

Keys are made inside the token, sensitive and not extractable, and never leave it; a key that could leave it is not
loaded. A key's name is the label of its objects, after ``label_prefix``. Standard: PKCS #11 v3.0 (OASIS).

python-pkcs11 starts a token's library in the way that allows calls from one thread at a time (CKF_OS_LOCKING_OK is not
set; two threads in SoftHSM end in a damaged heap). So one lock for each library stands around every call, and there
is one session, which is opened again when the token has ended it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec
import pkcs11
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.exceptions import PKCS11Error
from pkcs11.util.ec import encode_named_curve_parameters

from eastwest.errors import AlreadyExists, Corrupt, FailedPrecondition, InvalidInput, NotFound, Unavailable
from eastwest.pki.signer import CURVES, HASHES, BaseSigner, KeyAlgorithm, KeyStoreContext, PublicKey, Signer
from eastwest.pki.token_signer import PUBLIC_EXPONENT, RSA_BITS, BaseTokenSigner, TokenSigner, is_token_key
from eastwest.plugins.key_names import check_key_name, is_key_name
from eastwest.plugins.secret_files import one_secret

_library_locks: dict[str, threading.RLock] = {}
_T = TypeVar("_T")


class Pkcs11KeyStore:
    """The keys of one token. Its processes must not create keys at once: PKCS #11 lets two keys have one label."""

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``[key_stores.pkcs11]``.

        ``module``: path of the token's PKCS #11 library. The token is found by ``token_label``, by ``slot``, or by
        both. ``pin_file`` or ``pin_env``: the user PIN. ``label_prefix`` stands before each key's name in the token,
        for tokens that are shared.
        """

        module: str
        token_label: str = ""
        slot: int | None = None
        pin_file: str = ""
        pin_env: str = ""
        label_prefix: str = ""

    def __init__(self, token: Token, label_prefix: str = "") -> None:
        self._token = token
        self._prefix = label_prefix
        self._changing = threading.Lock()

    @classmethod
    def from_options(cls, options: Options, _context: KeyStoreContext) -> Self:
        """As the entry point makes it: finds the token and logs in."""
        if not options.token_label and options.slot is None:
            raise InvalidInput("token_label or slot is needed", fix="list tokens: pkcs11-tool --list-slots")
        pin = one_secret(pin_file=options.pin_file, pin_env=options.pin_env)
        if pin is None:
            raise InvalidInput("pin_file or pin_env is needed")
        try:
            text = pin.decode()
        except UnicodeDecodeError:
            raise InvalidInput("the PIN is not UTF-8 text") from None
        token = Token(_find_token(options), text, options.module)
        token.run(lambda _session: None)
        return cls(token, options.label_prefix)

    def create(self, name: str, algorithm: KeyAlgorithm) -> Signer:
        check_key_name(name)
        if algorithm not in _KINDS:
            raise InvalidInput(f"keys of type {algorithm} cannot be made in a PKCS #11 token here")
        public = self._make(name, lambda session, label: _generate(session, label, algorithm))
        return Pkcs11Signer(self._token, self._prefix + name, public)

    def create_token_key(self, name: str) -> TokenSigner:
        check_key_name(name)
        return Pkcs11TokenSigner(self._token, self._prefix + name, self._make(name, _generate_rsa))

    def load_token_key(self, name: str) -> TokenSigner:
        check_key_name(name)
        public = self._token.run(lambda session: _rsa_key(self._public(session, name), name, self._token.where))
        return Pkcs11TokenSigner(self._token, self._prefix + name, public)

    def _make(self, name: str, generate: Callable[[Any, str], _T]) -> _T:
        """What ``generate`` makes under a label that nothing has."""
        label = self._prefix + name
        with self._changing:
            if self._token.run(lambda session: _objects(session, label, ObjectClass.PRIVATE_KEY)):
                raise AlreadyExists(f"a key named {name} exists already", where=self._token.where)
            return self._token.run(lambda session: generate(session, label), writing=True)

    def load(self, name: str) -> Signer:
        check_key_name(name)
        public = self._token.run(lambda session: _public_key(self._public(session, name), name, self._token.where))
        return Pkcs11Signer(self._token, self._prefix + name, public)

    def names(self) -> Sequence[str]:
        labels = self._token.run(
            lambda session: [
                str(found[Attribute.LABEL]) for found in session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY})
            ]
        )
        names = (label.removeprefix(self._prefix) for label in labels if label.startswith(self._prefix))
        return sorted({name for name in names if is_key_name(name)})

    def delete(self, name: str) -> None:
        check_key_name(name)
        with self._changing:
            self._token.run(lambda session: self._destroy(session, name), writing=True)
            self._token.forget(self._prefix + name)

    def _public(self, session: Any, name: str) -> Any:
        """The public half of a key that cannot leave the token."""
        label = self._prefix + name
        private = _only(_objects(session, label, ObjectClass.PRIVATE_KEY), name, self._token.where)
        if private[Attribute.EXTRACTABLE] or not private[Attribute.SENSITIVE]:
            raise FailedPrecondition(
                f"the key {name} can be taken out of the token", where=self._token.where, fix="make a new one here"
            )
        return _only(_objects(session, label, ObjectClass.PUBLIC_KEY), f"{name} (its public half)", self._token.where)

    def _destroy(self, session: Any, name: str) -> None:
        label = self._prefix + name
        found = _objects(session, label, ObjectClass.PRIVATE_KEY)
        if not found:
            raise NotFound(f"there is no key named {name}", where=self._token.where)
        # The public half first: what is left of a key that was half deleted can still be deleted.
        for item in [*_objects(session, label, ObjectClass.PUBLIC_KEY), *found]:
            item.destroy()


class Pkcs11Signer(BaseSigner):
    """A ``Signer`` whose key stays in the token."""

    __slots__ = ("_label", "_token")

    def __init__(self, token: Token, label: str, public_key: PublicKey) -> None:
        super().__init__(public_key)
        self._token = token
        self._label = label

    @property
    def is_remote(self) -> bool:
        return True

    def sign(self, data: bytes) -> bytes:
        if self._algorithm is KeyAlgorithm.ED25519:
            return self._token.sign(self._label, data, Mechanism.EDDSA)
        digest = hashlib.new(HASHES[self._algorithm].name, data).digest()
        raw = self._token.sign(self._label, digest, Mechanism.ECDSA)
        half = len(raw) // 2
        return encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))


class Pkcs11TokenSigner(BaseTokenSigner):
    """A ``TokenSigner`` whose key stays in the token."""

    __slots__ = ("_label", "_token")

    def __init__(self, token: Token, label: str, public_key: rsa.RSAPublicKey) -> None:
        super().__init__(public_key)
        self._token = token
        self._label = label

    @property
    def is_remote(self) -> bool:
        return True

    def sign(self, data: bytes) -> bytes:
        return self._token.sign(self._label, data, Mechanism.SHA256_RSA_PKCS)


class Token:
    """One token, logged in to. Every method raises ``Unavailable`` when the token does not answer."""

    def __init__(self, token: Any, pin: str, module: str) -> None:
        self.where = module
        self._token = token
        self._pin = pin
        self._lock = _library_lock(module)
        self._session: Any = None
        self._keys: dict[str, Any] = {}  # by label, as this session knows them

    def run(self, work: Callable[[Any], _T], *, writing: bool = False) -> _T:
        """What ``work`` gives for an open session; ``writing`` opens one of its own that may change the token."""
        with self._lock, self._translated():
            if not writing:
                return self._retried(work)
            session = self._open(rw=True)
            try:
                return work(session)
            finally:
                with suppress(PKCS11Error):
                    session.close()

    def sign(self, label: str, data: bytes, mechanism: Mechanism) -> bytes:
        """A signature by the private key ``label``, as the token gives it."""

        def work(session: Any) -> bytes:
            key = self._keys.get(label)
            if key is None:
                key = self._keys[label] = _only(_objects(session, label, ObjectClass.PRIVATE_KEY), label, self.where)
            return bytes(key.sign(data, mechanism=mechanism))

        return self.run(work)

    def forget(self, label: str) -> None:
        """Drop what the session knows of a key."""
        with self._lock:
            self._keys.pop(label, None)

    def close(self) -> None:
        """Close the session; the next call opens another one."""
        with self._lock:
            session, self._session = self._session, None
            self._keys.clear()
            if session is not None:
                with suppress(PKCS11Error):
                    session.close()

    def _retried(self, work: Callable[[Any], _T]) -> _T:
        if self._session is not None:
            try:
                return work(self._session)
            except _ENDED:
                self.close()
        self._session = self._open(rw=False)
        return work(self._session)

    def _open(self, *, rw: bool) -> Any:
        # A login holds for all sessions of this process with the token.
        try:
            return self._token.open(rw=rw, user_pin=self._pin)
        except pkcs11.UserAlreadyLoggedIn:
            return self._token.open(rw=rw)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except _WRONG_PIN as error:
            raise FailedPrecondition(
                f"the token refuses the PIN ({type(error).__name__})",
                where=self.where,
                fix="set pin_file or pin_env to the user PIN; a locked PIN is reset by the token's administrator",
            ) from None
        except PKCS11Error as error:
            raise Unavailable(f"the token does not answer ({type(error).__name__})", where=self.where) from None

    def __repr__(self) -> str:
        return f"Token({self.where})"


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a token makes one type of key."""

    key_type: KeyType
    curve: str
    mechanism: Mechanism


def _library_lock(module: str) -> threading.RLock:
    return _library_locks.setdefault(str(Path(module).resolve()), threading.RLock())


def _find_token(options: Pkcs11KeyStore.Options) -> Any:
    where = options.module
    try:
        with _library_lock(options.module):
            library = pkcs11.lib(options.module)
            tokens = [
                slot.get_token()
                for slot in library.get_slots(token_present=True)
                if options.slot is None or slot.slot_id == options.slot
            ]
    except (PKCS11Error, RuntimeError, OSError) as error:
        raise FailedPrecondition(
            f"the PKCS #11 module does not load ({type(error).__name__})",
            where=where,
            fix="module must be the full path of the token's library, such as /usr/lib/softhsm/libsofthsm2.so",
        ) from None
    if options.token_label:
        tokens = [token for token in tokens if token.label == options.token_label]
    wanted = f"label {options.token_label!r}" if options.token_label else f"slot {options.slot}"
    if not tokens:
        raise FailedPrecondition(
            f"no token with {wanted} is there", where=where, fix="list tokens: pkcs11-tool --module M --list-slots"
        )
    if len(tokens) > 1:
        raise FailedPrecondition(f"several tokens have {wanted}", where=where, fix="set slot as well")
    return tokens[0]


def _objects(session: Any, label: str, kind: ObjectClass) -> list[Any]:
    return list(session.get_objects({Attribute.CLASS: kind, Attribute.LABEL: label}))


def _only(found: Sequence[Any], name: str, where: str) -> Any:
    if not found:
        raise NotFound(f"there is no key named {name}", where=where)
    if len(found) > 1:
        raise Corrupt(f"several keys of the token are named {name}", where=where)
    return found[0]


def _generate(session: Any, label: str, algorithm: KeyAlgorithm) -> PublicKey:
    kind = _KINDS[algorithm]
    parameters = session.create_domain_parameters(
        kind.key_type, {Attribute.EC_PARAMS: encode_named_curve_parameters(kind.curve)}, local=True
    )
    public, _private = parameters.generate_keypair(
        mechanism=kind.mechanism,
        store=True,
        label=label,
        id=label.encode(),
        public_template={Attribute.VERIFY: True},
        private_template=_PRIVATE,
    )
    return _decode(algorithm, public[Attribute.EC_POINT])


def _generate_rsa(session: Any, label: str) -> rsa.RSAPublicKey:
    public, _private = session.generate_keypair(
        KeyType.RSA,
        RSA_BITS,
        mechanism=Mechanism.RSA_PKCS_KEY_PAIR_GEN,
        store=True,
        label=label,
        id=label.encode(),
        public_template={
            Attribute.VERIFY: True,
            Attribute.ENCRYPT: False,
            Attribute.WRAP: False,
            Attribute.PUBLIC_EXPONENT: PUBLIC_EXPONENT.to_bytes(3, "big"),
        },
        private_template=_PRIVATE,
    )
    return _decoded_rsa(public)


def _rsa_key(public: Any, name: str, where: str) -> rsa.RSAPublicKey:
    try:
        key = _decoded_rsa(public) if public[Attribute.KEY_TYPE] == KeyType.RSA else None
    except ValueError:
        key = None
    if key is None or not is_token_key(key):
        raise Corrupt(f"the key {name} is not one of RSA {RSA_BITS}", where=where)
    return key


def _decoded_rsa(public: Any) -> rsa.RSAPublicKey:
    exponent, modulus = (bytes(public[part]) for part in (Attribute.PUBLIC_EXPONENT, Attribute.MODULUS))
    return rsa.RSAPublicNumbers(int.from_bytes(exponent), int.from_bytes(modulus)).public_key()


def _public_key(public: Any, name: str, where: str) -> PublicKey:
    if public[Attribute.KEY_TYPE] == KeyType.RSA:
        raise Corrupt(f"the key {name} is of a type that signs tokens, if any", where=where)
    parameters = bytes(public[Attribute.EC_PARAMS])
    for algorithm, kind in _KINDS.items():
        if parameters == encode_named_curve_parameters(kind.curve):
            try:
                return _decode(algorithm, bytes(public[Attribute.EC_POINT]))
            except ValueError:
                raise Corrupt(f"the public half of the key {name} cannot be read", where=where) from None
    raise Corrupt(f"the key {name} is of a type that is never made here", where=where)


def _decode(algorithm: KeyAlgorithm, point: bytes) -> PublicKey:
    # The standard wraps the point in an OCTET STRING, and some tokens do not.
    length = _POINT_LENGTHS[algorithm]
    if len(point) > length and point[0] == 0x04:
        point = point[-length:]
    if algorithm is KeyAlgorithm.ED25519:
        return ed25519.Ed25519PublicKey.from_public_bytes(point)
    return ec.EllipticCurvePublicKey.from_encoded_point(CURVES[algorithm], point)


_KINDS: Mapping[KeyAlgorithm, _Kind] = {
    KeyAlgorithm.EC_P256: _Kind(KeyType.EC, "secp256r1", Mechanism.EC_KEY_PAIR_GEN),
    KeyAlgorithm.EC_P384: _Kind(KeyType.EC, "secp384r1", Mechanism.EC_KEY_PAIR_GEN),
    KeyAlgorithm.ED25519: _Kind(KeyType.EC_EDWARDS, "1.3.101.112", Mechanism.EC_EDWARDS_KEY_PAIR_GEN),
}
_PRIVATE = {
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.SIGN: True,
    Attribute.DECRYPT: False,
    Attribute.UNWRAP: False,
}
_POINT_LENGTHS = {KeyAlgorithm.EC_P256: 65, KeyAlgorithm.EC_P384: 97, KeyAlgorithm.ED25519: 32}
_ENDED = (
    pkcs11.SessionHandleInvalid,
    pkcs11.SessionClosed,
    pkcs11.UserNotLoggedIn,
    pkcs11.DeviceRemoved,
    pkcs11.KeyHandleInvalid,
    pkcs11.ObjectHandleInvalid,
)
_WRONG_PIN = (pkcs11.PinIncorrect, pkcs11.PinLocked, pkcs11.PinExpired, pkcs11.PinInvalid, pkcs11.PinLenRange)
