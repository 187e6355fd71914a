"""What of an estate nobody could call as a server is set up."""

from __future__ import annotations

from eastwest.policy.estate import Estate

MAX_NAMED = 5
"""Operations that a warning names."""
TOKENS_FIX = "add [tokens] to server.toml and restart the server"


def out_of_reach(estate: Estate) -> list[str]:
    """What nobody can call where no transaction tokens are made, in one sentence; nothing when all can."""
    claimed = {one.service for one in estate.services if one.tenant is not None and one.tenant.claim}
    wanting = [
        operation.name
        for service in estate.services
        for operation in service.operations
        if operation.demands or service.service in claimed
    ]
    if not wanting:
        return []
    rest = [f"{len(wanting) - MAX_NAMED} more"] if len(wanting) > MAX_NAMED else []
    shown = ", ".join([*wanting[:MAX_NAMED], *rest])
    return [f"nobody can call {shown}: transaction tokens are demanded, and this server makes none"]
