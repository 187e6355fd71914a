"""Turning this process into a workload's Envoy: bootstrap file, user, exec."""

from __future__ import annotations

import json
import os
import pwd
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from eastwest import errors
from eastwest.agent.callers import EGRESS_HEADER
from eastwest.agent.config import check_socket_path
from eastwest.agent.envoy import sidecar_command
from eastwest.mesh.bootstrap import bootstrap
from eastwest.process.files import replace_file


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarProcess:
    """One Envoy to be. Its bootstrap lies beside its way out, in a directory that its user must own or may write."""

    agent_socket: Path
    egress_socket: Path
    admin_socket: Path | None = None
    node_id: str = ""
    concurrency: int = 1
    binary: Path | None = None
    uid: int | None = None
    gid: int | None = None
    log_level: str = "warning"

    def become(self) -> NoReturn:
        """Drop privileges where asked and run Envoy in place of this process; raises before that, never after."""
        directory = self.egress_socket.parent
        admin = self.admin_socket or directory / "envoy.sock"
        for path in (self.agent_socket, self.egress_socket, admin):
            check_socket_path(path)
        if not directory.is_dir():
            raise errors.InvalidInput("the directory of the way out does not exist", where=str(directory))
        self._change_user()
        file = directory / "envoy.json"
        try:
            replace_file(file, self._bootstrap(admin))
            # Envoy does not replace sockets that an earlier run left behind.
            for path in (self.egress_socket, admin):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise errors.FailedPrecondition(
                f"the directory cannot be written: {error.strerror}", where=str(directory), fix="make its user own it"
            ) from None
        command = sidecar_command(file, binary=self.binary, concurrency=self.concurrency, log_level=self.log_level)
        try:
            os.execv(command[0], command)  # noqa: S606 - to become Envoy is the purpose
        except OSError as error:
            raise errors.FailedPrecondition(f"Envoy does not start: {error.strerror}", where=command[0]) from None

    def _bootstrap(self, admin: Path) -> bytes:
        node_id = self.node_id or f"{socket.gethostname()}:{self.egress_socket}"
        made = bootstrap(
            node_id=node_id,
            # What it is, the agent finds out for itself; Envoy only insists on some text here.
            spiffe_id="sidecar",
            agent_socket=str(self.agent_socket),
            admin_socket=str(admin),
        )
        config = json.loads(made)
        (service,) = config["dynamic_resources"]["ads_config"]["grpc_services"]
        service["initial_metadata"] = [{"key": EGRESS_HEADER, "value": str(self.egress_socket)}]
        return json.dumps(config, indent=1, sort_keys=True).encode()

    def _change_user(self) -> None:
        if self.uid is None and self.gid is None:
            return
        gid = self.gid
        try:
            if gid is None and self.uid is not None:
                gid = _group_of(self.uid)
            if gid is not None:
                os.setgroups([])
                os.setgid(gid)
            if self.uid is not None:
                os.setuid(self.uid)
        except OSError as error:
            raise errors.FailedPrecondition(
                f"cannot become user {self.uid}: {error.strerror}", fix="run as root, or leave --uid and --gid out"
            ) from None


def _group_of(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid
