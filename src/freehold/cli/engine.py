"""`freehold engine`: environments for engines that cannot live in ours."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from freehold.executors.environment import Environment
    from freehold.fleet.config import Config


@click.group
def command() -> None:
    """Install, list, lock and remove the engines that need an environment of their own."""


@command.command
@click.argument("name")
@click.option("--version", metavar="VERSION", help="Instead of the one that Freehold was tried with.")
@click.option("--locked", type=click.Path(path_type=Path, exists=True), help="Only these archives: of engine lock.")
@click.option("--python", metavar="PATH", default=sys.executable, help="The Python to make it from; default: this one.")
@click.pass_obj
def install(config_path: Path, name: str, version: str | None, locked: Path | None, python: str) -> None:
    """Install the engine NAME into a virtual environment in the state folder, by pip.

    For the cards of this machine if it has some. pip goes by its own configuration: PIP_INDEX_URL is a mirror of yours.
    Exit status 2: no such version, 3: not the locked archives, 4: the disk is full, 5: no network.
    """
    from freehold.cli.daemon import project, report
    from freehold.engines.recipe import recipe
    from freehold.executors import environment
    from freehold.fleet.host import gpus

    config, _ = project(config_path)
    wanted = recipe(name, version, gpu=bool(gpus()))
    folder = _folder(config)
    if there := environment.find(folder, name, wanted.version):
        if locked:
            environment.check_lock(there, locked)
        click.echo(f"{_summary(there)}: there already")
        return
    made = environment.install(wanted, folder, python, locked=locked and locked.resolve(), say=_say)
    detail = {"version": made.version, "packages": len(made.packages), "digest": made.digest, "locked": bool(locked)}
    report(config, "engine.installed", name, detail)
    _say("")
    click.echo(f"{_summary(made)}, {environment.size_bytes(made) / 1e9:.2f} GB, in {made.folder}")
    click.echo(f"tried: {wanted.run}")


@command.command("list")
@click.pass_obj
def list_(config_path: Path) -> None:
    """Show which engines there are, ours and those of other packages, and what is installed of them."""
    from freehold.cli.daemon import project
    from freehold.cli.tables import moment, table
    from freehold.engines import names
    from freehold.engines.recipe import known
    from freehold.executors import environment

    config, _ = project(config_path)
    rows, there = [], environment.listing(_folder(config))
    for name in sorted({*names(), *known(), *(each.engine for each in there)}):
        installed = [each for each in there if each.engine == name]
        for each in installed:
            size = f"{environment.size_bytes(each) / 1e9:.2f} GB"
            unread = ", options not read" if each.unread else ""
            rows.append((name, each.version, size, str(len(each.packages)), moment(each.made_ns) + unread))
        if not installed:
            rows.append((name, "-", "-", "-", "not installed" if name in known() else "needs no installation"))
    click.echo(table(("ENGINE", "VERSION", "ON DISK", "PACKAGES", "INSTALLED"), rows))


@command.command
@click.argument("name")
@click.option("--version", metavar="VERSION", default="", help="Default: the newest that is installed.")
@click.pass_obj
def lock(config_path: Path, name: str, version: str) -> None:
    """Print what NAME's environment consists of, with digests, for `engine install --locked` elsewhere."""
    from freehold.cli.daemon import project
    from freehold.errors import Unknown
    from freehold.executors import environment

    config, _ = project(config_path)
    found = environment.find(_folder(config), name, version)
    if found is None:
        raise Unknown(f"{name} {version} is not installed", hint="freehold engine list shows what is")
    click.echo(environment.lock(found))


@command.command
@click.argument("name")
@click.option("--version", metavar="VERSION", required=True, help="Which one.")
@click.pass_obj
def remove(config_path: Path, name: str, version: str) -> None:
    """Delete an environment from which nothing runs."""
    from freehold.cli.daemon import project, report
    from freehold.executors import environment

    config, _ = project(config_path)
    gone = environment.remove(_folder(config), name, version, _say)
    report(config, "engine.removed", name, {"version": gone.version, "digest": gone.digest})
    click.echo(f"removed {_summary(gone)}")


def _folder(config: Config) -> Path:
    from freehold.gateway.rundir import own_folder

    return own_folder(own_folder(Path(config.state_dir)) / "engines")


def _summary(environment: Environment) -> str:
    return f"{environment.engine} {environment.version}, {len(environment.packages)} packages"


def _say(line: str) -> None:
    """On a terminal one line that changes; elsewhere all of them."""
    from freehold.cli.tables import printable

    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{printable(line)[: shutil.get_terminal_size().columns - 1]}", err=True, nl=False)
    else:
        click.echo(printable(line), err=True)
