"""Bringing one engine up: trust, fit, launch, readiness, adapters, smoke probe. Each stage is an event."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from freehold.engines import Launchable
from freehold.errors import DoesNotFit, EngineFailed, NotReady, Refused
from freehold.executors.local import Process
from freehold.executors.memory import taken
from freehold.executors.sockets import open_socket
from freehold.fleet.config import DEFAULT_CONTEXT
from freehold.fleet.ground import Ground
from freehold.fleet.hearing import Hearing
from freehold.fleet.outfit import Outfit
from freehold.fleet.probing import Asked, Said, probe_completion
from freehold.fleet.route import Route
from freehold.fleet.trust import Trust
from freehold.fleet.upstream import Upstream
from freehold.ledger.measured import about
from freehold.types import Adapter, Measurement, Plan, Service, Stated
from freehold.weights.fitting import digest_of

_POLL_SHARE = 0.02  # of the time waited so far: what not asking at the right moment may cost
_POLL_S = (0.001, 0.25)
_ADAPTER_PROBE_TOKENS = 8
_NO_FIELDS: Mapping[str, object] = {}


class Start:
    """One for each replica: it holds what there is of the running engine. Only the replica's owner calls it."""

    def __init__(
        self, replica: str, engine: Launchable, route: Route, trusts: tuple[Trust, Trust | None], ground: Ground
    ) -> None:
        """`trusts`: in the weights, and in those of a draft model."""
        self.engine = engine
        self.process: Process | None = None
        self.upstream: Upstream | None = None
        self.plan: Plan | None = None
        self.measured: Stated | None = None  # what it took, as it says itself, and as the kernel and the driver do
        self.adapters: dict[str, Mapping[str, object]] = {}  # that it has, and the fields of a request for each
        self.texts: dict[str, str] = {}  # what each of them answers to the same question
        self._name, self._served = replica, route.name
        self._endpoint, self._ground, self._roster, self._trust = route.endpoint, ground, route.roster, trusts[0]
        self._outfit = Outfit(replica, engine, route, trusts, ground)
        self._log = ground.log_dir / f"{replica.partition('+')[0]}.log"  # successors go on in it
        self._hearing: Hearing | None = None
        self._came_up: tuple[Service, Hearing] | None = None  # what the running engine was started from
        self._room: int | None = None  # adapters that it may ever be given
        self._given = 0
        self._socket_fd: int | None = None
        self._folder: Path | None = None
        self._run = 0

    @property
    def stage(self) -> str:
        """Of a start that is under way, and how far it is."""
        return self._hearing.now if self._hearing else ""

    async def bring_up(self, run: int) -> None:
        """From cold to answering. Raises FreeholdError with what to do; `tear_down` must follow in every case."""
        self._run = run
        hearing = self._hearing = Hearing(self.engine, self._name, self._ground)
        hearing.enter("verifying the weights")
        await self._outfit.prepare()
        for name in self._roster.close_others(self._trust.digest):
            why = "the weights are not those that it was accepted on"
            self._ground.tell("adapter.closed", f"{self._served}:{name}", why=why)
        try:
            await self._start(hearing)
        except DoesNotFit as error:
            if self._endpoint.context != "auto" or not error.longest:
                raise
            # Its own count is the last word: once more, with what it says that fits.
            await self.tear_down()
            hearing = self._hearing = Hearing(self.engine, self._name, self._ground)  # nothing of what the first said
            self._ground.tell("plan.shortened", self._name, context=error.longest, reason=str(error))
            await self._start(hearing, error.longest)
        self._hearing = None

    async def _start(self, hearing: Hearing, limit: int | None = None) -> None:
        self.plan = plan = await self._outfit.plan(limit)
        self._ground.tell("plan.made", self._name, steps="\n".join(plan.steps))
        hearing.weight_bytes = plan.weight_bytes
        hearing.enter("launching the engine")
        self._folder = Path(tempfile.mkdtemp(prefix=f"{self._name[:12]}-", dir=self._ground.run_dir))
        socket = str(self._folder / "engine.sock")
        service, launch = await asyncio.to_thread(self._outfit.launch, plan, socket, self._roster.wanted)
        self._room, self._given = self.engine.room(service), 0
        for adapter in service.adapters:
            await self._check_adapter(adapter)
        argv = shlex.join(launch.argv)
        self._ground.tell("engine.launching", self._name, run=self._run, engine=self._endpoint.engine, argv=argv)
        executor = self._ground.executor
        self.process = process = await executor.start(launch, self._name, self._log, hearing.hear)
        isolation = {"isolated": process.isolated, "why_not": executor.why_not_isolated}
        self._ground.tell("engine.started", self._name, run=self._run, pid=process.pid, **isolation)
        await self._test_isolation(process)
        hearing.enter("loading the engine")
        await self._until_ready(process, service.socket, hearing)
        hearing.enter("probing")
        await self._trust.recheck()
        await self._smoke_probe()
        await self._warm()
        await self._until_ready(process, service.socket, hearing)  # still
        self._ground.promised_bytes.pop(self._name, None)
        for adapter in service.adapters:
            await self._take(adapter, self.engine.ask(adapter, service.adapters))
        while missing := self._missing:  # last: what is staged after this, `Adapters` gives to every replica itself
            for adapter in missing:
                await self._check_adapter(adapter)
                await self.load(adapter)
        hearing.close()
        self._came_up = service, hearing

    @property
    def context(self) -> int:
        """Tokens that a request may use, by the plan of the last start, or as configured until there is one."""
        configured = self._endpoint.context
        return self.plan.context if self.plan else configured if isinstance(configured, int) else DEFAULT_CONTEXT

    @property
    def _missing(self) -> list[Adapter]:
        """What it should have, and could be given while it serves."""
        if self.engine.adapters != "hot":
            return []
        return [adapter for adapter in self._roster.wanted if adapter.name not in self.adapters]

    @property
    def full(self) -> bool:
        """It may be given no adapter more: only its successor may."""
        return self._room is not None and self._given >= self._room

    async def load(self, adapter: Adapter) -> None:
        """Give the running engine an adapter. Raises EngineFailed with its words, DoesNotFit when it is full."""
        if self.full:
            hint = "freehold adapters remove takes one away; or a larger max_loras"
            raise DoesNotFit(f"`{self._name}` has room for {self._room} versions of adapters", hint=hint)
        call = self.engine.load(adapter)
        if call is None or self.upstream is None:
            raise EngineFailed(f"the engine of `{self._name}` is not up")
        answer = await self.upstream.fetch(call.method, call.path, call.body)
        if answer.status != 200:
            _, said = self.engine.error(answer.status, answer.body)
            raise EngineFailed(f"`{self._name}` could not load {adapter.name}: {said.message}")
        self._given += 1
        await self._take(adapter, self.engine.ask(adapter, ()))

    async def _take(self, adapter: Adapter, fields: Mapping[str, object]) -> None:
        """It has the adapter; what that answers is compared with what it answers elsewhere."""
        self.texts[adapter.name] = (await self.probe(fields, max_tokens=_ADAPTER_PROBE_TOKENS)).text
        self.adapters[adapter.name] = fields

    async def _check_adapter(self, adapter: Adapter) -> None:
        """That its files are those that were accepted. Raises Refused."""
        if await asyncio.to_thread(digest_of, Path(adapter.path)) != adapter.digest:
            raise Refused(
                f"the adapter {adapter.name} of `{self._served}` changed after it was accepted",
                hint="find out who writes to the state folder; freehold adapters remove takes it away",
            )

    async def answer_of(self, adapter: Adapter) -> str:
        """What it says with an adapter: asked anew, where that leaves nothing in a cache that callers read."""
        fields = self.adapters.get(adapter.name)
        if fields is None:
            raise EngineFailed(f"the engine of `{self._name}` ended")
        if self.engine.adapters == "hot":
            await self._take(adapter, fields)
        return self.texts[adapter.name]

    async def unload(self, adapter: Adapter) -> None:
        """Nobody asks for it any more; an engine that fails to drop it keeps some memory, no more."""
        call = self.engine.unload(adapter)
        if self.adapters.pop(adapter.name, None) is not None and call and self.upstream:
            await self.upstream.fetch(call.method, call.path, call.body)

    async def probe(self, fields: Mapping[str, object] = _NO_FIELDS, *, max_tokens: int = 4) -> Said:
        """A real completion, from no cache that callers read. Raises EngineFailed."""
        if self.upstream is None:
            raise EngineFailed(f"the engine of `{self._name}` is not up")
        asked = Asked(self.upstream, self._served, self._name, self._run)
        apart = self.engine.isolate(secrets.token_hex(8), None, same=False, salted=self.engine.salts)
        named = {"model": self._served, **apart, **fields}
        return await probe_completion(asked, named, self._ground, max_tokens=max_tokens)

    async def metrics(self) -> bytes:
        """Raises EngineFailed."""
        if self.upstream is None:
            raise EngineFailed(f"the engine of `{self._name}` is not up")
        answer = await self.upstream.fetch("GET", self.engine.metrics_path)
        return answer.body if answer.status == 200 else b""

    async def ended(self) -> int:
        """The exit code of the engine, once it has one."""
        if self.process is None:
            return 0
        return await self.process.wait()

    async def tear_down(self) -> None:
        """Leave nothing of this run behind."""
        self._hearing = self._came_up = None
        self._ground.promised_bytes.pop(self._name, None)
        if self.upstream:
            self.upstream.close()
            self.upstream = None
        if self._socket_fd is not None:
            os.close(self._socket_fd)
            self._socket_fd = None
        if self.process:
            await self.process.stop()
            self.process = None
        self._ground.cards.give(self._name)
        if self._folder:
            await asyncio.to_thread(remove_folder, self._folder)
            self._folder = None
        self.adapters, self.texts = {}, {}  # last: whoever was giving it one has noticed by now

    async def _test_isolation(self, process: Process) -> None:
        """The engine's own sandbox was tried from inside, before the engine was in it: what came of that."""
        report, run = await process.tested(), self._run
        if report is None:
            why_not = self._ground.executor.why_not_isolated
            self._ground.tell("isolation.absent", self._name, run=run, why_not=why_not)
        elif report.failed:
            await process.stop()  # it never became the engine, or is late: what it printed is in the log after this
            said = await asyncio.to_thread(last_words, self._log)
            failed = "; ".join(f"{name}: {found}" for name, found in report.failed.items())
            self._ground.tell("isolation.failed", self._name, run=run, **report.failed, said=said)
            if "report" in report.failed:
                hint = f"freehold logs {self._served}"
                raise NotReady(f"the sandbox of `{self._name}` gave no report ({failed}): {said}", hint=hint)
            raise Refused(
                f"the sandbox of `{self._name}` has a hole: {failed}",
                hint='docs/isolation.md says what each test means; policy.isolation = "off" goes without a sandbox',
            )
        elif not set(report.weights) <= self._trust.stamps:
            raise Refused(
                f"the engine of `{self._name}` was given other files than were verified",
                hint=f"find out who writes to {self._endpoint.weights}, then start it again",
            )
        else:
            self._ground.tell("isolation.tested", self._name, run=run, tests=len(report.passed), **report.passed)

    async def _until_ready(self, process: Process, socket: str, hearing: Hearing) -> None:
        died = asyncio.create_task(process.wait())
        ready = asyncio.create_task(self._poll(socket))
        try:
            await asyncio.wait((died, ready), return_when=asyncio.FIRST_COMPLETED)
            if died.done():
                assert self.plan is not None  # noqa: S101  _start has just made it
                hint = f"freehold logs {self._served}"
                if why := self.engine.complaint(hearing.said, self.plan):
                    raise why
                said = await asyncio.to_thread(last_words, self._log)
                code = died.result()
                raise NotReady(f"the engine of `{self._name}` ended with code {code} while starting: {said}", hint=hint)
            ready.result()
        finally:
            died.cancel()
            ready.cancel()

    async def _poll(self, socket: str) -> None:
        """Ask until it says 200. Its socket is opened once: what it puts in its place later is never looked at."""
        began_s = time.monotonic()
        while True:
            if self.upstream is None and os.path.lexists(socket):  # noqa: ASYNC240  a stat is no waiting
                self._socket_fd = open_socket(socket)
                self.upstream = Upstream(f"unix:/proc/self/fd/{self._socket_fd}")
            if self.upstream:
                with contextlib.suppress(EngineFailed):  # bound, but not yet listening
                    if (await self.upstream.fetch("GET", self.engine.ready_path)).status == 200:
                        return
            waited_s = time.monotonic() - began_s
            await asyncio.sleep(min(max(_POLL_S[0], waited_s * _POLL_SHARE), _POLL_S[1]))

    async def _smoke_probe(self) -> None:
        used = (await self.probe()).tokens
        counted = self.engine.counters(await self.metrics())
        same = (counted.prompt, counted.completion) == (used.prompt, used.completion)
        self._ground.tell(
            "probe.passed" if same else "probe.counts_differ",
            self._name,
            prompt_tokens=used.prompt,
            completion_tokens=used.completion,
            engine_prompt_tokens=counted.prompt,
            engine_completion_tokens=counted.completion,
        )

    async def _warm(self) -> None:
        """What is slow the first time is asked before anybody waits for it. What the engine cannot do, it says then."""
        if self.engine.warming and self._hearing:
            self._hearing.enter("warming up")
        for fields in self.engine.warming:
            try:
                await self.probe(fields, max_tokens=2)
            except EngineFailed as error:
                self._ground.tell("engine.warming_failed", self._name, why=str(error))

    async def measure(self) -> None:
        """What the start took, beside what was planned: into the book. Nobody waits for it. Raises EngineFailed."""
        if self._came_up is None or self.process is None:
            return
        (service, hearing), process, ground = self._came_up, self.process, self._ground
        model = self._outfit.build.model
        try:
            metrics, took = await self.metrics(), await asyncio.to_thread(taken, process.pid)
        finally:  # its log may come a little after it is ready
            process.stop_listening()
        stated = self.engine.stated(hearing.said, metrics)
        self.measured = msgspec.structs.replace(stated, **took)
        measurement = Measurement(
            at_ns=ground.clock_ns(), endpoint=self._served, replica=self._name, run=self._run,
            engine=self._endpoint.engine, model=self._trust.digest, catalogue=self._endpoint.model,
            scheme=model.checkpoint if model else "", stated=self.measured, start_s=hearing.seconds,
            **about(service),
        )  # fmt: skip
        ground.book.save_measurement(measurement)
        said = {name: value for name, value in msgspec.structs.asdict(self.measured).items() if value is not None}
        ground.tell("engine.measured", self._name, run=self._run, **said)


def last_words(log: Path) -> str:
    """What an engine said last: usually why it ended."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            said = file.read(4096).decode(errors="replace").strip()
    except OSError:
        return "it has no log"
    return " / ".join(said.splitlines()[-3:])[-300:] or "it said nothing"


def remove_folder(folder: Path) -> None:
    """What an engine wrote there is not to be trusted; folders nested too deep to walk are left where they are."""
    with contextlib.suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
