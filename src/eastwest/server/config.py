"""The server's configuration: one TOML file, flags on top, checked once."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.spiffe.id import TrustDomain

CONFIG_NAME = "server.toml"


class ServerFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``server.toml`` as written. Times are in seconds."""

    trust_domain: str
    agent_address: str = "127.0.0.1"
    agent_port: int = 8081
    health_address: str = "127.0.0.1"
    health_port: int = 0
    key_store: str = "disk"
    key_stores: dict[str, dict[str, Any]] = {}
    upstream: str = ""
    upstreams: dict[str, dict[str, Any]] = {}
    node_attestors: dict[str, dict[str, Any]] = {}
    root_days: int = 3650
    intermediate_days: int = 365
    agent_svid_ttl: int = 3600
    jwt_svid_ttl: int = 300
    jwt_issuer: str = ""
    checkpoint_interval: float = 1.0
    clock_skew_limit: int = 60
    ledger_max_rows: int = 1_000_000


@dataclass(frozen=True, slots=True)
class ServerPaths:
    """Where the server keeps things below its data directory."""

    data: Path

    @property
    def home(self) -> Path:
        return self.data / "server"

    @property
    def config(self) -> Path:
        return self.home / CONFIG_NAME

    @property
    def database(self) -> Path:
        return self.home / "server.db"

    @property
    def keys(self) -> Path:
        return self.home / "keys"

    @property
    def certificates(self) -> Path:
        return self.home / "ca"

    @property
    def log(self) -> Path:
        return self.home / "log"

    @property
    def log_vkey(self) -> Path:
        return self.home / "log.vkey"

    @property
    def admin_socket(self) -> Path:
        return self.home / "api.sock"

    @property
    def lock(self) -> Path:
        return self.home / "lock"

    @property
    def agent_port(self) -> Path:
        """Holds the port that agents reach, while the server runs."""
        return self.home / "agent.port"

    @property
    def health_port(self) -> Path:
        """Holds the port of health and metrics, while the server runs."""
        return self.home / "health.port"


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The checked configuration."""

    paths: ServerPaths
    trust_domain: TrustDomain
    file: ServerFile

    @classmethod
    def load(cls, data: Path, **flags: Any) -> ServerConfig:
        """Read ``DATA/server/server.toml``; ``flags`` that are not None win."""
        paths = ServerPaths(data.absolute())
        try:
            text = paths.config.read_bytes()
        except FileNotFoundError:
            raise FailedPrecondition(
                f"{data} holds no server",
                fix=f"run eastwest server init --data {data} --trust-domain NAME first",
            ) from None
        return cls.parse(paths, text, flags)

    @classmethod
    def parse(cls, paths: ServerPaths, text: bytes, flags: dict[str, Any]) -> ServerConfig:
        """Check the file's text with ``flags`` laid over it."""
        try:
            table = tomllib.loads(text.decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(f"not TOML: {error}", where=str(paths.config), fix="mend that line") from None
        table |= {name: value for name, value in flags.items() if value is not None}
        try:
            file = msgspec.convert(table, ServerFile)
        except msgspec.ValidationError as error:
            raise InvalidInput(str(error), where=str(paths.config), fix="see docs/reference/server.md") from None
        return cls.checked(paths, file)

    @classmethod
    def checked(cls, paths: ServerPaths, file: ServerFile) -> ServerConfig:
        """Check what types cannot say."""
        where = str(paths.config)
        for name in ("agent_port", "health_port"):
            if not 0 <= getattr(file, name) <= 65535:
                raise InvalidInput(f"{name} is not a port", where=where, fix="a number from 0 (any free) to 65535")
        if not 60 <= file.agent_svid_ttl <= 4 * 3600:
            raise InvalidInput("agent_svid_ttl must be 60 to 14400 seconds", where=where)
        if not 30 <= file.jwt_svid_ttl <= 3600:
            raise InvalidInput("jwt_svid_ttl must be 30 to 3600 seconds", where=where)
        if not 0.05 <= file.checkpoint_interval <= 60:
            raise InvalidInput("checkpoint_interval must be 0.05 to 60 seconds", where=where)
        if file.ledger_max_rows < 1000:
            raise InvalidInput("ledger_max_rows must be at least 1000", where=where)
        if not 1 <= file.intermediate_days <= file.root_days <= 36500:
            raise InvalidInput("intermediate_days must be at least 1 and at most root_days", where=where)
        return cls(paths, TrustDomain.parse(file.trust_domain), file)


def render(file: ServerFile) -> str:
    """``server.toml`` for a new server: what differs from the defaults is set, the rest shown as comments."""
    defaults = ServerFile(trust_domain=file.trust_domain)
    lines = ["# The server's settings; flags of `eastwest server run` win over them."]
    for name in file.__struct_fields__:
        value = getattr(file, name)
        text = f"{name} = {_toml(value)}"
        lines.append(text if name == "trust_domain" or value != getattr(defaults, name) else f"# {text}")
    return "\n".join(lines) + "\n"


def _toml(value: str | float) -> str:
    return msgspec.json.encode(value).decode()
