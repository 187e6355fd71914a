"""Transaction tokens and who has used which: a mint that also makes what no server would, and a memory of uses."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
from joserfc import jws
from joserfc.jwk import ECKey, RSAKey

from eastwest.errors import Unavailable
from eastwest.policy.transaction import TYPE, Token, claims

_LIFE = 60


class TokenMint:
    """Keys that sign transaction tokens of ``trust_domain`` (``spiffe://...``).

    ``algorithm``: RS256, or ES256 as servers of a key store without RSA keys have.
    """

    def __init__(self, trust_domain: str, algorithm: str = "RS256") -> None:
        self.trust_domain = trust_domain
        self.algorithm = algorithm
        self._made = 0
        self.keys: list[ECKey | RSAKey] = []
        self.rotate()

    def rotate(self) -> None:
        """Sign with a new key from now on; the older ones stay in the key set."""
        self._made += 1
        about: Any = {"kid": f"token-{self._made}", "alg": self.algorithm, "use": "sig"}
        if self.algorithm == "ES256":
            self.keys.append(ECKey.generate_key("P-256", about))
        else:
            self.keys.append(RSAKey.generate_key(2048, about))

    def forget(self) -> None:
        """Leave only the newest key in the key set."""
        del self.keys[:-1]

    @property
    def key_set(self) -> bytes:
        """The JWK set (RFC 7517) by which tokens are verified."""
        return json.dumps({"keys": [key.as_dict(private=False) for key in self.keys]}).encode()

    def mint(self, token: Token, **changed: Any) -> str:
        """``token``, made a minute before it expires and signed by the newest key.

        ``changed`` claims are put in place of its own; None leaves one out.
        """
        said = {**claims(token, self.trust_domain, token.expires - _LIFE), **changed}
        return self.sign({name: value for name, value in said.items() if value is not None})

    def sign(self, said: dict[str, Any]) -> str:
        """Any claims."""
        key = self.keys[-1]
        header = {"alg": key.alg or self.algorithm, "kid": key.kid, "typ": TYPE}
        return jws.serialize_compact(header, msgspec.json.encode(said), key)


class TokenUses:
    """Remembers which tokens were used, as the server does.

    ``away``: nobody can say; while ``silent`` is set no answer comes.
    """

    def __init__(self) -> None:
        self.away = False
        self.silent = asyncio.Event()
        self.withdrawn: set[str] = set()
        self.used: dict[str, tuple[int, str, str]] = {}

    async def use_token(self, token_id: str, expires_at: int, approval: str, operation: str) -> bool:
        """Whether the token may be used now; true only once."""
        if self.away:
            raise Unavailable("the server does not answer")
        if self.silent.is_set():
            await asyncio.Event().wait()
        if token_id in self.used or approval in self.withdrawn:
            return False
        self.used[token_id] = (expires_at, approval, operation)
        return True
