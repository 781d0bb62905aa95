"""Adapters of a running endpoint: accepted, put on every replica, compared, and only then open to callers.

While one is added, tried, taken back or removed, whoever is served notices nothing; what fails leaves everything as it
was.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import tempfile
from pathlib import Path

import msgspec

from freehold.errors import BadRequest, DoesNotFit, EngineFailed, Refused
from freehold.fleet.config import ADAPTERS_AT_LAUNCH
from freehold.fleet.outfit import adapter_folder
from freehold.fleet.pool import Pool
from freehold.fleet.replica import Replica
from freehold.fleet.roster import Alias, Version
from freehold.ledger.signing import signer
from freehold.types import Adapter, Manifest
from freehold.weights.adapters import accept
from freehold.weights.manifest import known, save

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_DROP_S = 10.0  # so long may an engine take to drop one
_TRIES = 3  # on cards, batches of other sizes may round otherwise: replicas that agree once do agree


class Adapters:
    """Of one pool. One change at a time."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self._roster, self._ground = pool, pool.route.roster, pool.ground
        self._changing = asyncio.Lock()
        self._drops: set[asyncio.Task[None]] = set()
        for folder in adapter_folder(self._ground, pool.name).iterdir():  # of a daemon that could not tidy up
            if not any(Path(each.path).is_relative_to(folder) for each in self._roster.wanted):
                shutil.rmtree(folder, ignore_errors=True)

    async def add(self, name: str, path: Path, percent: int, actor: str) -> Alias:
        """Raises Refused, BadRequest, DoesNotFit, NotReady, EngineFailed: then nothing has changed."""
        async with self._changing:
            self._check(name)
            await self._wake()
            folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=adapter_folder(self._ground, self._pool.name)))
            try:
                version = await self._accept(name, path, folder)
                await self._stage(version)
            except BaseException as error:
                self._roster.staged = None
                shutil.rmtree(folder, ignore_errors=True)
                self._ground.tell("adapter.refused", self._subject(name), actor=actor, path=str(path), why=str(error))
                raise
            alias = self._roster.added(version, percent)
            more = {"path": str(path), "digest": version.source_digest, **await self._open(name, alias)}
            self._ground.tell("adapter.opened", self._subject(name), actor=actor, **more)
            return alias

    async def share(self, name: str, percent: int, actor: str) -> Alias:
        """How much of the name's requests the version on trial gets; 100 makes it the current one."""
        async with self._changing:
            alias = self._roster.shared(name, percent)
            more = await self._open(name, alias)
            self._ground.tell("adapter.shared", self._subject(name), actor=actor, **more)
            return alias

    async def roll_back(self, name: str, actor: str) -> Alias:
        async with self._changing:
            alias = self._roster.rolled_back(name)
            more = await self._open(name, alias)
            self._ground.tell("adapter.rolled_back", self._subject(name), actor=actor, **more)
            return alias

    async def remove(self, name: str, actor: str) -> None:
        """Nobody new gets it; who has it is answered."""
        async with self._changing:
            self._roster.find(name)
            await self._open(name, None)
            self._ground.tell("adapter.removed", self._subject(name), actor=actor)

    async def _wake(self) -> None:
        """Raises what keeps its replicas from serving: also its operator, who stopped it."""
        route = self._pool.route
        if all(replica.closed for replica in route.replicas):
            raise route.stopped()
        await self._pool.up()

    def _check(self, name: str) -> None:
        pool = self._pool
        kind = pool.engine.adapters
        if not _NAME.fullmatch(name):
            raise BadRequest(f"{name!r} cannot name an adapter", hint="letters, digits, dot, dash and underscore, 63")
        if not kind:
            raise BadRequest(f"{pool.endpoint.engine} serves no adapters", hint="llamacpp and vllm do")
        most = pool.endpoint.max_loras if isinstance(pool.endpoint.max_loras, int) else ADAPTERS_AT_LAUNCH
        if kind == "hot" and not pool.endpoint.max_loras:
            raise BadRequest(
                f"`{pool.name}` was started without room for adapters",
                hint="max_loras = 4 in freehold.toml says how many at once; then freehold down, freehold up",
            )
        if self._replaces and len(self._roster.wanted) >= most:  # the others are swapped by the engine itself
            raise BadRequest(
                f"`{pool.name}` has {len(self._roster.wanted)} versions of adapters, and max_loras is {most}",
                hint="freehold adapters remove takes one away; or a larger max_loras",
            )

    async def _accept(self, name: str, path: Path, folder: Path) -> Version:
        """Take a copy that nobody else can change, look at that, and put it as the engine reads it."""
        ground, pool = self._ground, self._pool
        base, key = pool.trust, signer(ground.state)
        taken = await asyncio.to_thread(accept, path, base.path, folder, pool.engine.formats)
        if pool.engine.adapters == "hot" and taken.rank > pool.endpoint.max_lora_rank:
            raise DoesNotFit(
                f"the adapter has rank {taken.rank}, and `{pool.name}` makes room for {pool.endpoint.max_lora_rank}",
                hint=f"max_lora_rank = {taken.rank} in freehold.toml; then freehold down, freehold up",
            )
        now_ns, digest = ground.clock_ns(), taken.source.digest
        said = known(ground.state, digest, key.public)
        if said and said.base and said.base != base.digest and not taken.converted:
            raise Refused(
                f"the adapter was made for weights with the digest {said.base}, not for those of `{pool.name}`",
                hint="serve it on the base that it was trained on, or train it again",
            )
        if said is None:
            said = Manifest(
                digest=digest, artifacts=taken.source.artifacts, made_ns=now_ns, made_by="freehold", source=str(path),
                base=base.digest,
            )  # fmt: skip
            await asyncio.to_thread(save, ground.state, said, key)
        number = self._roster.next_number(name)
        internal = f"{name}@{number}-{digest[:8]}"  # other files never get a name that a cache may know
        return Version(
            name=name,
            number=number,
            adapter=Adapter(name=internal, path=str(taken.served), digest=taken.digest, rank=taken.rank),
            source=str(path),
            source_digest=digest,
            base_digest=base.digest,
            added_ns=now_ns,
        )

    async def _stage(self, version: Version) -> None:
        """Every replica has it, and all of them say the same with it. Raises EngineFailed, DoesNotFit."""
        pool, adapter, subject = self._pool, version.adapter, self._subject(version.name)
        self._roster.staged = version
        self._ground.tell("adapter.loading", subject, version=adapter.name, replicas=len(pool.serving))
        try:
            if self._replaces:
                await pool.replace()
            async with asyncio.timeout(pool.endpoint.start_seconds):
                await self._wake()  # it may have become idle meanwhile: then its next start has what is staged
                while lacking := [each for each in pool.serving if adapter.name not in each.adapters]:
                    for replica in lacking:
                        await replica.start.load(adapter)
                texts = await self._compare(adapter)
        except BaseException as error:
            await self._drop(adapter)
            if isinstance(error, TimeoutError):
                late = f"its replicas did not load it in {pool.endpoint.start_seconds:g} s"
                raise EngineFailed(late, hint=f"freehold logs {pool.name}") from None
            raise
        answer = next(iter(texts.values()), "")
        self._ground.tell("adapter.probed", subject, version=adapter.name, replicas=len(texts), answer=answer)

    @property
    def _replaces(self) -> bool:
        """Only a successor of each replica can have one more."""
        return self._pool.engine.adapters == "launch" or any(each.start.full for each in self._pool.serving)

    async def _compare(self, adapter: Adapter) -> dict[str, str]:
        """What each replica answers with it. Raises EngineFailed when they do not come to say the same."""
        texts: dict[str, str] = {}
        for _ in range(_TRIES):
            texts = {each.name: await each.start.answer_of(adapter) for each in self._having(adapter)}
            if len(set(texts.values())) == 1:
                return texts
        why = f"its replicas do not say the same with it: {texts}" if texts else "its replicas ended when they had it"
        raise EngineFailed(why, hint=f"freehold logs {self._pool.name}")

    async def _open(self, name: str, alias: Alias | None) -> dict[str, str]:
        """From here on the name means this; versions that it does not mean any more go when nobody asks for them.

        What an event is to say of it.
        """
        before = self._roster.wanted
        content = None if alias is None else msgspec.json.encode(alias).decode()
        try:
            await self._ground.book.set_adapter(self._pool.name, name, content)
        finally:
            self._roster.staged = None
        self._roster.put(name, alias)
        gone = [each for each in before if each not in self._roster.wanted]
        if gone:
            task = asyncio.create_task(self._drop_later(gone), name=f"drop adapters of {self._pool.name}")
            self._drops.add(task)
            task.add_done_callback(self._drops.discard)
        detail = {"version": alias.current.adapter.name} if alias else {}
        if alias and alias.trial:
            detail |= {"trial": alias.trial.adapter.name, "percent": str(alias.percent)}
        return detail

    async def _drop_later(self, gone: list[Adapter]) -> None:
        """Whoever waits for a replica may still be meant for them."""
        await asyncio.sleep(self._pool.endpoint.request_seconds)
        for adapter in gone:
            await self._drop(adapter)
            self._pool.route.admit()  # whoever waited for it still, does not any more
            folder = adapter_folder(self._ground, self._pool.name)
            shutil.rmtree(folder / Path(adapter.path).relative_to(folder).parts[0], ignore_errors=True)

    async def _drop(self, adapter: Adapter) -> None:
        for replica in self._having(adapter):
            with contextlib.suppress(EngineFailed, TimeoutError):  # it has gone, or keeps some memory
                async with asyncio.timeout(_DROP_S):
                    await replica.start.unload(adapter)

    def _having(self, adapter: Adapter) -> list[Replica]:
        return [replica for replica in self._pool.serving if adapter.name in replica.adapters]

    def _subject(self, name: str) -> str:
        return f"{self._pool.name}:{name}"


def read_rosters(rows: list[tuple[str, str, str]]) -> dict[str, dict[str, Alias]]:
    """What the book has, by endpoint."""
    found: dict[str, dict[str, Alias]] = {}
    for endpoint, name, content in rows:
        found.setdefault(endpoint, {})[name] = msgspec.json.decode(content, type=Alias)
    return found
