"""How a replica is set up: what it is planned with, and all that its engine is launched from."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import NamedTuple

import msgspec

from freehold import catalogue
from freehold.catalogue.places import card_of
from freehold.engines import Launchable, Wanted
from freehold.errors import DoesNotFit
from freehold.fleet.config import ADAPTERS_AT_LAUNCH, DEFAULT_CONTEXT
from freehold.fleet.ground import Ground
from freehold.fleet.host import probe
from freehold.fleet.program import Program
from freehold.fleet.route import Route
from freehold.fleet.trust import Trust
from freehold.types import Options, Plan, Refusal, Service
from freehold.weights import Checkpoint
from freehold.weights.tokens import marks


class Names(NamedTuple):
    """Of a replica, and of the endpoint it belongs to; `log` is shared by a replica and its successors."""

    endpoint: str
    replica: str
    log: str


class Outfit:
    """Of one replica."""

    def __init__(
        self, names: Names, engine: Launchable, route: Route, trusts: tuple[Trust, Trust | None], ground: Ground
    ) -> None:
        """`trusts`: in the weights, and in those of a draft model."""
        self._names, self._engine, self._ground = names, engine, ground
        self._endpoint, self._roster = route.endpoint, route.roster
        self._trust, self._draft_trust = trusts
        self._cards: list[str] = []

    async def plan(
        self, build: Checkpoint, draft: Checkpoint | None, program: Program, limit: int | None = None
    ) -> Plan:
        """Its memory and its cards are promised to it: a start that begins meanwhile does not count on them.

        `limit`: of its context, where the engine has said what fits. Raises DoesNotFit.
        """
        ground, endpoint = self._ground, self._endpoint
        host = await asyncio.to_thread(probe)
        promised = sum(ground.promised_bytes.values())
        host = msgspec.structs.replace(host, available_bytes=max(0, host.available_bytes - promised))
        gpus = []
        if host.gpus and self._engine.uses_cards:
            gpus = ground.cards.take(
                self._names.replica, endpoint.tensor_parallel * endpoint.pipeline_parallel, host.gpus
            )
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
            version=program.version,
        )
        answer = self._engine.fit(build, build.model, host, wanted)
        if isinstance(answer, Refusal):
            raise DoesNotFit(f"`{self._names.replica}` does not fit: {answer.reason}", hint=answer.hint)
        if not answer.card:
            ground.promised_bytes[self._names.replica] = answer.total_bytes
        return answer

    def service(
        self, plan: Plan, build: Checkpoint, draft: Checkpoint | None, program: Program, socket: str
    ) -> Service:
        """All that the engine is launched from. Reads the tokenizer's file: call it in a thread."""
        ground, endpoint = self._ground, self._endpoint
        hot, options = self._engine.adapters == "hot", endpoint.options
        most = endpoint.max_loras if isinstance(endpoint.max_loras, int) else 0 if hot else ADAPTERS_AT_LAUNCH
        folder = build.format == "safetensors"
        return Service(
            name=self._names.endpoint,
            weights=str(self._trust.path) if folder else build.entry,
            files=self._trust.files if folder else (),
            socket=socket,
            plan=plan,
            family=build.architecture,
            marks=marks(self._trust.path) if self._engine.environment else frozenset(),
            draft=(endpoint.draft if folder else draft.entry) or "" if draft else "",
            draft_files=self._draft_trust.files if self._draft_trust else (),
            program=program.path,
            version=program.version,
            options=msgspec.structs.replace(options, max_loras=most),
            pools=build.pools,
            adapters=self._roster.wanted if self._engine.adapters == "launch" else (),
            adapter_folder=str(adapter_folder(ground, self._names.endpoint)) if hot and most else "",
            cache_folder=self._cache_folder(plan, program, options) if self._engine.environment else "",
            devices=_nodes(self._cards),
            drain_s=30,
        )

    def _cache_folder(self, plan: Plan, program: Program, options: Options) -> str:
        """What it compiled for the same engine, weights, card and settings: of nobody else, as it will run it again."""
        about = [program.about, self._trust.digest, plan.card, plan.cards, msgspec.json.encode(options).decode()]
        key = hashlib.sha256(msgspec.json.encode(about)).hexdigest()[:16]
        folder = self._ground.state / "compiled" / f"{self._names.endpoint[:32]}-{key}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return str(folder)


def adapter_folder(ground: Ground, endpoint: str) -> Path:
    """Where adapters lie that were accepted: engines of this endpoint may read it."""
    folder = ground.state / "adapters" / endpoint
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _nodes(cards: list[str]) -> tuple[str, ...]:
    """Of NVIDIA's cards: their own, and those that all of them share."""
    shared = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
    return (*cards, *(node for node in shared if cards and Path(node).exists()))
