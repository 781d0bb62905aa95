"""freehold harden: what the host itself can do to confine the daemon, where there is no bubblewrap."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

if TYPE_CHECKING:
    from freehold.executors.systemd import Service
    from freehold.fleet.config import Config


@click.command("harden")
@click.argument("what", metavar="WHAT", type=click.Choice(["systemd", "nftables"]))
@click.option("--user", default="freehold", show_default=True, help="Whom the daemon runs as.")
@click.option("--clients", multiple=True, metavar="NETWORK", help="Who may call it, such as 10.0.0.0/8.")
@click.option("--allow-hub", is_flag=True, help="nftables: let this user pull weights from the hub.")
@click.pass_obj
def command(config_path: Path, what: str, user: str, clients: tuple[str, ...], allow_hub: bool) -> None:
    """Print rules for hosts without bubblewrap, from freehold.toml.

    WHAT is systemd, for a unit that confines the daemon and its engines, or nftables, for rules by which the daemon
    answers its callers, reaches loopback and its peers, and nothing else. They are generated and not run here: read
    them first.
    """
    from freehold.executors.nftables import rules
    from freehold.executors.systemd import unit

    service = _service(config_path, user, clients, allow_hub=allow_hub)
    click.echo(unit(service) if what == "systemd" else rules(service), nl=False)


def _service(path: Path, user: str, clients: tuple[str, ...], *, allow_hub: bool) -> Service:
    from freehold.errors import BadConfig
    from freehold.executors.systemd import Service
    from freehold.fleet.checks import LOOPBACK
    from freehold.fleet.config import load

    config = load(path)
    host, port = config.server.address
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", user):
        raise BadConfig(f"{user!r} is no user's name")
    if host not in LOOPBACK and not clients:
        raise BadConfig(f"{config.server.listen} is open to the network", hint="who may call it? --clients 10.0.0.0/8")
    if config.policy.isolation == "required":
        hint = 'with policy.isolation = "preferred" it runs without'
        raise BadConfig("these are for hosts without bubblewrap, and policy.isolation requires it", hint=hint)
    urls = {each.url for each in config.endpoints.values() if each.url and urlsplit(each.url).hostname}
    peers = {url: _addresses(url) for url in sorted(urls)}
    named = allow_hub or any(found and urlsplit(url).hostname not in found for url, found in peers.items())
    hub = [("", _port(config.hub.proxy or config.hub.url))] if allow_hub else []
    checkpoints = config.trail.checkpoint_file
    return Service(
        user=user,
        command=(sys.executable, "-m", "freehold", "-c", str(path.resolve()), "serve"),
        port=port,
        writable=(config.state_dir, *([str(Path(checkpoints).parent)] if checkpoints else [])),
        readable=_readable(config, path.resolve()),
        clients=tuple(_network(each) for each in clients),
        peers=(*(each for found in peers.values() for each in found.items()), *hub),
        nameservers=_nameservers() if named else (),
        devices=tuple(sorted(str(node) for node in Path("/dev").glob("nvidia*") if node.is_char_device())),
        drain_s=config.server.drain_seconds,
    )


def _readable(config: Config, path: Path) -> tuple[str, ...]:
    """The weights, and what the daemon itself is made of."""
    import freehold

    found = [config.weights.folder, str(path), sys.prefix, sys.base_prefix, *freehold.__path__]
    for endpoint in config.endpoints.values():
        found += [endpoint.weights, endpoint.binary and str(Path(endpoint.binary).parent), endpoint.api_key_file]
    return tuple(dict.fromkeys(each for each in found if each))


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _addresses(url: str) -> dict[str, int]:
    """Where the server of an external endpoint is today, with its port; nothing when it is on this machine."""
    import ipaddress
    import socket

    from freehold.errors import BadConfig

    name, port = urlsplit(url).hostname, _port(url)
    try:
        found = {str(address[0]).partition("%")[0]: port for *_, address in socket.getaddrinfo(name, port)}
    except OSError as error:
        hint = "write its address in freehold.toml, or run this where its name is known"
        raise BadConfig(f"{name} has no address here: {error}", hint=hint) from None
    return {address: port for address in found if not ipaddress.ip_address(address).is_loopback}


def _network(text: str) -> str:
    import ipaddress

    from freehold.errors import BadConfig

    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise BadConfig(f"--clients {text}: {error}", hint="write 10.0.0.0/8, or one address") from None


def _nameservers() -> tuple[str, ...]:
    """Those of this machine, where it says which they are."""
    known = Path("/etc/resolv.conf")
    text = known.read_text(errors="replace") if known.exists() else ""
    return tuple(re.findall(r"^nameserver\s+([0-9a-fA-F.:]+)", text, re.MULTILINE))
