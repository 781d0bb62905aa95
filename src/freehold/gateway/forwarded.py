"""Who asks, where proxies stand between: what `X-Forwarded-For` says is believed of trusted proxies only."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address

from freehold.policy.access import from_network

_HOPS = 32  # further ones are not read: the header is as long as its sender likes
_LONGEST = 64  # of an address


def caller_address(peer: str, forwarded: bytes | None, trusted: tuple[str, ...]) -> str:
    """The address to go by: the last in `forwarded` that is not of a trusted proxy, if `peer` is one itself.

    `forwarded`: the header's value; of several headers all, in their order, with commas between. `trusted`: networks.
    Every proxy appends whom it saw, so what stands to the left of the first stranger, seen from the right, is that
    stranger's own claim. Where what a trusted proxy has appended is no address, that proxy is all that is known.
    """
    if not trusted or forwarded is None or not from_network(trusted, peer):
        return peer
    known = peer
    for hop in reversed(forwarded.rsplit(b",", _HOPS)[-_HOPS:]):
        address = _address(hop) if len(hop) <= _LONGEST else None
        if address is None:
            break
        known = address
        if not from_network(trusted, address):
            break
    return known


@lru_cache(4096)  # the same callers come again
def _address(hop: bytes) -> str | None:
    """As some write it: with a port, or in brackets. None: it is no address."""
    text = hop.decode("latin-1").strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ip_address(text))
    except ValueError:
        return None
