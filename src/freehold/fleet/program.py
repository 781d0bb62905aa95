"""What runs an endpoint's engine: an environment that was installed for it, one of the team's own, or what we bring."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from freehold.engines import Launchable
from freehold.engines.flags import of_command
from freehold.engines.recipe import recipe
from freehold.errors import BadConfig, Unknown
from freehold.executors import environment
from freehold.fleet.config import Endpoint
from freehold.fleet.ground import Ground
from freehold.types import Launch


class Program(NamedTuple):
    path: str = ""  # the engine's own binary, or the Python of its environment; "": what Freehold brings
    version: tuple[int, ...] = ()
    about: str = ""  # what it is, to tell it from others
    flags: Mapping[str, bytes] = {}  # that each of its programs takes; of none: nobody knows


async def find_program(name: str, endpoint: Endpoint, engine: Launchable, ground: Ground) -> Program:
    """Raises Unknown when it is not installed. `name`: of the endpoint."""
    if not engine.environment:
        return Program(path=endpoint.binary or "", about=endpoint.binary or endpoint.engine)
    if endpoint.binary:
        wanted = recipe(endpoint.engine, gpu=False)
        found = await asyncio.to_thread(environment.adopt, endpoint.binary, wanted, ground.engines_dir, _silent)
    else:
        found = environment.find(ground.engines_dir, endpoint.engine, endpoint.version)
    if found is None:
        version = f" --version {endpoint.version}" if endpoint.version else ""
        raise Unknown(
            f"`{name}` needs the engine {endpoint.engine}, which is not installed",
            hint=f"freehold engine install {endpoint.engine}{version}",
        )
    numbers = tuple(int(part) for part in found.version.split("+")[0].split(".") if part.isdigit())
    return Program(found.python, numbers, f"{found.engine} {found.version}", found.flags)


def check_flags(name: str, launch: Launch, program: Program) -> None:
    """Hold them against the parsers of what is launched: vLLM would take 20 to 45 s to find out. Raises BadConfig."""
    if wrong := of_command(launch.argv, program.flags):
        raise BadConfig(
            f"`{name}`: {program.about} does not take these flags: {'; '.join(wrong)}",
            hint="look at arguments in freehold.toml; freehold engine list shows the versions there are",
        )


def _silent(_: str) -> None:
    """Nobody watches a daemon install."""
