"""What a key may be called, in every key store (``eastwest.pki.signer.KeyStore``)."""

from __future__ import annotations

import re

from eastwest.errors import InvalidInput

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")


def check_key_name(name: str) -> None:
    """Refuse a name that could leave the store or hide in it; raise ``InvalidInput``."""
    if not is_key_name(name):
        raise InvalidInput(
            f"{name[:80]!r} is not a key name", fix="use 1 to 100 of a-z 0-9 . _ - and start with a letter or digit"
        )


def is_key_name(name: str) -> bool:
    """Whether a key may have this name."""
    return _NAME.fullmatch(name) is not None
