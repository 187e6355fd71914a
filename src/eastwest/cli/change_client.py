"""Asking a server about changes, over its admin socket."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from google.protobuf.message_factory import GetMessageClass

from eastwest.api.eastwest.changes.v1 import changes_pb2
from eastwest.cli.admin import admin_channel
from eastwest.rpc.client import method

_SERVICE = changes_pb2.DESCRIPTOR.services_by_name["Changes"]
_SECONDS = 180
"""A request replays what the ledger has."""


async def call_changes(data: Path, name: str, **fields: Any) -> Any:
    """Call one method of the service by name; gives its reply."""
    called = _SERVICE.methods_by_name[name]
    channel = admin_channel(data)
    try:
        return await channel.unary(
            method(_SERVICE, name), GetMessageClass(called.input_type)(**fields), deadline=_SECONDS
        )
    finally:
        channel.close()


async def judge(data: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    """What putting these files in force would open, and whose words that needs."""
    reply = await call_changes(data, "GetJudgement", files=files)
    judged: dict[str, Any] = msgspec.json.decode(reply.json)
    return judged
