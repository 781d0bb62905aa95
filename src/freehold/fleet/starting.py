"""Bringing one engine up: trust, fit, launch, readiness, smoke probe. Each stage is an event."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import tempfile
import time
import uuid
from pathlib import Path

import msgspec

from freehold.engines import Launchable
from freehold.errors import DoesNotFit, EngineFailed, NotReady, Refused
from freehold.executors.local import Process
from freehold.executors.sockets import open_socket
from freehold.fleet.config import Endpoint
from freehold.fleet.ground import Ground
from freehold.fleet.host import probe
from freehold.fleet.trust import Trust
from freehold.fleet.upstream import Answer, Upstream
from freehold.fleet.wire import read_usage
from freehold.plan.llamacpp import fit
from freehold.types import Plan, Refusal, Tokens, UsageRecord
from freehold.weights import Checkpoint

PROBE_KEY = "freehold"  # the key that smoke probes are recorded under
_DEFAULT_CONTEXT = 8192
_POLL_SHARE = 0.02  # of the time waited so far: what not asking at the right moment may cost
_POLL_S = (0.001, 0.25)


class Start:
    """One for each replica: it holds what there is of the running engine. Only the replica's owner calls it."""

    def __init__(self, name: str, endpoint: Endpoint, engine: Launchable, trust: Trust, ground: Ground) -> None:
        self.engine = engine
        self.process: Process | None = None
        self.upstream: Upstream | None = None
        self.plan: Plan | None = None
        self.stage = ""  # of a start that is under way
        self._name, self._endpoint, self._trust, self._ground = name, endpoint, trust, ground
        self._socket_fd: int | None = None
        self._folder: Path | None = None

    async def bring_up(self, run: int) -> None:
        """From cold to answering. Raises FreeholdError with what to do; `tear_down` must follow in every case."""
        self.stage = "verifying the weights"
        build = await self._trust.ensure()
        self.plan = plan = await self._fit(build)
        self._ground.tell("plan.made", self._name, steps="\n".join(plan.steps))
        self.stage = "launching the engine"
        self._folder = Path(tempfile.mkdtemp(prefix=f"{self._name[:12]}-", dir=self._ground.run_dir))
        socket = str(self._folder / "engine.sock")
        launch = self.engine.launch(plan, build.entry, self._name, socket, self._endpoint.binary)
        argv = shlex.join(launch.argv)
        self._ground.tell("engine.launching", self._name, run=run, engine=self._endpoint.engine, argv=argv)
        executor = self._ground.executor
        self.process = process = await executor.start(launch, self._name, self._ground.log_dir / f"{self._name}.log")
        isolation = {"isolated": process.isolated, "why_not": executor.why_not_isolated}
        self._ground.tell("engine.started", self._name, run=run, pid=process.pid, **isolation)
        await self._test_isolation(process, run)
        self.stage = "loading the weights"
        await self._until_ready(process, socket)
        self.stage = "probing"
        await self._trust.recheck()
        await self._smoke_probe(run)

    @property
    def context(self) -> int:
        """Tokens that a request may use, by the plan of the last start, or as configured until there is one."""
        return self.plan.context if self.plan else self._endpoint.context or _DEFAULT_CONTEXT

    async def counted(self) -> Tokens:
        """What the engine's own counters say. Raises EngineFailed."""
        if self.upstream is None:
            raise EngineFailed(f"the engine of `{self._name}` is not up")
        metrics = await self.upstream.fetch("GET", self.engine.metrics_path)
        return self.engine.counters(metrics.body if metrics.status == 200 else b"")

    async def ended(self) -> int:
        """The exit code of the engine, once it has one."""
        if self.process is None:
            return 0
        return await self.process.wait()

    async def tear_down(self) -> None:
        """Leave nothing of this run behind."""
        if self.upstream:
            self.upstream.close()
            self.upstream = None
        if self._socket_fd is not None:
            os.close(self._socket_fd)
            self._socket_fd = None
        if self.process:
            await self.process.stop()
            self.process = None
        if self._folder:
            await asyncio.to_thread(remove_folder, self._folder)
            self._folder = None

    async def _fit(self, build: Checkpoint) -> Plan:
        host = await asyncio.to_thread(probe)
        context = self._endpoint.context or min(build.context, _DEFAULT_CONTEXT)
        threads = self._endpoint.threads or max(1, host.cores - 1)
        parallel = self._endpoint.slots or 1
        answer = fit(build, host, context=context, parallel=parallel, threads=threads, model=build.model)
        if isinstance(answer, Refusal):
            raise DoesNotFit(f"`{self._name}` does not fit: {answer.reason}", hint=answer.hint)
        return answer

    async def _test_isolation(self, process: Process, run: int) -> None:
        """The engine's own sandbox was tried from inside, before the engine was in it: what came of that."""
        report = await process.tested()
        if report is None:
            why_not = self._ground.executor.why_not_isolated
            self._ground.tell("isolation.absent", self._name, run=run, why_not=why_not)
        elif report.failed:
            await process.stop()  # it never became the engine, or is late: what it printed is in the log after this
            said = await asyncio.to_thread(last_words, self._ground.log_dir / f"{self._name}.log")
            failed = "; ".join(f"{name}: {found}" for name, found in report.failed.items())
            self._ground.tell("isolation.failed", self._name, run=run, **report.failed, said=said)
            if "report" in report.failed:
                hint = f"freehold logs {self._name}"
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

    async def _until_ready(self, process: Process, socket: str) -> None:
        died = asyncio.create_task(process.wait())
        ready = asyncio.create_task(self._poll(socket))
        try:
            await asyncio.wait((died, ready), return_when=asyncio.FIRST_COMPLETED)
            if died.done():
                said = await asyncio.to_thread(last_words, self._ground.log_dir / f"{self._name}.log")
                raise NotReady(
                    f"the engine of `{self._name}` ended with code {died.result()} while starting: {said}",
                    hint=f"freehold logs {self._name}",
                )
            ready.result()
        finally:
            died.cancel()
            ready.cancel()

    async def _poll(self, socket: str) -> None:
        """Ask until it says 200. Its socket is opened once: what it puts in its place later is never looked at."""
        said_loading = False
        began_s = time.monotonic()
        while True:
            if self.upstream is None and os.path.lexists(socket):  # noqa: ASYNC240  a stat is no waiting
                self._socket_fd = open_socket(socket)
                self.upstream = Upstream(f"unix:/proc/self/fd/{self._socket_fd}")
            if self.upstream:
                with contextlib.suppress(EngineFailed):  # bound, but not yet listening
                    status = (await self.upstream.fetch("GET", self.engine.ready_path)).status
                    if status == 200:
                        return
                    if not said_loading:
                        self._ground.tell("engine.loading", self._name)
                        said_loading = True
            waited_s = time.monotonic() - began_s
            await asyncio.sleep(min(max(_POLL_S[0], waited_s * _POLL_SHARE), _POLL_S[1]))

    async def _smoke_probe(self, run: int) -> None:
        assert self.upstream is not None  # noqa: S101  bring_up has just waited for it
        used = await probe_completion(self.upstream, self._name, self._name, self._name, self._ground, run=run)
        counted = await self.counted()
        same = (counted.prompt, counted.completion) == (used.prompt, used.completion)
        self._ground.tell(
            "probe.passed" if same else "probe.counts_differ",
            self._name,
            prompt_tokens=used.prompt,
            completion_tokens=used.completion,
            engine_prompt_tokens=counted.prompt,
            engine_completion_tokens=counted.completion,
        )


async def probe_completion(
    upstream: Upstream, name: str, replica: str, served_model: str, ground: Ground, *, run: int = 0
) -> Tokens:
    """One real completion, recorded like any other. Raises EngineFailed when it is not one."""
    began_ns = ground.clock_ns()
    record = UsageRecord(
        request=f"probe-{uuid.uuid4().hex}",
        key=PROBE_KEY,
        endpoint=name,
        kind="probe",
        stream=False,
        started_ns=began_ns,
        replica=replica,
        run=run,
    )
    ground.book.open_request(record)
    message = {"role": "user", "content": "Hello"}
    ask = msgspec.json.encode({"model": served_model, "messages": [message], "max_tokens": 4, "temperature": 0})
    answer = Answer(0, b"")
    used = None
    try:
        answer = await upstream.fetch("POST", "/v1/chat/completions", ask)
        used = read_usage(answer.body) if answer.status == 200 else None
    finally:
        tokens = used or Tokens()
        ground.book.settle_request(
            msgspec.structs.replace(
                record,
                status=answer.status,
                outcome="ok" if used else "error",
                prompt_tokens=tokens.prompt,
                completion_tokens=tokens.completion,
                cached_tokens=tokens.cached,
                total_ms=(ground.clock_ns() - began_ns) / 1e6,
            )
        )
    if used is None:
        raise EngineFailed(
            f"the smoke probe of `{name}` got {answer.status}: {answer.body[:200].decode(errors='replace')}",
            hint=f"freehold logs {name}",
        )
    return used


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
