"""Firewall rules for the daemon's user: it answers its callers, reaches loopback and its peers, and nothing else."""

from __future__ import annotations

from freehold.executors.systemd import GENERATED, Service


def rules(service: Service) -> str:
    """The text for `nft -f`; loading it again replaces it.

    A rule that asks for the user does not match a packet that has none, so only the daemon's own go to its chain.
    """
    lines = (
        'oifname "lo" accept',
        *(f"{_to(each)} tcp sport {service.port} ct direction reply accept" for each in service.clients),
        *(f"{_to(each)} meta l4proto {{ tcp, udp }} th dport 53 accept" for each in service.nameservers),
        *(f"{_to(address)} tcp dport {port} accept" for address, port in service.peers),
        "counter name dropped drop",
    )
    body = "\n    ".join(lines)
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
    {body}
  }}
}}
"""


def _to(network: str) -> str:
    return f"{'ip6' if ':' in network else 'ip'} daddr {network}" if network else "meta nfproto { ipv4, ipv6 }"
