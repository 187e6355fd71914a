"""The agent's settings: a TOML file, flags over it, and the paths that follow from the data directory."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from eastwest import errors
from eastwest.agent.spool import DEFAULT_LIMIT, MIN_LIMIT
from eastwest.process.tracing import TracingSettings
from eastwest.spiffe.id import TrustDomain

MAX_SOCKET_PATH = 107
"""Bytes of a unix socket's path that Linux takes."""
MAX_TOKEN_FILE = 16 * 1024
MAX_SPOOL = 1 << 40


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings as written. Every flag of ``eastwest agent run`` has its name here, with ``_`` for ``-``."""

    server: str = ""  # HOST:PORT
    bundle: str = ""  # path of the trust bundle: PEM, or SPIFFE JSON
    join_token_file: str = ""
    node_attestor: str = "join_token"
    node_provers: dict[str, dict[str, Any]] = {}
    workload_attestors: dict[str, dict[str, Any]] = {}
    trust_domain: str = ""
    log_level: str = "info"
    wait: float = 60.0  # seconds to wait for the server at the start
    health_port: int | None = None  # loopback; 0 takes a free one
    max_identities: int = 1000  # X.509-SVIDs kept ready; more are made on demand
    server_timeout: float = 30.0  # seconds for one call to the server
    http2: Literal["own", "grpclib"] = "own"
    spool_bytes: int = DEFAULT_LIMIT  # of decisions on disk while the server is away
    tracing: TracingSettings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Checked settings. ``join_token`` is a secret and has no place in a log."""

    data: Path
    host: str
    port: int
    bundle_file: Path | None
    trust_domain: TrustDomain | None
    join_token: str = field(default="", repr=False)
    wait: float = 60.0
    health_port: int | None = None
    max_identities: int = 1000
    server_timeout: float = 30.0
    http2: str = "own"
    spool_bytes: int = DEFAULT_LIMIT
    tracing: TracingSettings | None = None
    node_attestor: str = "join_token"
    node_provers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    workload_attestors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    where: str = "the agent's settings"  # the file they come from
    warnings: tuple[str, ...] = ()
    """What is allowed and yet likely a mistake, a sentence each."""

    @property
    def paths(self) -> Paths:
        """Where the agent keeps its files."""
        return Paths(self.data)


@dataclass(frozen=True, slots=True)
class Paths:
    """Files of one agent under its data directory."""

    data: Path

    @property
    def home(self) -> Path:
        """Open to every local user for passing through: the socket lies in it."""
        return self.data / "agent"

    @property
    def socket(self) -> Path:
        return self.home / "agent.sock"

    @property
    def admin_socket(self) -> Path:
        """For the node's operator only."""
        return self.home / "admin.sock"

    @property
    def lock(self) -> Path:
        return self.home / "lock"

    @property
    def keys(self) -> Path:
        return self.home / "keys"

    @property
    def svid(self) -> Path:
        return self.home / "svid.pem"

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    @property
    def receipts(self) -> Path:
        """The log's receipts for the certificates that the agent holds."""
        return self.home / "receipts"

    @property
    def spool(self) -> Path:
        """Decisions that the server does not have yet."""
        return self.home / "spool"

    @property
    def health_port(self) -> Path:
        return self.home / "health.port"


def read_config(path: Path | None) -> AgentConfig:
    """The settings of a TOML file; the defaults without one."""
    if path is None:
        return AgentConfig()
    try:
        table = tomllib.loads(path.read_text())
        # A file that the server shares keeps the agent's part in a table of its own.
        return msgspec.convert(table.get("agent", table), AgentConfig)
    except OSError as error:
        raise errors.InvalidInput(f"cannot be read: {error.strerror}", where=str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise errors.InvalidInput(str(error), where=str(path), fix="see docs/reference/agent.md") from None


def override(config: AgentConfig, **flags: Any) -> AgentConfig:
    """``config`` with those flags that were given (not None)."""
    return msgspec.structs.replace(config, **{name: value for name, value in flags.items() if value is not None})


def check(config: AgentConfig, data: Path, join_token: str = "", where: str = "the agent's settings") -> Settings:
    """Turn settings as written into checked ones; raises ``InvalidInput`` with what to write instead.

    ``where`` names the file that they come from, for errors that are found later.
    """
    for name in config.node_provers:
        if name != config.node_attestor:
            raise errors.InvalidInput(
                f"there are options for the node prover {name!r}, and node_attestor is {config.node_attestor!r}",
                where=where,
                fix=f'remove them, or set node_attestor = "{name}"',
            )
    if not config.server:
        raise errors.InvalidInput("no server is named", fix="give --server HOST:PORT")
    host, port = _host_and_port(config.server)
    if not 0 < config.wait <= 86400 or not 0 < config.server_timeout <= 3600:
        raise errors.InvalidInput("wait and server_timeout are seconds above 0")
    if config.max_identities < 1:
        raise errors.InvalidInput("max_identities is at least 1")
    if config.health_port is not None and not 0 <= config.health_port <= 65535:
        raise errors.InvalidInput(f"health_port {config.health_port} is no port", fix="choose 1 to 65535, or 0 for any")
    if not MIN_LIMIT <= config.spool_bytes <= MAX_SPOOL:
        raise errors.InvalidInput(f"spool_bytes is {MIN_LIMIT} to {MAX_SPOOL}")
    token, warnings = _token_from(config.join_token_file)
    settings = Settings(
        data=data.absolute(),
        host=host,
        port=port,
        bundle_file=Path(config.bundle) if config.bundle else None,
        trust_domain=TrustDomain.parse(config.trust_domain) if config.trust_domain else None,
        join_token=join_token or token,
        wait=config.wait,
        health_port=config.health_port,
        max_identities=config.max_identities,
        server_timeout=config.server_timeout,
        http2=config.http2,
        spool_bytes=config.spool_bytes,
        tracing=config.tracing,
        node_attestor=config.node_attestor,
        node_provers=config.node_provers,
        workload_attestors=config.workload_attestors,
        where=where,
        warnings=warnings,
    )
    check_socket_path(settings.paths.socket)
    return settings


def check_socket_path(path: Path) -> None:
    """Refuse a path that Linux cannot bind."""
    length = len(str(path).encode())
    if length > MAX_SOCKET_PATH:
        raise errors.InvalidInput(
            f"the socket's path has {length} bytes; Linux takes at most {MAX_SOCKET_PATH}",
            fix="choose a shorter --data",
            where=str(path),
        )


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise errors.InvalidInput(f"{text[:80]!r} is not HOST:PORT", fix="write --server 127.0.0.1:8081")
    return host, int(port)


def _token_from(path: str) -> tuple[str, tuple[str, ...]]:
    """The token of a file, and what is to be said of the file."""
    if not path:
        return "", ()
    try:
        with Path(path).open() as file:
            # On the open file, so that the name cannot be pointed elsewhere between check and read.
            mode = os.fstat(file.fileno()).st_mode
            token = file.read(MAX_TOKEN_FILE).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.InvalidInput(f"the join token cannot be read: {error}", where=path) from None
    if not stat.S_ISREG(mode):
        return token, ()
    if mode & stat.S_IWOTH:
        raise errors.FailedPrecondition(
            "every user can write the join token's file, and so choose as what this node joins",
            where=path,
            fix=f"chmod 600 {path}, and put in a new token",
        )
    if mode & stat.S_IROTH:
        return token, (f"{path}: every user can read the join token, and join in this node's place (chmod 600 {path})",)
    return token, ()
