"""Keys in memory, by the hash of their secret: read on every request, changed only together with the book."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping

from msgspec import to_builtins
from msgspec.structs import replace

from freehold.errors import BadKey, BadRequest, FreeholdError, Unknown
from freehold.fleet.config import Group
from freehold.fleet.ground import Ground
from freehold.gateway.accounts import Accounts
from freehold.gateway.limits import Limits
from freehold.policy.access import expired
from freehold.policy.limits import began_ns
from freehold.types import Detail, Grant, Key

PREFIX = "fh-"
_SCOPE = re.compile(r"[A-Za-z0-9._*?\[\]!:-]{1,127}")  # also endpoint:adapter
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")


class Keyring:
    """One owner: the event loop. `load` it before the first request."""

    def __init__(self, ground: Ground, groups: Mapping[str, Group] | None = None) -> None:
        self._ground, self._groups = ground, groups or {}
        self.limits = Limits(ground)
        self._keys: dict[bytes, Key] = {}
        self.accounts = Accounts(self._groups, now_ns=ground.clock_ns(), hit=self.limits.hit)

    async def load(self) -> None:
        """From here on `accounts` is another one."""
        now_ns, book = self._ground.clock_ns(), self._ground.book
        self._keys = await book.keys()
        spent = await book.spent(began_ns("day", now_ns), began_ns("month", now_ns))
        self.accounts = Accounts(self._groups, self._keys.values(), spent, now_ns=now_ns, hit=self.limits.hit)

    def find(self, authorization: bytes | None) -> Key:
        """The key of an `Authorization: Bearer ...` header. Raises BadKey.

        No comparison in constant time is needed, because what is looked up is a hash: how long that takes may tell how
        much the hash of a guess is like one that is there, which says nothing of the secret behind it, and secrets are
        256 random bits, so nobody works towards one guess by guess.
        """
        if not authorization:
            raise BadKey(
                "You didn't provide an API key.",
                hint="send Authorization: Bearer KEY; make one with: freehold keys create NAME",
            )
        key = self._keys.get(_hash(authorization[7:].strip())) if authorization[:7].lower() == b"bearer " else None
        if key is None:
            raise BadKey("Incorrect API key provided.", hint="freehold keys list shows those there are")
        if key.expires_ns is key.revoked_ns is None:
            return key
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
        group: str = "",
        grant: Grant = Grant(),  # noqa: B008  frozen
    ) -> tuple[Key, str]:
        """A new key and its secret, which nobody can ask for again. Raises BadRequest when the name is in use."""
        now_ns = self._ground.clock_ns()
        if not _NAME.fullmatch(name):
            raise BadRequest(f"`{name}` is no name for a key", hint="letters, digits and . _ @ -, 63 at most")
        if stray := next((pattern for pattern in endpoints if not _SCOPE.fullmatch(pattern)), None):
            raise BadRequest(f"`{stray}` is no name of endpoints", hint="a name, or a glob such as team-*")
        if group and group not in self._groups:
            there = ", ".join(self._groups) or "none"
            raise BadRequest(f"there is no group `{group}`", hint=f"[groups.{group}] in freehold.toml; there: {there}")
        if any(key.name == name and expired(key, now_ns) is None for key in self._keys.values()):
            hint = "choose another name, revoke that one, or: freehold keys rotate NAME"
            raise BadRequest(f"a key called `{name}` is in use already", hint=hint)
        key = Key(
            id=secrets.token_hex(6), name=name, endpoints=endpoints or ("*",), created_ns=now_ns,
            expires_ns=expires_ns, content_days=content_days, group=group, grant=grant,
        )  # fmt: skip
        secret = await self._add(key)
        more = {"keeps_content_days": content_days} if content_days else {}
        self._ground.tell("key.created", key.id, actor=actor, name=name, **_terms(key), **more)
        return key, secret

    async def rotate(
        self, name: str, overlap_ns: int, actor: str, *, expires_ns: int | None = None
    ) -> tuple[Key, str, int]:
        """A new key in place of those of this name, with all that they may, and when those end. Raises Unknown.

        They open what they opened until then, and share its limits. It ends when they would have, or at `expires_ns`.
        """
        now_ns = self._ground.clock_ns()
        alive = [key for key in self._keys.values() if key.name == name and expired(key, now_ns) is None]
        if not alive:
            raise _not_in_use(name)
        old, until_ns = alive[-1], now_ns + overlap_ns
        key = replace(old, id=secrets.token_hex(6), created_ns=now_ns, expires_ns=expires_ns or old.expires_ns)
        secret = await self._add(key, until_ns)
        self._ground.tell("key.rotated", key.id, actor=actor, name=name, replaces=old.id, overlap_s=overlap_ns // 10**9)
        return key, secret, until_ns

    async def _add(self, key: Key, until_ns: int | None = None) -> str:
        """Its secret, once it is in the book; then those of its name that were there before end at `until_ns`."""
        secret = PREFIX + secrets.token_urlsafe(32)  # 256 bits
        digest, now_ns, book = _hash(secret.encode()), self._ground.clock_ns(), self._ground.book
        before = {held.id for held in self._keys.values() if held.name == key.name}
        self._keys[digest] = key  # its name is taken from now on; nobody has the secret yet
        try:
            await book.add_key(key, digest, until_ns)  # with no await before it: so no `revoke` can be
        except FreeholdError:
            del self._keys[digest]
            raise
        for each, held in list(self._keys.items()):  # as they are by now
            if until_ns is not None and held.id in before and held.revoked_ns is None:
                self._keys[each] = replace(held, expires_ns=min(held.expires_ns or until_ns, until_ns))
        spent = await book.spent(began_ns("day", now_ns), began_ns("month", now_ns)) if before else ()
        self.accounts.add(key, [row for row in spent if row.key in before], now_ns=now_ns)
        return secret

    def check(self, key: Key) -> None:
        """Raises BadKey when a key found earlier opens nothing any more: its request may have waited."""
        now = next(held for held in self._keys.values() if held.id == key.id)  # keys are never taken out
        if error := expired(now, self._ground.clock_ns()):
            raise error

    async def revoke(self, name_or_id: str, actor: str) -> list[Key]:
        """All of that name or id are dead when this returns: first for callers, then in the book. Raises Unknown."""
        dead = {
            digest: replace(key, revoked_ns=self._ground.clock_ns())
            for digest, key in self._keys.items()
            if name_or_id in (key.id, key.name) and key.revoked_ns is None
        }
        if not dead:
            raise _not_in_use(name_or_id)
        self._keys |= dead
        for key in dead.values():
            await self._ground.book.revoke_key(key.id)
            self._ground.tell("key.revoked", key.id, actor=actor, name=key.name)
        await self._ground.book.flush()
        return list(dead.values())


def _hash(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _terms(key: Key) -> Detail:
    """What it may, for an event."""
    limits = {name: " ".join(v) if isinstance(v, tuple) else v for name, v in to_builtins(key.grant).items()}
    return {"endpoints": " ".join(key.endpoints), **({"group": key.group} if key.group else {}), **limits}


def _not_in_use(name: str) -> Unknown:
    return Unknown(f"no key called `{name}` is in use", hint="freehold keys list shows those there are")
