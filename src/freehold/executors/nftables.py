"""Firewall rules for the daemon's user: it answers its callers, reaches loopback and its peers, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network

from freehold.executors.systemd import GENERATED, Service


def rules(service: Service) -> str:
    """The text for `nft -f`; loading it again replaces it.

    A rule that asks for the user does not match a packet that has none, so only the daemon's own go to its chain.
    """
    body = "\n".join(f"    {line}" for line in (*_answers(service), *_calls(service)))
    return f"""{GENERATED}
# Read it, keep it as /etc/nftables.d/freehold.nft, then: nft -f /etc/nftables.d/freehold.nft
# The user {service.user} must be there. What was dropped: nft list counter inet freehold dropped

table inet freehold
delete table inet freehold
table inet freehold {{
  counter dropped {{
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    meta skuid "{service.user}" jump daemon
  }}
  chain daemon {{
    oifname "lo" accept
{body}
    counter name dropped drop
  }}
}}
"""


def _answers(service: Service) -> list[str]:
    port = service.listen[1]
    return [f"{to} tcp sport {port} ct direction reply accept" for to in _to(service.clients)]


def _calls(service: Service) -> list[str]:
    found = [f"{to} meta l4proto {{ tcp, udp }} th dport 53 accept" for to in _to(service.nameservers)]
    for peer in service.peers:
        to = _to(peer.addresses) if peer.addresses else ["meta nfproto { ipv4, ipv6 }"]
        found += [f"{each} tcp dport {peer.port} accept" for each in to]
    return found


def _to(networks: Sequence[str]) -> list[str]:
    """One match for each family there is."""
    parsed = [ip_network(each) for each in networks]
    families = {name: [str(each) for each in parsed if each.version == version] for name, version in _FAMILIES}
    return [f"{name} daddr {{ {', '.join(them)} }}" for name, them in families.items() if them]


_FAMILIES = (("ip", 4), ("ip6", 6))
