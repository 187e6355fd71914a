"""What the two sides of a ClickHouse table have in common: its name, and who asks."""

from __future__ import annotations

import re
from typing import Protocol

from eastwest.errors import InvalidInput
from eastwest.plugins.http_post import header_secret

_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}(\.[A-Za-z_][A-Za-z0-9_]{0,63})?")


class Account(Protocol):
    """Options that name a user."""

    @property
    def user(self) -> str: ...

    @property
    def password_file(self) -> str: ...


def check_table(name: str) -> str:
    """The name, or ``InvalidInput``: it goes into statements as it is."""
    if not _TABLE.fullmatch(name):
        raise InvalidInput(f"table {name[:80]!r} is no table's name", fix="such as audit.decisions")
    return name


def credentials(account: Account) -> dict[str, str]:
    """The headers of ClickHouse's HTTP interface that say who asks; the password is read anew each time."""
    headers = {"Content-Type": "application/octet-stream"}
    if account.user:
        headers["X-ClickHouse-User"] = account.user
    if account.password_file:
        headers["X-ClickHouse-Key"] = header_secret(account.password_file, "password_file")
    return headers
