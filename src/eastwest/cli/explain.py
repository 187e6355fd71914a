"""Asking why a process has its identities, or none: the agent about a pid, the server about selectors."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from eastwest.cli.options import print_json, run
from eastwest.errors import PermissionDenied, Unavailable


def explain_process(data: Path, pid: int) -> dict[str, Any]:
    """What the agent of ``data`` says of a process of this node."""
    from eastwest.api.eastwest.agent.v1 import agent_pb2 as pb
    from eastwest.rpc.client import method

    async def work() -> Any:
        channel = _agent_channel(data)
        try:
            service = pb.DESCRIPTOR.services_by_name["NodeAdmin"]
            return await channel.unary(method(service, "ExplainProcess"), pb.ExplainProcessRequest(pid=pid))
        finally:
            channel.close()

    found: dict[str, Any] = msgspec.json.decode(run(work).explanation)
    return found


def explain_selectors(data: Path, selectors: Sequence[str], node: str) -> dict[str, Any]:
    """What the server of ``data`` says of a process with these selectors, on a node or on any."""
    from eastwest.cli.admin import AdminClient

    async def work() -> dict[str, Any]:
        async with AdminClient.connect(data) as admin:
            return await admin.explain_entries(selectors, node)

    return run(work)


def show_explanation(found: dict[str, Any], *, as_json: bool) -> None:
    """Print an explanation."""
    if as_json:
        print_json(found)
        return
    for line in found["words"]:
        print(line)


def _agent_channel(data: Path) -> Any:
    from eastwest.rpc.client import Channel

    path = data.absolute() / "agent" / "admin.sock"
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            probe.connect(str(path))
    except PermissionError:
        raise PermissionDenied(f"this user may not open {path}", fix="run it as root or as the agent's user") from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise Unavailable(f"no agent runs on {data}", fix="give the --data of a running agent") from None
    except OSError as error:
        raise Unavailable(f"{path} does not answer: {error}") from None
    return Channel(path=str(path))
