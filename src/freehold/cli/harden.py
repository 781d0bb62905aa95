"""freehold harden: what the host itself can do to confine the daemon, where there is no bubblewrap."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

if TYPE_CHECKING:
    from freehold.executors.systemd import Peer, Service
    from freehold.fleet.config import Config

_user = click.option("--user", default="freehold", show_default=True, help="Whom the daemon runs as.")
_clients = click.option("--clients", multiple=True, metavar="NETWORK", help="Who may call it, such as 10.0.0.0/8.")


@click.group("harden")
def command() -> None:
    """Print rules for hosts without bubblewrap, from freehold.toml.

    They are generated and not run here: read them first.
    """


@command.command()
@_user
@_clients
@click.pass_obj
def systemd(config_path: Path, user: str, clients: tuple[str, ...]) -> None:
    """A unit that runs the daemon and its engines, confined."""
    from freehold.executors.systemd import unit

    click.echo(unit(_service(config_path, user, clients)), nl=False)


@command.command()
@_user
@_clients
@click.option("--allow-hub", is_flag=True, help="Let this user pull weights from the hub.")
@click.pass_obj
def nftables(config_path: Path, user: str, clients: tuple[str, ...], allow_hub: bool) -> None:
    """Rules by which it answers its callers, reaches loopback and its peers, and nothing else."""
    from freehold.executors.nftables import rules

    click.echo(rules(_service(config_path, user, clients, allow_hub=allow_hub)), nl=False)


def _service(path: Path, user: str, clients: tuple[str, ...], *, allow_hub: bool = False) -> Service:
    from freehold.errors import BadConfig
    from freehold.executors.systemd import Peer, Service
    from freehold.fleet.config import LOOPBACK, load

    config = load(path)
    host, port = config.server.address
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", user):
        raise BadConfig(f"{user!r} is no user's name")
    if host not in LOOPBACK and not clients:
        raise BadConfig(f"{config.server.listen} is open to the network", hint="who may call it? --clients 10.0.0.0/8")
    urls = [each.url for each in config.endpoints.values() if each.url]
    peers = [peer for url in dict.fromkeys(urls) if (peer := _peer(url))]
    if allow_hub:
        hub = urlsplit(config.hub.proxy or config.hub.url)
        peers.append(Peer(name=hub.hostname or "", port=hub.port or (443 if hub.scheme == "https" else 80)))
    named = any(not peer.addresses or peer.name not in peer.addresses for peer in peers)
    return Service(
        user=user,
        command=(sys.executable, "-m", "freehold", "-c", str(path.resolve()), "serve"),
        listen=(host, port),
        writable=_writable(config),
        readable=_readable(config, path.resolve()),
        clients=tuple(_network(each) for each in clients),
        peers=tuple(peers),
        nameservers=_nameservers() if named else (),
        devices=tuple(sorted(str(node) for node in Path("/dev").glob("nvidia*") if node.is_char_device())),
        sandboxes=config.policy.isolation == "required",
        drain_s=config.server.drain_seconds,
        also=config.trail.checkpoint_command,
    )


def _writable(config: Config) -> tuple[str, ...]:
    """Raises BadConfig for a state folder whose sockets would lie in /tmp, where the unit has one of its own."""
    import os

    from freehold.errors import BadConfig
    from freehold.gateway.rundir import LONGEST_RUN_DIR_BYTES

    if len(os.fsencode(Path(config.state_dir) / "run")) > LONGEST_RUN_DIR_BYTES:
        raise BadConfig(f"{config.state_dir} is too long a path for its sockets", hint="choose a shorter state_dir")
    kept = config.trail.checkpoint_file
    return (config.state_dir, *([str(Path(kept).parent)] if kept else []))


def _readable(config: Config, path: Path) -> tuple[str, ...]:
    """The weights, and what the daemon itself is made of."""
    import freehold

    own = {sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent.parent), *freehold.__path__}
    of_endpoints = (
        each
        for endpoint in config.endpoints.values()
        for each in (endpoint.weights, endpoint.binary and str(Path(endpoint.binary).parent), endpoint.api_key_file)
    )
    found = [config.weights.folder, *of_endpoints, str(path), *sorted(own)]
    return tuple(dict.fromkeys(each for each in found if each and not each.startswith("/usr")))


def _peer(url: str) -> Peer | None:
    """The server of an external endpoint, by its addresses of today; None when it is on this machine."""
    import ipaddress
    import socket

    from freehold.errors import BadConfig
    from freehold.executors.systemd import Peer

    parts = urlsplit(url)
    name, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    if not name:
        return None
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except OSError as error:
        hint = "write its address in freehold.toml, or run this where its name is known"
        raise BadConfig(f"{name} has no address here: {error}", hint=hint) from None
    addresses = tuple(dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in found))
    return (
        None
        if all(ipaddress.ip_address(each).is_loopback for each in addresses)
        else Peer(name=name, port=port, addresses=addresses)
    )


def _network(text: str) -> str:
    import ipaddress

    from freehold.errors import BadConfig

    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise BadConfig(f"--clients {text}: {error}", hint="write 10.0.0.0/8, or one address") from None


def _nameservers() -> tuple[str, ...]:
    """Those of this machine: /etc/resolv.conf."""
    try:
        lines = Path("/etc/resolv.conf").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return ()
    return tuple(re.findall(r"^nameserver\s+([0-9a-fA-F.:]+)", "\n".join(lines), re.MULTILINE))
