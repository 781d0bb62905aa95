"""Who may call what, and when: pure."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

from freehold.errors import BadKey, BadRequest, Forbidden, FreeholdError
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


def matches(patterns: tuple[str, ...], endpoint: str) -> bool:
    """Whether one of these globs is of this endpoint. (The first two are quick: every request asks.)"""
    return "*" in patterns or endpoint in patterns or any(fnmatchcase(endpoint, pattern) for pattern in patterns)


def out_of_scope(key: Key, endpoint: str, scope: tuple[str, ...]) -> Forbidden:
    hint = f"it is for: {', '.join(scope)}"
    return Forbidden(f"the key `{key.name}` may not use `{endpoint}`", hint=hint, param="model")


def network(text: str) -> str:
    """One network as it is written in full, such as 10.0.0.0/8. Raises BadRequest."""
    try:
        return str(ip_network(text.strip()))
    except ValueError as error:
        hint = "write 10.0.0.0/8, 2001:db8::/32, or one address"
        raise BadRequest(f"no network {text!r}: {error}", hint=hint) from None


def from_network(networks: tuple[str, ...], address: str) -> bool:
    """Whether an address is of one of these networks; (): all are. What is no address is of none.

    An IPv4 caller of an IPv6 socket comes as ::ffff:192.0.2.1, and is taken for what it is.
    """
    return not networks or (len(address) <= _LONGEST_ADDRESS and _from_network(networks, address))


_LONGEST_ADDRESS = 64  # a proxy may tell what it likes, and answers are kept


@lru_cache(4096)  # as every request asks it
def _from_network(networks: tuple[str, ...], address: str) -> bool:
    try:
        caller = ip_address(address.partition("%")[0])  # without the interface it came by
    except ValueError:
        return False
    if isinstance(caller, IPv6Address) and caller.ipv4_mapped:
        caller = caller.ipv4_mapped
    return any(caller in each for each in _parsed(networks))


@lru_cache(1024)
def _parsed(networks: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(map(ip_network, networks))
