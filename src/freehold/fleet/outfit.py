"""How a replica is set up: the program that runs its engine, its plan, and all that its engine is launched from."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from freehold import catalogue
from freehold.catalogue.places import card_of
from freehold.engines import Launchable, Wanted
from freehold.engines.flags import of_command
from freehold.engines.recipe import recipe
from freehold.errors import BadConfig, DoesNotFit, Unknown
from freehold.executors import environment
from freehold.executors.kept import keep
from freehold.fleet.config import ADAPTERS_AT_LAUNCH, DEFAULT_CONTEXT
from freehold.fleet.ground import Ground
from freehold.fleet.host import probe
from freehold.fleet.route import Route
from freehold.fleet.trust import Trust
from freehold.types import Adapter, Launch, Options, Plan, Refusal, Service
from freehold.weights import Checkpoint
from freehold.weights.tokens import marks


class Program(NamedTuple):
    """What runs an engine: an environment that was installed for it, one of the team's own, or what we bring."""

    path: str = ""  # the engine's own binary, or the Python of its environment; "": what Freehold brings
    version: tuple[int, ...] = ()
    about: str = ""  # what it is, to tell it from others
    flags: Mapping[str, bytes] = {}  # that each of its programs takes; of none: nobody knows


class Outfit:
    """Of one replica."""

    build: Checkpoint  # as of the last `prepare`, like the next two
    _program: Program
    _draft: Checkpoint | None

    def __init__(
        self, replica: str, engine: Launchable, route: Route, trusts: tuple[Trust, Trust | None], ground: Ground
    ) -> None:
        """`trusts`: in the weights, and in those of a draft model."""
        self._name, self._replica, self._engine, self._ground = route.name, replica, engine, ground
        self._endpoint, (self._trust, self._draft_trust) = route.endpoint, trusts
        self._cards: list[str] = []

    async def prepare(self) -> None:
        """Its weights are verified, and its engine is there. Raises Refused, Unknown."""
        self.build = await self._trust.ensure()
        self._draft = await self._draft_trust.ensure() if self._draft_trust else None
        self._program = await self._find_program()

    async def _find_program(self) -> Program:
        endpoint, folder = self._endpoint, self._ground.engines_dir
        if endpoint.binary and not Path(endpoint.binary).exists():  # noqa: ASYNC240  a stat is no waiting
            raise BadConfig(f"[endpoints.{self._name}] binary: there is no {endpoint.binary}", hint="name another")
        if not self._engine.environment:
            return Program(path=endpoint.binary or "", about=endpoint.binary or endpoint.engine)
        if endpoint.binary:
            wanted = recipe(endpoint.engine, gpu=False)
            found = await asyncio.to_thread(environment.adopt, endpoint.binary, wanted, folder, _silent)
        else:
            found = environment.find(folder, endpoint.engine, endpoint.version)
        if found is None:
            version = f" --version {endpoint.version}" if endpoint.version else ""
            raise Unknown(
                f"`{self._name}` needs the engine {endpoint.engine}, which is not installed",
                hint=f"freehold engine install {endpoint.engine}{version}",
            )
        numbers = tuple(int(part) for part in found.version.split("+")[0].split(".") if part.isdigit())
        return Program(found.python, numbers, f"{found.engine} {found.version}", found.flags)

    async def plan(self, limit: int | None = None) -> Plan:
        """Its memory and its cards are promised to it: a start that begins meanwhile does not count on them.

        `limit`: of its context, where the engine has said what fits. Raises DoesNotFit.
        """
        ground, endpoint, build, draft = self._ground, self._endpoint, self.build, self._draft
        host = await asyncio.to_thread(probe)
        promised = sum(ground.promised_bytes.values())
        host = msgspec.structs.replace(host, available_bytes=max(0, host.available_bytes - promised))
        gpus = []
        if host.gpus and self._engine.uses_cards:
            gpus = ground.cards.take(self._replica, endpoint.tensor_parallel * endpoint.pipeline_parallel, host.gpus)
        self._cards = [gpu.node for gpu in gpus]
        auto = endpoint.context == "auto"
        context = build.context if auto else endpoint.context or min(build.context, DEFAULT_CONTEXT)
        wanted = Wanted(
            context=limit or context,  # pyright: ignore[reportArgumentType]  auto is no number, and was taken out
            longest=auto,
            parallel=endpoint.slots or 1,
            threads=endpoint.threads or max(1, host.cores - 1),
            card=card_of(catalogue.load(), gpus) if gpus else None,
            free_bytes=min((gpu.free_bytes for gpu in gpus), default=0),
            tp=endpoint.tensor_parallel,
            pp=endpoint.pipeline_parallel,
            ep=endpoint.tensor_parallel if endpoint.expert_parallel else 1,
            card_share=endpoint.card_share or None,
            batched_tokens=endpoint.batched_tokens or None,
            kv_dtype=endpoint.kv_dtype,
            draft=draft,
            draft_model=draft.model if draft else None,
            draft_tokens=endpoint.draft_tokens if endpoint.speculative else 0,
            mtp=endpoint.speculative == "mtp",
            version=self._program.version,
        )
        answer = self._engine.fit(build, build.model, host, wanted)
        if isinstance(answer, Refusal):
            raise DoesNotFit(f"`{self._replica}` does not fit: {answer.reason}", hint=answer.hint)
        if not answer.card:
            ground.promised_bytes[self._replica] = answer.total_bytes
        return answer

    def launch(self, plan: Plan, socket: str, adapters: tuple[Adapter, ...]) -> tuple[Service, Launch]:
        """What is to be served, and the process for it. Reads the tokenizer's file: call it in a thread.

        `adapters`: that it must have. Its flags are held against the parsers of what is launched: vLLM would take 20 to
        45 s to find out. Raises BadConfig.
        """
        service = self._service(plan, socket, adapters)
        launch = self._engine.launch(service)
        if wrong := of_command(launch.argv, self._program.flags):
            raise BadConfig(
                f"`{self._name}`: {self._program.about} does not take these flags: {'; '.join(wrong)}",
                hint="look at arguments in freehold.toml; freehold engine list shows the versions there are",
            )
        return service, launch

    def _service(self, plan: Plan, socket: str, adapters: tuple[Adapter, ...]) -> Service:
        endpoint, build, draft = self._endpoint, self.build, self._draft
        hot, options = self._engine.adapters == "hot", endpoint.options
        most = endpoint.max_loras if isinstance(endpoint.max_loras, int) else 0 if hot else ADAPTERS_AT_LAUNCH
        folder = build.format == "safetensors"
        return Service(
            name=self._name,
            weights=str(self._trust.path) if folder else build.entry,
            files=self._trust.files if folder else (),
            socket=socket,
            plan=plan,
            family=build.architecture,
            marks=marks(self._trust.path) if self._engine.environment else frozenset(),
            draft=(endpoint.draft if folder else draft.entry) or "" if draft else "",
            draft_files=self._draft_trust.files if self._draft_trust else (),
            program=self._program.path,
            version=self._program.version,
            options=msgspec.structs.replace(options, max_loras=most),
            pools=build.pools,
            adapters=adapters if self._engine.adapters == "launch" else (),
            adapter_folder=str(adapter_folder(self._ground, self._name)) if hot and most else "",
            cache_folder=self._cache_folder(plan, options) if self._engine.environment else "",
            devices=_nodes(self._cards),
            drain_s=30,
        )

    def _cache_folder(self, plan: Plan, options: Options) -> str:
        """What it compiled for the same engine, weights, card and settings: of nobody else, as it will run it again."""
        program = (self._program.path, self._program.about)
        about = [self._name, program, self._trust.digest, plan.card, plan.cards, msgspec.json.encode(options).decode()]
        key = hashlib.sha256(msgspec.json.encode(about)).hexdigest()[:16]
        return str(keep(self._ground.state / "compiled", f"{self._name[:32]}-{key}"))


def adapter_folder(ground: Ground, endpoint: str) -> Path:
    """Where adapters lie that were accepted: engines of this endpoint may read it."""
    return _own(ground.state / "adapters", endpoint)


def _own(parent: Path, name: str) -> Path:
    """A folder that nobody else can look into, nor into the one above."""
    for folder in (parent, parent / name):
        folder.mkdir(mode=0o700, exist_ok=True)
    return parent / name


def _nodes(cards: list[str]) -> tuple[str, ...]:
    """Of NVIDIA's cards: their own, and those that all of them share."""
    shared = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
    return (*cards, *(node for node in shared if cards and Path(node).exists()))


def _silent(_: str) -> None:
    """Nobody watches a daemon install."""
