"""``witness.toml``: the witness's name, where it listens, and the logs that it watches."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.log.note import KeyType, MalformedNote, NoteKey
from eastwest.server.config import is_loopback

CONFIG_NAME = "witness.toml"
MAX_LOGS = 1000
MAX_KEYS = 8
"""Keys of one log: those of two algorithms, and as many again while they are changed."""


class WatchedLog(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[[logs]]``: the verifier keys of one log, any of which signs its checkpoints."""

    vkeys: list[str]


class WitnessFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``witness.toml`` as written."""

    name: str
    address: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8090
    certificate: str = ""
    key: str = ""
    logs: list[WatchedLog] = []


@dataclass(frozen=True, slots=True)
class WitnessConfig:
    """The checked configuration. ``logs``: the trusted keys by origin."""

    path: Path
    file: WitnessFile
    logs: Mapping[str, tuple[NoteKey, ...]]

    @property
    def home(self) -> Path:
        """Where the witness keeps keys and database: beside its configuration."""
        return self.path.parent

    @property
    def database(self) -> Path:
        return self.home / "witness.db"

    @property
    def keys(self) -> Path:
        return self.home / "keys"

    @property
    def lock(self) -> Path:
        return self.home / "lock"

    @property
    def port_file(self) -> Path:
        """Holds the port while the witness runs."""
        return self.home / "witness.port"

    @classmethod
    def load(cls, path: Path) -> WitnessConfig:
        """Read and check; raises ``InvalidInput`` or ``FailedPrecondition`` naming the file and the fix."""
        path = path.absolute()
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            file = msgspec.convert(table, WitnessFile)
        except FileNotFoundError:
            raise FailedPrecondition(f"there is no {path}", fix="eastwest witness init makes one") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(f"not TOML: {error}", where=str(path)) from None
        except msgspec.ValidationError as error:
            raise InvalidInput(str(error), where=str(path), fix="see docs/reference/log.md, 'witness.toml'") from None
        return cls.checked(path, file)

    @classmethod
    def checked(cls, path: Path, file: WitnessFile) -> WitnessConfig:
        """Check what types cannot say."""
        where = str(path)
        check_witness_name(file.name, where)
        if bool(file.certificate) != bool(file.key):
            raise InvalidInput("certificate and key belong together", where=where, fix="set both, or neither")
        if not file.certificate and not is_loopback(file.address):
            raise InvalidInput(
                f"{file.address} is not of this machine alone, and certificate is not set",
                where=where,
                fix="set certificate and key, or listen on 127.0.0.1 behind a proxy that ends TLS",
            )
        if len(file.logs) > MAX_LOGS:
            raise InvalidInput(f"more than {MAX_LOGS} logs", where=where)
        return cls(path, file, _logs(file, where))


def check_witness_name(name: str, where: str = "") -> None:
    """Raise ``InvalidInput`` unless ``name`` can be a witness's."""
    try:
        NoteKey(name, bytes(32), KeyType.ED25519_COSIGNATURE)
    except MalformedNote as error:
        raise InvalidInput(error.message, where=where, fix="such as witness.partner.example/w1") from None


def _logs(file: WitnessFile, where: str) -> Mapping[str, tuple[NoteKey, ...]]:
    logs: dict[str, tuple[NoteKey, ...]] = {}
    for number, log in enumerate(file.logs, 1):
        try:
            keys = tuple(NoteKey.parse(vkey) for vkey in log.vkeys)
        except MalformedNote as error:
            raise InvalidInput(f"log {number}: {error.message}", where=where) from None
        names = {key.name for key in keys}
        if len(names) != 1 or len(keys) > MAX_KEYS:
            raise InvalidInput(f"log {number} needs 1 to {MAX_KEYS} vkeys, all of one name", where=where)
        if any(key.kind is KeyType.ED25519_COSIGNATURE for key in keys):
            raise InvalidInput(f"log {number}: a witness's key signs no log", where=where, fix="give the log's vkey")
        [origin] = names
        if origin in logs:
            raise InvalidInput(f"the log {origin} is there twice", where=where, fix="put its vkeys together")
        logs[origin] = keys
    return logs
