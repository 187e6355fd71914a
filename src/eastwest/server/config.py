"""The server's configuration: one TOML file, flags on top, checked once."""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.pki.revocation import RevocationUrls
from eastwest.pki.rotation.state import REFRESH_HINT
from eastwest.process.tracing import TracingSettings
from eastwest.spiffe.id import TrustDomain

CONFIG_NAME = "server.toml"


class TokenSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[tokens]``: transaction tokens are made, and this is how. Times are in seconds."""

    address: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8082
    advertise: str = ""
    life: Annotated[int, msgspec.Meta(ge=10, le=300)] = 120
    rate: Annotated[float, msgspec.Meta(ge=0.1, le=10_000)] = 5.0
    burst: Annotated[float, msgspec.Meta(ge=1, le=10_000)] = 50.0
    caller_rate: Annotated[float, msgspec.Meta(ge=0.1, le=100_000)] = 50.0
    approval_wait: Annotated[int, msgspec.Meta(ge=60, le=7 * 86_400)] = 3600
    approval_life: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = 900
    key_life: Annotated[int, msgspec.Meta(ge=2, le=365 * 86_400)] = 7 * 86_400
    key_publish: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = 600


class LogSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[log]``: the log's listener and its witnesses. Times are in seconds; files are relative to ``DATA/server``."""

    address: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] | None = None
    certificate: str = ""
    key: str = ""
    witness_policy: str = ""
    witness_interval: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = 60
    witness_stale_after: Annotated[int, msgspec.Meta(ge=1, le=30 * 86_400)] = 300
    witness_fail_closed_after: Annotated[int, msgspec.Meta(ge=0, le=30 * 86_400)] = 0
    witness_claims: Literal["stop", "prove"] = "stop"
    witness_ca_file: str = ""
    mark: str = ""
    keep_entries_days: Annotated[int, msgspec.Meta(ge=0, le=36_500)] = 0


class LedgerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[ledger]``: how decisions are sealed and kept. ``keep_*`` 0: for ever."""

    seal_interval: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 60.0
    seal_rows: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 50_000
    keep_days: Annotated[int, msgspec.Meta(ge=0, le=36_500)] = 0
    keep_mib: Annotated[int, msgspec.Meta(ge=0)] = 10_240
    query_mib: Annotated[int, msgspec.Meta(ge=64, le=65_536)] = 512


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
    downstream_depth: int = 0
    attest_rate: float = 10.0
    attest_burst: int = 100
    node_purge_after: int = 0
    root_days: int = 3650
    intermediate_days: int = 365
    jwt_key_days: int = 30
    ca_key: Literal["ec-p256", "ec-p384", "ed25519"] = "ec-p256"
    post_quantum: bool = False
    ca_rotation: str = "auto"
    publish_wait: int = 2 * REFRESH_HINT
    agent_svid_ttl: int = 3600
    jwt_svid_ttl: int = 300
    jwt_issuer: str = ""
    oidc_address: str = "127.0.0.1"
    oidc_port: int | None = None
    oidc_certificate: str = ""
    oidc_key: str = ""
    oidc_socket: str = ""
    revocation_address: str = "127.0.0.1"
    revocation_port: int | None = None
    revocation_url: str = ""
    crl_hours: int = 24
    bundle_endpoint_address: str = "127.0.0.1"
    bundle_endpoint_port: int | None = None
    bundle_endpoint_certificate: str = ""
    bundle_endpoint_key: str = ""
    federation_ca_file: str = ""
    checkpoint_interval: float = 1.0
    clock_skew_limit: int = 60
    selector_types: list[str] = []
    admin_socket_group: str = ""
    ledger_max_rows: int = 1_000_000
    http2: Literal["own", "grpclib"] = "own"
    csr_workers: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    tokens: TokenSettings | None = None
    log: LogSettings | None = None
    ledger: LedgerSettings | None = None
    export: dict[str, dict[str, Any]] = {}
    tracing: TracingSettings | None = None
    verify_interval: float = 0
    verify_allow_ports: list[Annotated[int, msgspec.Meta(ge=1, le=65535)]] = []


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
    def ledger(self) -> Path:
        return self.home / "ledger"

    @property
    def log_vkey(self) -> Path:
        return self.home / "log.vkey"

    @property
    def containment(self) -> Path:
        """Snapshots of evidence, one for each containment."""
        return self.home / "containment"

    @property
    def log_index(self) -> Path:
        """What `eastwest log search` finds entries by; made from the log, and made anew when it is missing."""
        return self.home / "log-index.db"

    @property
    def log_ml_dsa_vkey(self) -> Path:
        """Absent where the key store makes no ML-DSA-44 keys."""
        return self.home / "log.ml-dsa-44.vkey"

    @property
    def log_fork(self) -> Path:
        """Written when the log was found to have forked; nothing is signed while it is there."""
        return self.home / "log-fork.txt"

    @property
    def log_port(self) -> Path:
        """Holds the port of the log's public files, while the server runs and offers them."""
        return self.home / "log.port"

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
    def oidc_port(self) -> Path:
        """Holds the port of OpenID Connect discovery, while the server runs and offers it."""
        return self.home / "oidc.port"

    @property
    def revocation_port(self) -> Path:
        """Holds the port of CRLs and OCSP, while the server runs and offers them."""
        return self.home / "revocation.port"

    @property
    def bundle_endpoint_port(self) -> Path:
        """Holds the port of the SPIFFE bundle endpoint, while the server runs and offers it."""
        return self.home / "bundle-endpoint.port"

    @property
    def tokens_port(self) -> Path:
        """Holds the port of the token endpoint, while the server runs and offers it."""
        return self.home / "tokens.port"

    def export_progress(self, sink: str) -> Path:
        """Holds the number of the last decision that a sink has."""
        return self.home / f"export-{sink}.json"

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

    @property
    def log_mark(self) -> Path | None:
        """Where the log's last checkpoint is kept apart from the data directory; None where it is not."""
        return Path(self.file.log.mark) if self.file.log is not None and self.file.log.mark else None

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
        except PermissionError:
            raise FailedPrecondition(
                f"{paths.config} cannot be read by this user", fix="run it as the server's user, or as root"
            ) from None
        return cls.parse(paths, text, flags)

    @classmethod
    def parse(cls, paths: ServerPaths, text: bytes, flags: dict[str, Any]) -> ServerConfig:
        """Check the file's text with ``flags`` laid over it."""
        return cls.checked(paths, read_file(text, str(paths.config), flags))

    @classmethod
    def checked(cls, paths: ServerPaths, file: ServerFile) -> ServerConfig:
        """Check what types cannot say."""
        where = str(paths.config)
        for name in ("agent_port", "health_port", "oidc_port", "revocation_port", "bundle_endpoint_port"):
            port = getattr(file, name)
            if port is not None and not 0 <= port <= 65535:
                raise InvalidInput(f"{name} is not a port", where=where, fix="a number from 0 (any free) to 65535")
        if not 60 <= file.agent_svid_ttl <= 4 * 3600:
            raise InvalidInput("agent_svid_ttl must be 60 to 14400 seconds", where=where)
        if not 0.1 <= file.attest_rate <= 10_000 or not 1 <= file.attest_burst <= 100_000:
            raise InvalidInput("attest_rate must be 0.1 to 10000 a second, and attest_burst 1 to 100000", where=where)
        if not 0 <= file.node_purge_after <= 36500:
            raise InvalidInput("node_purge_after must be 1 to 36500 days, or 0 for never", where=where)
        if not 30 <= file.jwt_svid_ttl <= 3600:
            raise InvalidInput("jwt_svid_ttl must be 30 to 3600 seconds", where=where)
        if not 0.05 <= file.checkpoint_interval <= 60:
            raise InvalidInput("checkpoint_interval must be 0.05 to 60 seconds", where=where)
        if file.verify_interval and not 10 <= file.verify_interval <= 86_400:
            raise InvalidInput("verify_interval must be 10 to 86400 seconds, or 0 for never", where=where)
        if file.ledger_max_rows < 1000:
            raise InvalidInput("ledger_max_rows must be at least 1000", where=where)
        if not 0 <= file.downstream_depth <= 8:
            raise InvalidInput("downstream_depth must be 0 to 8", where=where)
        if not 1 <= file.intermediate_days <= file.root_days <= 36500:
            raise InvalidInput("intermediate_days must be at least 1 and at most root_days", where=where)
        if not 1 <= file.jwt_key_days <= 3650:
            raise InvalidInput("jwt_key_days must be 1 to 3650", where=where)
        if file.ca_rotation not in {"auto", "manual"}:
            raise InvalidInput('ca_rotation must be "auto" or "manual"', where=where)
        if not 0 <= file.publish_wait <= 86400:
            raise InvalidInput("publish_wait must be 0 to 86400 seconds", where=where)
        _check_oidc(file, where)
        _check_revocation(file, where)
        if file.tokens is not None:
            _check_tokens(file.tokens, where)
        if file.log is not None:
            _check_log(file.log, where)
            if file.log.mark:
                _check_mark(file.log.mark, paths.data, where)
        if bool(file.bundle_endpoint_certificate) != bool(file.bundle_endpoint_key):
            raise InvalidInput(
                "bundle_endpoint_certificate and bundle_endpoint_key belong together",
                where=where,
                fix="set both for profile https_web, neither for https_spiffe",
            )
        return cls(paths, TrustDomain.parse(file.trust_domain), file)


def read_file(text: bytes, where: str, flags: dict[str, Any]) -> ServerFile:
    """``server.toml``'s text, with the ``flags`` that are not None laid over it."""
    try:
        table = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"not TOML: {error}", where=where, fix="mend that line") from None
    table |= {name: value for name, value in flags.items() if value is not None}
    try:
        return msgspec.convert(table, ServerFile)
    except msgspec.ValidationError as error:
        raise _located(str(error), text.decode(), where) from None


def _located(message: str, text: str, where: str) -> InvalidInput:
    """What msgspec says, with the line it is about and, for a misspelt name, the name that may be meant."""
    path = re.search(r" - at `\$\.?([^`]*)`$", message)
    unknown = re.match(r"Object contains unknown field `([^`]*)`", message)
    table, _, name = (path[1] if path else "").rpartition(".")
    if unknown is not None:
        table, name = path[1] if path else "", unknown[1]
    line = _line(text, table, name)
    told = f"there is no setting {f'[{table}] ' if table else ''}{name}" if unknown else message
    fields = {"": ServerFile, "ledger": LedgerSettings, "log": LogSettings, "tokens": TokenSettings}
    near = difflib.get_close_matches(name, fields[table].__struct_fields__, n=1, cutoff=0.5) if table in fields else []
    meant = f"did you mean {near[0]!r}? " if unknown and near else ""
    return InvalidInput(told, where=f"{where}:{line}" if line else where, fix=f"{meant}see docs/reference/server.md")


def _line(text: str, table: str, name: str) -> int:
    """The number of the line that sets ``name`` in a table ("": before the first); 0 where none does."""
    within = ""
    for number, line in enumerate(text.splitlines(), 1):
        if opened := re.match(r"\s*\[\s*([^\]]+?)\s*\]", line):
            within = opened[1]
        if re.match(rf"\s*\"?{re.escape(name)}\"?\s*=", line) and within == table:
            return number
    return 0


def render(file: ServerFile) -> str:
    """``server.toml`` for a new server: what differs from the defaults is set, the rest shown as comments."""
    defaults = ServerFile(trust_domain=file.trust_domain)
    lines = ["# The server's settings; flags of `eastwest server run` win over them."]
    for name in file.__struct_fields__:
        value = getattr(file, name)
        text = f"{name} = {'(none)' if value is None else _toml(value)}"
        lines.append(text if name == "trust_domain" or value != getattr(defaults, name) else f"# {text}")
    return "\n".join(lines) + "\n"


def _check_oidc(file: ServerFile, where: str) -> None:
    if file.oidc_port is None and not file.oidc_socket:
        return
    # Imported only where it is used: most commands that read this file serve nothing.
    from eastwest.server.public.oidc import check_issuer

    if not file.jwt_issuer:
        raise InvalidInput(
            "OpenID Connect discovery needs jwt_issuer", where=where, fix='jwt_issuer = "https://id.saas.example"'
        )
    check_issuer(file.jwt_issuer, where=where)
    if file.oidc_port is not None and file.oidc_socket:
        raise InvalidInput(
            "oidc_port and oidc_socket are both set", where=where, fix="keep oidc_socket where a proxy ends TLS"
        )
    if bool(file.oidc_certificate) != bool(file.oidc_key):
        raise InvalidInput("oidc_certificate and oidc_key belong together", where=where, fix="set both")
    if file.oidc_port is not None and not file.oidc_certificate:
        raise InvalidInput(
            "oidc_port is served over TLS only",
            where=where,
            fix="set oidc_certificate and oidc_key, or use oidc_socket behind a proxy that ends TLS",
        )


def _check_revocation(file: ServerFile, where: str) -> None:
    if (file.revocation_port is None) != (not file.revocation_url):
        raise InvalidInput(
            "revocation_url and revocation_port belong together",
            where=where,
            fix="set both: revocation_url is what certificates say, revocation_port where the server answers it",
        )
    if file.revocation_url:
        try:
            RevocationUrls(file.revocation_url)
        except InvalidInput as error:
            raise InvalidInput(f"revocation_url: {error.message}", where=where, fix=error.fix) from None
        if not file.revocation_url.startswith("http://"):
            raise InvalidInput(
                "revocation_url must be plain http: what is fetched there is signed (RFC 5280, 8)",
                where=where,
                fix='revocation_url = "http://pki.saas.example"',
            )
    if not 1 <= file.crl_hours <= 24 * 30:
        raise InvalidInput("crl_hours must be 1 to 720", where=where)


def _check_mark(mark: str, data: Path, where: str) -> None:
    path = Path(mark)
    if not path.is_absolute() or path.is_relative_to(data):
        raise InvalidInput(
            f"log.mark {mark[:200]!r} is not the full path of a file outside of {data}",
            where=where,
            fix="a place that no restore of the data directory touches, best on another disk",
        )


def _check_log(log: LogSettings, where: str) -> None:
    if bool(log.certificate) != bool(log.key):
        raise InvalidInput("log.certificate and log.key belong together", where=where, fix="set both, or neither")
    if log.port is not None and not log.certificate and not is_loopback(log.address):
        raise InvalidInput(
            f"log.address {log.address} is not of this machine alone, and log.certificate is not set",
            where=where,
            fix="set log.certificate and log.key, or listen on 127.0.0.1 behind a proxy that ends TLS",
        )
    if not log.witness_policy and (log.witness_fail_closed_after or log.witness_ca_file):
        raise InvalidInput(
            "log.witness_fail_closed_after and log.witness_ca_file need log.witness_policy",
            where=where,
            fix="see docs/how-to/watch-a-log.md",
        )
    if 0 < log.witness_fail_closed_after < log.witness_stale_after:
        raise InvalidInput(
            "log.witness_fail_closed_after is less than log.witness_stale_after",
            where=where,
            fix="let people be warned first",
        )
    if log.witness_interval > log.witness_stale_after:
        raise InvalidInput(
            "log.witness_interval is more than log.witness_stale_after", where=where, fix="ask more often"
        )


def is_loopback(address: str) -> bool:
    """Whether nobody beyond this machine reaches ``address``."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _check_tokens(tokens: TokenSettings, where: str) -> None:
    if 2 * tokens.key_publish > tokens.key_life:
        raise InvalidInput(
            "tokens.key_publish is more than half of tokens.key_life",
            where=where,
            fix="let keys sign for longer, or publish them for less time before that",
        )
    host, colon, port = tokens.advertise.rpartition(":")
    if tokens.advertise and not (colon and host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise InvalidInput(
            f"tokens.advertise {tokens.advertise[:200]!r} is not host:port",
            where=where,
            fix='where sidecars reach the token endpoint, such as advertise = "10.0.0.5:8082"',
        )


def _toml(value: str | float) -> str:
    return msgspec.json.encode(value).decode()
