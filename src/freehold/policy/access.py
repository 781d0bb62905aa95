"""Who may call what, and when: pure."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal

from freehold.errors import BadKey, Forbidden, FreeholdError
from freehold.types import Key


def expired(key: Key, now_ns: int) -> FreeholdError | None:
    """Why this key opens nothing at all any more, or None."""
    if key.revoked_ns is not None:
        return BadKey(f"the key `{key.name}` was revoked", hint="ask for a new one: freehold keys create NAME")
    if key.expires_ns is not None and key.expires_ns <= now_ns:
        return BadKey(f"the key `{key.name}` has expired", hint="ask for a new one: freehold keys create NAME")
    return None


def state(key: Key, now_ns: int) -> Literal["alive", "expired", "revoked"]:
    if key.revoked_ns is not None:
        return "revoked"
    return "expired" if expired(key, now_ns) else "alive"


def may_use(key: Key, endpoint: str) -> bool:
    return any(fnmatchcase(endpoint, pattern) for pattern in key.endpoints)


def refusal(key: Key, endpoint: str, now_ns: int) -> FreeholdError | None:
    """Why this key may not call this endpoint now, or None."""
    if error := expired(key, now_ns):
        return error
    if not may_use(key, endpoint):
        scope = ", ".join(key.endpoints)
        return Forbidden(f"the key `{key.name}` may not use `{endpoint}`", hint=f"it is for: {scope}", param="model")
    return None
