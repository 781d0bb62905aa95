"""A systemd unit for a host without bubblewrap: the daemon and its engines in one cage, made of what the host has.

Options as in systemd.exec(5), systemd.resource-control(5) and systemd.kill(5) of systemd 252, Debian 12's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import Struct

from freehold.errors import BadConfig

GENERATED = "# generated, not run here"
_PLAIN = re.compile(r"[\w./@+=,~-]+")


class Service(Struct, frozen=True, kw_only=True):
    """The daemon, as its host sees it. Paths are absolute."""

    user: str
    command: tuple[str, ...]
    port: int  # of its gateway
    writable: tuple[str, ...]
    readable: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()  # networks beyond loopback, as ADDRESS/BITS
    peers: tuple[tuple[str, int], ...] = ()  # servers that it may call: address and port; no address: wherever it is
    nameservers: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()  # of cards
    drain_s: float = 10.0


def unit(service: Service) -> str:
    """The text of freehold.service. Raises BadConfig for a path that it cannot name."""
    addresses = (*service.clients, *(address for address, _ in service.peers if address), *service.nameservers)
    return f"""{GENERATED}
# It forbids what bubblewrap needs: for a host that has none.
# Read it, keep it as /etc/systemd/system/freehold.service, then:
#   useradd --system --shell /usr/sbin/nologin {service.user}    (once; the state folder must be its own)
#   systemctl daemon-reload && systemctl enable --now freehold
# Commands reach the daemon as its own user: runuser -u {service.user} -- freehold ps

[Unit]
Description=Freehold: this team's language models
After=network.target

[Service]
Type=exec
User={service.user}
ExecStart={_listed(service.command)}
Restart=on-failure
# Whatever an engine started dies with the daemon.
KillMode=control-group
TimeoutStopSec={round(service.drain_s) + 15}
UMask=0077
LimitCORE=0
KeyringMode=private

# Nothing can be written but its state; what is at home and is not named does not exist.
ProtectSystem=strict
ProtectHome=tmpfs
PrivateTmp=yes
ReadWritePaths={_listed(service.writable)}
BindPaths={_listed(service.writable)}
BindReadOnlyPaths={_listed(f"-{path}" for path in service.readable)}

{_devices(service.devices)}

# Filters by address alone, both ways: the rules of `freehold harden nftables` know direction and port too.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
IPAddressDeny=any
IPAddressAllow={" ".join(dict.fromkeys(("localhost", *addresses)))}
SocketBindDeny=any
SocketBindAllow=tcp:{service.port}

NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
LockPersonality=yes
PrivateIPC=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RemoveIPC=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged

[Install]
WantedBy=multi-user.target
"""


def _devices(nodes: tuple[str, ...]) -> str:
    if nodes:
        return "\n".join(["DevicePolicy=closed", *(f"DeviceAllow={plain(path)} rw" for path in nodes)])
    return "# Only a card's driver compiles at run time.\nPrivateDevices=yes\nMemoryDenyWriteExecute=yes"


def _listed(words: Iterable[str]) -> str:
    return " ".join(plain(word) for word in dict.fromkeys(words))


def plain(word: str) -> str:
    """A word that means itself in a unit: nothing that separates, quotes, expands or comments."""
    if not _PLAIN.fullmatch(word):
        raise BadConfig(
            f"{word!r} cannot be written into a unit", hint="use a path of letters, digits and ./@+=,~_- alone"
        )
    return word
