"""A systemd unit for a host without bubblewrap: the daemon and its engines in one cage, made of what the host has.

Options as in systemd.exec(5), systemd.resource-control(5) and systemd.kill(5) of systemd 252, Debian 12's.
"""

from __future__ import annotations

import re

from msgspec import Struct

from freehold.errors import BadConfig

GENERATED = "# generated, not run here"
_HOMES = ("/home", "/root", "/run/user")
_TEMPORARY = ("/tmp/", "/var/tmp/")  # noqa: S108  a unit with a /tmp of its own would not see what lies there
_PLAIN = re.compile(r"[^\x00-\x1f\x7f\"'\\:]+")


class Peer(Struct, frozen=True, kw_only=True):
    """A server that the daemon may call."""

    name: str
    port: int
    addresses: tuple[str, ...] = ()  # none: wherever it is


class Service(Struct, frozen=True, kw_only=True):
    """The daemon, as its host sees it. Paths are absolute."""

    user: str
    command: tuple[str, ...]
    listen: tuple[str, int]
    writable: tuple[str, ...]
    readable: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()  # networks beyond loopback, as ADDRESS/BITS
    peers: tuple[Peer, ...] = ()
    nameservers: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()  # of cards
    sandboxes: bool = False  # bubblewrap must work inside
    drain_s: float = 10.0
    also: tuple[str, ...] = ()  # a program it runs, whose needs are not known


def unit(service: Service) -> str:
    """The text of freehold.service. Raises BadConfig for a path that no unit can name."""
    sections = (_process(service), _files(service), _devices(service), _network(service), _rights(service))
    body = "\n".join(line for section in sections for line in (*section, ""))
    return f"""{GENERATED}
# Read it, keep it as /etc/systemd/system/freehold.service, then:
#   useradd --system --shell /usr/sbin/nologin {service.user}    (once; the state folder must be its own)
#   systemctl daemon-reload && systemctl enable --now freehold
# Commands reach the daemon as its own user: runuser -u {service.user} -- freehold ps

[Unit]
Description=Freehold: this team's language models
After=network.target

[Service]
{body}
[Install]
WantedBy=multi-user.target
"""


def _process(service: Service) -> list[str]:
    also = [f"# It runs {_comment(service.also)}: what that needs must be added by hand."] if service.also else []
    return [
        "Type=exec",
        f"User={service.user}",
        f"ExecStart={' '.join(quoted(word).replace('$', '$$') for word in service.command)}",
        *also,
        "Restart=on-failure",
        "# Whatever an engine started dies with the daemon.",
        "KillMode=control-group",
        f"TimeoutStopSec={round(service.drain_s) + 15}",
        "UMask=0077",
        "LimitCORE=0",
        "KeyringMode=private",
    ]


def _files(service: Service) -> list[str]:
    everything = (*service.readable, *service.writable)
    at_home = [path for path in everything if path.startswith(_HOMES)]
    readable, writable = ([path for path in paths if path in at_home] for paths in (service.readable, service.writable))
    temporary = any(path.startswith(_TEMPORARY) for path in everything)
    return [
        "# Nothing can be written but its state; what is at home and is not named does not exist.",
        "ProtectSystem=strict",
        f"ReadWritePaths={_listed(service.writable)}",
        *([f"ReadOnlyPaths={_listed(service.readable, '-')}"] if service.readable else []),
        f"ProtectHome={'tmpfs' if at_home else 'yes'}",
        *([f"BindReadOnlyPaths={_listed(readable, '-')}"] if readable else []),
        *([f"BindPaths={_listed(writable)}"] if writable else []),
        f"PrivateTmp={'no' if temporary else 'yes'}",
    ]


def _devices(service: Service) -> list[str]:
    if not service.devices:
        return ["PrivateDevices=yes"]
    return ["DevicePolicy=closed", *(f"DeviceAllow={quoted(path)} rw" for path in service.devices)]


def _network(service: Service) -> list[str]:
    peers = [address for peer in service.peers for address in peer.addresses]
    allowed = dict.fromkeys(("localhost", *service.clients, *peers, *service.nameservers))
    netlink = " AF_NETLINK" if service.sandboxes else ""
    binding = ["SocketBindDeny=any", f"SocketBindAllow=tcp:{service.listen[1]}"] if service.listen[1] else []
    return [
        "# Filters by address alone, both ways: the rules of `freehold harden nftables` know direction and port too.",
        *(
            f"# {_comment([peer.name])} is {', '.join(peer.addresses)}"
            for peer in service.peers
            if peer.name not in peer.addresses
        ),
        f"RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6{netlink}",
        "IPAddressDeny=any",
        f"IPAddressAllow={' '.join(allowed)}",
        *binding,
    ]


def _rights(service: Service) -> list[str]:
    low = "CAP_NET_BIND_SERVICE" if 0 < service.listen[1] < 1024 else ""
    common = [
        "NoNewPrivileges=yes",
        f"CapabilityBoundingSet={low}",
        f"AmbientCapabilities={low}",
        *("LockPersonality=yes", "PrivateIPC=yes", "ProtectClock=yes", "ProtectControlGroups=yes"),
        *("ProtectKernelModules=yes", "RemoveIPC=yes", "RestrictRealtime=yes", "RestrictSUIDSGID=yes"),
        *("SystemCallArchitectures=native", "SystemCallErrorNumber=EPERM"),
    ]
    if service.sandboxes:
        return [
            *common,
            "# bubblewrap makes namespaces, mounts a /proc of its own and names its host: that stays open.",
            "RestrictNamespaces=cgroup ipc mnt net pid user uts",
            "SystemCallFilter=@system-service @mount capset sethostname",
        ]
    jit = [] if service.devices else ["# A card's driver compiles at run time; without a card nobody does.",
                                      "MemoryDenyWriteExecute=yes"]  # fmt: skip
    return [
        *common,
        *("ProtectHostname=yes", "ProtectKernelLogs=yes", "ProtectKernelTunables=yes", "ProtectProc=invisible"),
        "RestrictNamespaces=yes",
        "SystemCallFilter=@system-service",
        "SystemCallFilter=~@privileged",
        *jit,
    ]


def quoted(word: str) -> str:
    """One word of a unit's value: percent signs are specifiers and spaces separate."""
    if not _PLAIN.fullmatch(word):
        raise BadConfig(
            f"{word!r} cannot be written into a unit", hint="no quotes, backslashes, colons or control characters"
        )
    return f'"{word}"'.replace("%", "%%") if re.search(r"[\s;#]", word) else word.replace("%", "%%")


def _listed(paths: tuple[str, ...] | list[str], mark: str = "") -> str:
    """`mark`: - for what need not be there."""
    return " ".join(quoted(mark + path) for path in dict.fromkeys(paths))


def _comment(words: tuple[str, ...] | list[str]) -> str:
    return "".join(each if each.isprintable() else "?" for each in " ".join(words))
