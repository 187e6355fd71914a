"""Keys in AWS Key Management Service. Needs the extra ``aws`` (boto3).

Each key is an asymmetric KMS key that cannot be exported. Its name is that of an alias, ``alias/<prefix><name>``,
and a tag; capital letters never occur in names, so a dot, which aliases may not have, is written ``X2E``.
Credentials come from where AWS programs look for them (environment, profile, instance role) and are never named in
an error: of what AWS answers only the error's code is kept. Wire: AWS JSON 1.1, ``TrentService``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import boto3
import msgspec
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from cryptography.hazmat.primitives.asymmetric import mldsa, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from eastwest.errors import (
    AlreadyExists,
    Corrupt,
    Error,
    FailedPrecondition,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.pki.signer import (
    HASHES,
    BaseSigner,
    KeyAlgorithm,
    KeyStoreContext,
    NoteSigner,
    PublicKey,
    Signer,
    UnsupportedKey,
)
from eastwest.pki.token_signer import BaseTokenSigner, TokenSigner, is_token_key
from eastwest.plugins.key_names import check_key_name, is_key_name

MAX_ALIAS_PREFIX = 100


class AwsKmsKeyStore:
    """The keys of one AWS account and region whose aliases begin with one prefix."""

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``[key_stores.aws_kms]``.

        ``region``: such as ``eu-central-1``. ``alias_prefix``: of letters, digits, ``/ _ -``; one for each server.
        ``endpoint_url``: another door to KMS, such as a VPC endpoint. ``deletion_days``: how long AWS keeps a deleted
        key, 7 to 30. ``timeout``: seconds for one try of a call, of which there are at most three.
        """

        region: str
        alias_prefix: str = "eastwest/"
        endpoint_url: str = ""
        deletion_days: int = 30
        timeout: float = 5.0

    def __init__(self, client: Any, alias_prefix: str, deletion_days: int = 30) -> None:
        self._client = client
        self._prefix = "alias/" + alias_prefix
        self._deletion_days = deletion_days

    @classmethod
    def from_options(cls, options: Options, _context: KeyStoreContext) -> Self:
        """As the entry point makes it; the first call goes out when a key is asked for."""
        if not re.fullmatch(r"[a-zA-Z0-9/_-]{1,100}", options.alias_prefix) or options.alias_prefix.startswith("aws/"):
            raise InvalidInput(
                f"alias_prefix is not 1 to {MAX_ALIAS_PREFIX} of letters, digits, / _ -, or it begins with aws/"
            )
        if not 7 <= options.deletion_days <= 30:
            raise InvalidInput("deletion_days must be 7 to 30")
        if not 0.1 <= options.timeout <= 60:
            raise InvalidInput("timeout must be 0.1 to 60 seconds")
        config = Config(
            connect_timeout=options.timeout,
            read_timeout=options.timeout,
            retries={"mode": "standard", "total_max_attempts": 3},
            max_pool_connections=32,
        )
        try:
            client = boto3.Session().client(
                "kms", region_name=options.region, endpoint_url=options.endpoint_url or None, config=config
            )
        except (BotoCoreError, ValueError) as error:
            raise InvalidInput(
                f"region or endpoint_url is not usable ({type(error).__name__})", fix="region: such as eu-central-1"
            ) from None
        return cls(client, options.alias_prefix, options.deletion_days)

    def create(self, name: str, algorithm: KeyAlgorithm) -> Signer:
        return self._signer(name, self._make(name, _SPECS[algorithm].key_spec))

    def create_note_key(self, name: str) -> NoteSigner:
        return self._note_signer(name, self._make(name, _NOTE_SPEC.key_spec))

    def load_note_key(self, name: str) -> NoteSigner:
        return self._note_signer(name, self._existing(name))

    def create_token_key(self, name: str) -> TokenSigner:
        return self._token_signer(name, self._make(name, _TOKEN_SPEC.key_spec))

    def load_token_key(self, name: str) -> TokenSigner:
        return self._token_signer(name, self._existing(name))

    def _make(self, name: str, key_spec: str) -> str:
        """Make a key of a type that KMS calls ``key_spec``; its id."""
        alias = self._alias(name)
        if self._target(alias) is not None:
            raise AlreadyExists(f"a key named {name} exists already", where=alias)
        made = self._call(
            "create_key",
            alias,
            KeySpec=key_spec,
            KeyUsage="SIGN_VERIFY",
            Description=f"Eastwest key {name}",
            Tags=[{"TagKey": "eastwest-key", "TagValue": name}],
        )
        key = str(made["KeyMetadata"]["KeyId"])
        try:
            self._call("create_alias", alias, AliasName=alias, TargetKeyId=key)
        except Error:
            # Another process took the name, or AWS went away: what has no name must not stay and cost.
            with suppress(Error):
                self._call("schedule_key_deletion", alias, KeyId=key, PendingWindowInDays=7)
            raise
        return key

    def load(self, name: str) -> Signer:
        return self._signer(name, self._existing(name))

    def _existing(self, name: str) -> str:
        alias = self._alias(name)
        key = self._target(alias)
        if key is None:
            raise NotFound(f"there is no key named {name}", where=alias)
        return key

    def names(self) -> Sequence[str]:
        found, marker = set(), ""
        while True:
            page = self._call("list_aliases", self._prefix, Limit=100, **({"Marker": marker} if marker else {}))
            for item in page["Aliases"]:
                alias = str(item["AliasName"])
                if alias.startswith(self._prefix) and item.get("TargetKeyId"):
                    found.add(alias.removeprefix(self._prefix).replace("X2E", "."))
            marker = str(page.get("NextMarker", ""))
            if not page.get("Truncated") or not marker:
                return sorted(name for name in found if is_key_name(name))

    def delete(self, name: str) -> None:
        """AWS destroys the key ``deletion_days`` later, and until then refuses to sign with it."""
        alias = self._alias(name)
        key = self._target(alias)
        if key is None:
            raise NotFound(f"there is no key named {name}", where=alias)
        # The alias goes last: after a crash in between, deleting again finds the key by it.
        state = self._call("describe_key", alias, KeyId=key)["KeyMetadata"]["KeyState"]
        if state != "PendingDeletion":
            self._call("schedule_key_deletion", alias, KeyId=key, PendingWindowInDays=self._deletion_days)
        self._call("delete_alias", alias, AliasName=alias)

    def _alias(self, name: str) -> str:
        check_key_name(name)
        return self._prefix + name.replace(".", "X2E")

    def _target(self, alias: str) -> str | None:
        """The id of the key that an alias names: signing by id, nobody turns a signer round by moving the alias."""
        try:
            return str(self._call("describe_key", alias, KeyId=alias)["KeyMetadata"]["KeyId"])
        except NotFound:
            return None

    def _signer(self, name: str, key: str) -> AwsKmsSigner:
        where = self._alias(name)
        described = self._call("get_public_key", where, KeyId=key)
        try:
            public_key: Any = load_der_public_key(described["PublicKey"])
            signer = AwsKmsSigner(self._client, key, where, public_key)
        except _UNREADABLE:
            raise Corrupt(f"the key {name} is of a type that is never made here", where=where) from None
        if described.get("KeyUsage") != "SIGN_VERIFY":
            raise Corrupt(f"the key {name} is not one that signs", where=where)
        return signer

    def _note_signer(self, name: str, key: str) -> AwsKmsNoteSigner:
        where = self._alias(name)
        described = self._call("get_public_key", where, KeyId=key)
        try:
            public_key: Any = load_der_public_key(described["PublicKey"])
        except _UNREADABLE:
            public_key = None
        if not isinstance(public_key, mldsa.MLDSA44PublicKey) or described.get("KeyUsage") != "SIGN_VERIFY":
            raise Corrupt(f"the key {name} is not one of ML-DSA-44 that signs", where=where)
        return AwsKmsNoteSigner(self._client, key, where, public_key)

    def _token_signer(self, name: str, key: str) -> AwsKmsTokenSigner:
        where = self._alias(name)
        described = self._call("get_public_key", where, KeyId=key)
        try:
            public_key: Any = load_der_public_key(described["PublicKey"])
        except _UNREADABLE:
            public_key = None
        if not is_token_key(public_key) or described.get("KeyUsage") != "SIGN_VERIFY":
            raise Corrupt(f"the key {name} is not one of RSA 2048 that signs", where=where)
        return AwsKmsTokenSigner(self._client, key, where, public_key)

    def _call(self, operation: str, where: str, **arguments: Any) -> Mapping[str, Any]:
        return _call(self._client, operation, where, **arguments)


class AwsKmsSigner(BaseSigner):
    """A ``Signer`` whose key stays in KMS."""

    __slots__ = ("_client", "_key", "_where")

    def __init__(self, client: Any, key: str, where: str, public_key: PublicKey) -> None:
        super().__init__(public_key)
        self._client = client
        self._key = key
        self._where = where

    @property
    def is_remote(self) -> bool:
        return True

    def sign(self, data: bytes) -> bytes:
        # Raw messages end at 4,096 bytes in KMS, which a CRL passes: whatever can be hashed here is.
        spec = _SPECS[self._algorithm]
        hashed = self._algorithm in HASHES
        message = hashlib.new(HASHES[self._algorithm].name, data).digest() if hashed else data
        answer = _call(
            self._client,
            "sign",
            self._where,
            KeyId=self._key,
            Message=message,
            MessageType="DIGEST" if hashed else "RAW",
            SigningAlgorithm=spec.signing_algorithm,
        )
        return bytes(answer["Signature"])


class AwsKmsNoteSigner:
    """A ``NoteSigner`` whose key stays in KMS. A checkpoint's message is far below KMS's 4,096 bytes."""

    __slots__ = ("_client", "_key", "_public_key", "_where")

    def __init__(self, client: Any, key: str, where: str, public_key: mldsa.MLDSA44PublicKey) -> None:
        self._client = client
        self._key = key
        self._where = where
        self._public_key = public_key

    @property
    def public_key(self) -> mldsa.MLDSA44PublicKey:
        return self._public_key

    @property
    def is_remote(self) -> bool:
        return True

    def sign(self, data: bytes) -> bytes:
        answer = _call(
            self._client,
            "sign",
            self._where,
            KeyId=self._key,
            Message=data,
            MessageType="RAW",
            SigningAlgorithm=_NOTE_SPEC.signing_algorithm,
        )
        return bytes(answer["Signature"])

    def __repr__(self) -> str:
        return "AwsKmsNoteSigner(ml-dsa-44)"

    def __reduce__(self) -> str:
        raise TypeError("a signer is not copied or pickled")


class AwsKmsTokenSigner(BaseTokenSigner):
    """A ``TokenSigner`` whose key stays in KMS, which gets digests: a token may be longer than what it hashes."""

    __slots__ = ("_client", "_key", "_where")

    def __init__(self, client: Any, key: str, where: str, public_key: rsa.RSAPublicKey) -> None:
        super().__init__(public_key)
        self._client = client
        self._key = key
        self._where = where

    @property
    def is_remote(self) -> bool:
        return True

    def sign(self, data: bytes) -> bytes:
        answer = _call(
            self._client,
            "sign",
            self._where,
            KeyId=self._key,
            Message=hashlib.sha256(data).digest(),
            MessageType="DIGEST",
            SigningAlgorithm=_TOKEN_SPEC.signing_algorithm,
        )
        return bytes(answer["Signature"])


@dataclass(frozen=True, slots=True)
class _Spec:
    """What KMS calls a type of key and its signatures."""

    key_spec: str
    signing_algorithm: str


def _call(client: Any, operation: str, where: str, **arguments: Any) -> Mapping[str, Any]:
    try:
        answer: Mapping[str, Any] = getattr(client, operation)(**arguments)
    except ClientError as error:
        _refuse(operation, where, error)
    except (NoCredentialsError, PartialCredentialsError):
        raise FailedPrecondition(
            "this process finds no AWS credentials", where=where, fix="give it an instance role, or a profile"
        ) from None
    except BotoCoreError as error:
        raise Unavailable(f"AWS KMS does not answer {operation} ({type(error).__name__})", where=where) from None
    return answer


def _refuse(operation: str, where: str, error: ClientError) -> NoReturn:
    # The sentence of AWS may hold access key ids and request parts, so only its code goes on.
    code = str(error.response.get("Error", {}).get("Code", "unknown"))[:100]
    if code == "NotFoundException":
        raise NotFound(f"AWS KMS knows no key {where}", where=where) from None
    if code == "AlreadyExistsException":
        raise AlreadyExists("a key of this name exists already", where=where) from None
    if code in _STATE:
        raise FailedPrecondition(
            f"the key's state in AWS forbids {operation} ({code})", where=where, fix="enable it, or cancel its deletion"
        ) from None
    if code in _FORBIDDEN:
        raise PermissionDenied(
            f"AWS forbids {operation} ({code})", where=where, fix=f"allow {operation} in the key policy and the role"
        ) from None
    if code in _INVALID:
        raise InvalidInput(f"AWS KMS refuses {operation} ({code})", where=where) from None
    raise Unavailable(f"AWS KMS cannot do {operation} now ({code})", where=where) from None


_SPECS = {
    KeyAlgorithm.EC_P256: _Spec("ECC_NIST_P256", "ECDSA_SHA_256"),
    KeyAlgorithm.EC_P384: _Spec("ECC_NIST_P384", "ECDSA_SHA_384"),
    KeyAlgorithm.ED25519: _Spec("ECC_NIST_EDWARDS25519", "ED25519_SHA_512"),
    KeyAlgorithm.ML_DSA_65: _Spec("ML_DSA_65", "ML_DSA_SHAKE_256"),
}
_NOTE_SPEC = _Spec("ML_DSA_44", "ML_DSA_SHAKE_256")
_TOKEN_SPEC = _Spec("RSA_2048", "RSASSA_PKCS1_V1_5_SHA_256")
_UNREADABLE: tuple[type[Exception], ...] = (UnsupportedKey, *PARSE_ERRORS)
_STATE = frozenset({"KMSInvalidStateException", "DisabledException"})
_FORBIDDEN = frozenset(
    {
        "AccessDeniedException",
        "AccessDenied",
        "UnrecognizedClientException",
        "InvalidSignatureException",
        "InvalidClientTokenId",
        "ExpiredTokenException",
        "MissingAuthenticationTokenException",
    }
)
_INVALID = frozenset(
    {"ValidationException", "UnsupportedOperationException", "InvalidAliasNameException", "TagException"}
)
