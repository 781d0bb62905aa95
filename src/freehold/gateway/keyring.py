"""Keys in memory, by the hash of their secret: read on every request, changed only together with the book."""

from __future__ import annotations

import hashlib
import re
import secrets

import msgspec

from freehold.errors import BadKey, BadRequest, FreeholdError, Unknown
from freehold.fleet.ground import Ground
from freehold.gateway.limits import Limits
from freehold.policy.access import expired
from freehold.types import Key

PREFIX = "fh-"
_SCOPE = re.compile(r"[A-Za-z0-9._*?\[\]!-]{1,100}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")


class Keyring:
    """One owner: the event loop. `load` it before the first request."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.limits = Limits(ground)
        self._keys: dict[bytes, Key] = {}

    async def load(self) -> None:
        self._keys = await self._ground.book.keys()

    def find(self, authorization: bytes | None) -> Key:
        """The key of an `Authorization: Bearer ...` header. Raises BadKey."""
        if not authorization:
            raise BadKey(
                "You didn't provide an API key.",
                hint="send Authorization: Bearer KEY; make one with: freehold keys create NAME",
            )
        scheme, _, secret = authorization.partition(b" ")
        key = self._keys.get(_hash(secret.strip())) if scheme.lower() == b"bearer" else None
        if key is None:
            raise BadKey("Incorrect API key provided.", hint="freehold keys list shows those there are")
        if error := expired(key, self._ground.clock_ns()):
            self.limits.hit("revoked key" if key.revoked_ns else "expired key", key.id)
            raise error
        return key

    def named(self, name: str) -> tuple[str, ...]:
        """Ids of all keys that this is the name or id of, the dead ones too. Raises Unknown."""
        found = tuple(key.id for key in self._keys.values() if name in (key.id, key.name))
        if not found:
            raise Unknown(f"there was never a key called `{name}`", hint="freehold keys list --all shows them")
        return found

    def list(self) -> list[Key]:
        return list(self._keys.values())

    async def create(
        self,
        name: str,
        endpoints: tuple[str, ...],
        expires_ns: int | None,
        actor: str,
        *,
        content_days: int | None = None,
    ) -> tuple[Key, str]:
        """A new key and its secret, which nobody can ask for again. Raises BadRequest when the name is in use."""
        now_ns = self._ground.clock_ns()
        if not _NAME.fullmatch(name):
            raise BadRequest(f"`{name}` is no name for a key", hint="letters, digits and . _ @ -, 63 at most")
        if stray := next((pattern for pattern in endpoints if not _SCOPE.fullmatch(pattern)), None):
            raise BadRequest(f"`{stray}` is no name of endpoints", hint="a name, or a glob such as team-*")
        if any(key.name == name and expired(key, now_ns) is None for key in self._keys.values()):
            raise BadRequest(f"a key called `{name}` is in use already", hint="choose another name, or revoke that one")
        secret = PREFIX + secrets.token_urlsafe(32)  # 256 bits
        key = Key(
            id=secrets.token_hex(6), name=name, endpoints=endpoints or ("*",),
            created_ns=now_ns, expires_ns=expires_ns, content_days=content_days,
        )  # fmt: skip
        digest = _hash(secret.encode())
        self._keys[digest] = key  # its name is taken from now on; nobody has the secret yet
        try:
            await self._ground.book.add_key(key, digest)
        except FreeholdError:
            del self._keys[digest]
            raise
        more = {"keeps_content_days": content_days} if content_days else {}
        self._ground.tell("key.created", key.id, actor=actor, name=name, endpoints=" ".join(key.endpoints), **more)
        return key, secret

    def check(self, key: Key) -> None:
        """Raises BadKey when a key found earlier opens nothing any more: its request may have waited."""
        now = next(held for held in self._keys.values() if held.id == key.id)  # keys are never taken out
        if error := expired(now, self._ground.clock_ns()):
            raise error

    async def revoke(self, name_or_id: str, actor: str) -> list[Key]:
        """All of that name or id are dead when this returns: first for callers, then in the book. Raises Unknown."""
        dead = {
            digest: msgspec.structs.replace(key, revoked_ns=self._ground.clock_ns())
            for digest, key in self._keys.items()
            if name_or_id in (key.id, key.name) and key.revoked_ns is None
        }
        if not dead:
            raise Unknown(f"no key called `{name_or_id}` is in use", hint="freehold keys list shows those there are")
        self._keys |= dead
        for key in dead.values():
            await self._ground.book.revoke_key(key.id)
            self._ground.tell("key.revoked", key.id, actor=actor, name=key.name)
        await self._ground.book.flush()
        return list(dead.values())


def _hash(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
