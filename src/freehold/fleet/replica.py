"""One replica and the task that owns it.

Nobody looks at a replica's state and then acts: they `hold` it and the owner decides. Notes to the owner carry the run
they speak of, so news of a process that is gone changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from msgspec.structs import replace

from freehold.errors import EngineFailed, FreeholdError, NotReady
from freehold.fleet.ground import Ground
from freehold.fleet.health import HUNG_PROBES, Health
from freehold.fleet.route import Asker, Hold, Route
from freehold.fleet.slots import Slots
from freehold.fleet.starting import Start
from freehold.policy.lifecycle import Effect, Happening, Life, step
from freehold.policy.waiting import backoff_s, retry_after_s
from freehold.types import ReplicaStatus, Signals

STARTS_REMEMBERED = 9
COUNT_S = 5.0  # so long may an engine take to say what it counted
DOUBT_S = 1.0  # so long it may take until the news of an engine's end is here
_PHASES = {"starting": "starting", "ready": "idle", "stopping": "stopping"}


class _Note(NamedTuple):
    happening: Happening
    run: int | None = None
    reason: FreeholdError | None = None


class Replica:
    """One engine process at a time, started when wanted, stopped when idle."""

    site = 0  # of its endpoint's places: this machine

    def __init__(
        self,
        name: str,
        route: Route,
        start: Start,
        ground: Ground,
        drain_seconds: float,
        *,
        starts_s: Sequence[float] = (),
    ) -> None:
        self.name, self.endpoint, self.route = name, route.endpoint, route
        self.engine = start.engine
        self.slots = Slots(route.endpoint.slots)
        self.start, self._ground, self._drain_seconds = start, ground, drain_seconds
        self._life = Life()
        self._inbox: asyncio.Queue[_Note] = asyncio.Queue()
        self._health = Health(self.name, route, self.slots, ground)
        self._asked = self._opened = False  # a note of that is on its way to the owner
        self._doubted = 0  # a run that left a request unanswered: it has ended, perhaps
        self._released = asyncio.Event()
        self._last_use_ns = self._began_ns = self._due_ns = self.ready_ns = ground.clock_ns()
        self._starts_s = deque(starts_s, maxlen=STARTS_REMEMBERED)
        self.reason: FreeholdError | None = None  # it did not start last time
        self._living: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self.retiring = False
        self._signals: Signals | None = None  # of its last reading
        self.gone = asyncio.Event()  # it never comes again: it was retired, or the daemon ends
        self._turn = asyncio.Event()  # its state changes; then there is another

    # for its route

    @property
    def adapters(self) -> Mapping[str, Mapping[str, object]]:
        return self.start.adapters

    @property
    def usable(self) -> bool:
        return self._life.state == "ready" and self._doubted != self._life.run and not self._health.open

    @property
    def coming(self) -> bool:
        life = self._life
        return not self.closed and (life.wanted or self._asked or life.state in ("starting", "ready"))

    @property
    def closed(self) -> bool:
        return self._life.closed and not self._opened

    def hold(self, asker: Asker) -> Hold | None:
        """Only if it is `usable`."""
        upstream = self.start.upstream
        if upstream is None:
            return None
        slot, same = self.slots.take(asker.group, asker.choices)
        mark = self._ground.occupancy.hold(self.name, self._ground.clock_ns())
        return Hold(self, upstream, self._life.run, mark, asker.choices, asker.group, slot, same)

    def wake(self) -> None:
        self._asked = True
        self._inbox.put_nowait(_Note("wanted"))

    def release(self, hold: Hold, *, served: bool) -> int:
        if hold.run == self._life.run:
            self.slots.give(hold.slot, hold.choices)
        else:  # its process is gone, and its slots with it
            self.slots.held -= 1
        self._last_use_ns = self._ground.clock_ns()
        if served and self._life.failures:
            self._inbox.put_nowait(_Note("served", hold.run))
        if not self.slots.held:
            self._released.set()
            self._watch_idle()
        return self._ground.occupancy.release(self.name, hold.mark, self._last_use_ns)

    def answering(self, hold: Hold, status: int) -> None:
        """The head of an answer came."""
        if hold.run == self._life.run:
            if self._health.failures:
                self._health.recover()
            if status == 200:
                self.slots.answered(hold.slot, hold.group)
            if self.slots.widen() and self.route.waiting:
                self.route.admit()

    def unanswered(self, run: int) -> None:
        """It went away before a byte of an answer: nobody else is sent there until it is known whether it has ended."""
        if run == self._life.run and self._life.state == "ready":
            self._doubted = run
            self._health.fail()
            asyncio.get_running_loop().call_later(DOUBT_S, self._believe, run)

    def retry_after_s(self) -> int:
        life, now_ns = self._life, self._ground.clock_ns()
        since_s = self._since_start_s() if life.state == "starting" else 0.0
        backoff_left_s = max(0.0, (self._due_ns - now_ns) / 1e9) if life.state == "backoff" else 0.0
        return retry_after_s(self._starts_s, since_s, backoff_left_s)

    def _since_start_s(self) -> float:
        return (self._ground.clock_ns() - self._began_ns) / 1e9

    def progress(self) -> dict[str, object] | None:
        """The stage of the start that is under way, and how long starts usually take from here."""
        if self._life.state != "starting":
            return None
        left_s = median(self._starts_s) - self._since_start_s() if self._starts_s else None
        estimated_s = None if left_s is None else round(max(0.0, left_s), 1)
        return {"waking": self.route.name, "stage": self.start.stage, "estimated_seconds": estimated_s}

    @property
    def context(self) -> int:
        return self.start.context

    # for the operator

    def post(self, happening: Happening) -> None:
        """`stop` keeps everybody out until `open`."""
        self._opened = happening == "open" or (self._opened and happening != "stop")
        self._inbox.put_nowait(_Note(happening))

    def close(self, run: int, reason: FreeholdError) -> None:
        """Stop it if this run still serves, and keep everybody out until somebody opens it who has seen why."""
        if self.serving == run:
            self._ground.tell("endpoint.stop", self.name, run=run, reason=str(reason), hint=reason.hint)
            self._inbox.put_nowait(_Note("stop", run, reason))

    async def come_up(self) -> None:
        """Wake it, and wait until it answers. Raises what kept it from that."""
        self.wake()
        while self._life.state != "ready":
            if self.gone.is_set():
                raise self.reason or self._refusal()
            await self._turn.wait()
            if self._life.state in ("backoff", "cold"):
                raise self.reason or self._refusal()

    def retire(self) -> None:
        """Another one has taken its place: whoever it answers is answered to the end, and then it is gone."""
        self.retiring = True
        if self in self.route.replicas:
            self.route.part(self)
        self._drain_seconds = self.endpoint.request_seconds
        self.post("stop")

    @property
    def serving(self) -> int | None:
        """The run that is ready; None when there is none."""
        return self._life.run if self._life.state == "ready" else None

    def status(self) -> ReplicaStatus:
        process = self.start.process
        return ReplicaStatus(
            endpoint=self.route.name,
            replica=self.name,
            engine=self.endpoint.engine,
            state="stopped" if self._life.closed and self._life.state == "cold" else self._life.state,
            isolated=process.isolated if process else None,
            pid=process.pid if process else None,
            run=self._life.run,
            in_flight=self.slots.held,
            waiting=self.route.waiting if self.route.replicas[:1] == [self] else 0,
            slots=self.slots.count,
            answers=self._life.state != "ready" or not self._health.open,
            stage=self.start.stage,
            context=self.start.plan.context if self.start.plan else None,
            predicted=self.start.plan.predicted if self.start.plan else None,
            measured=self.start.measured,
            signals=self._signals if self._life.state == "ready" else None,
            adapters=tuple(self.adapters),
            last_start_s=round(self._starts_s[-1], 3) if self._starts_s else None,
            reason=str(self.reason) if self.reason else None,
        )

    async def save_counts(self, *, final: bool = False) -> None:
        """What the engine counted goes into the book, for `usage --reconcile`; nothing where it does not say."""
        run, in_flight, began_ns = self._life.run, self.slots.held, self._ground.clock_ns()
        with contextlib.suppress(EngineFailed, TimeoutError):
            async with asyncio.timeout(COUNT_S):
                metrics = await self.start.metrics()
            if run == self._life.run:
                self._signals, counted = self.engine.signals(metrics), self.engine.counters(metrics)
                in_flight = max(in_flight, self.slots.held)
                self._ground.book.save_counts(
                    self.route.name, self.name, run, counted, at_ns=began_ns, in_flight=in_flight, final=final
                )

    # the owner

    async def own(self) -> None:
        """Runs until cancelled, then leaves nothing behind."""
        try:
            while True:
                self._take(await self._inbox.get())
        finally:
            self.reason = NotReady(f"`{self.route.name}` is shutting down", retry_after_s=5)
            if not self.retiring:
                self.route.refuse(self.reason)
            for task in filter(None, (self._stopping, self._living)):
                task.cancel()
                await asyncio.wait([task])
            self._life = replace(self._life, state="cold")
            self.gone.set()
            self._turn.set()

    def _take(self, note: _Note) -> None:
        if note.happening == "wanted":
            self._asked = False
        elif note.happening == "open":
            self._opened = False
        if note.run not in (None, self._life.run):
            return  # stale news
        if note.happening == "idle" and (self.slots.held or self.route.waiting):
            return  # somebody came in the meantime
        before = self._life.state
        self._life, effects = step(self._life, note.happening)
        came_late = self.route.waiting and before == "ready" and note.happening in ("exited", "failed")
        if came_late:  # after the end, and before the news of it
            self._life, _ = step(self._life, "wanted")
        self.reason = note.reason or self.reason
        if self._life.state != before:
            self._changed(note)
        if self.retiring and self._life.state == "cold":
            self.gone.set()
        for effect in effects:
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        run = self._life.run
        match effect:
            case "start":
                self._living = asyncio.create_task(self._live(run), name=f"run {self.name}")
            case "stop":
                self._stopping = asyncio.create_task(self._stop(run), name=f"stop {self.name}")
            case "admit":
                self.route.admit()
            case "refuse":
                self.route.lost(self._refusal())
            case "schedule":
                delay_s = backoff_s(self._life.failures)
                self._due_ns = self._ground.clock_ns() + round(delay_s * 1e9)
                asyncio.get_running_loop().call_later(delay_s, self._inbox.put_nowait, _Note("due", run))

    def _changed(self, note: _Note) -> None:
        state, now_ns = self._life.state, self._ground.clock_ns()
        self._turn.set()
        self._turn = asyncio.Event()
        self._ground.occupancy.enter(self.name, _PHASES.get(state), now_ns)  # type: ignore[arg-type]
        if state == "starting":
            self._began_ns = now_ns
        elif state == "ready":
            self.ready_ns = now_ns
            self._health.answered()  # as of now, whatever its last run did
            self.slots.renew()
            self._starts_s.append((now_ns - self._began_ns) / 1e9)
            self.reason = None
            self._last_use_ns = now_ns
            self._watch_idle()  # whoever woke it may have left by now
        detail = {"run": self._life.run, "because": note.happening}
        if state == "ready":
            detail |= {"seconds": round(self._starts_s[-1], 3), "endpoint": self.route.name}
        self._ground.tell(f"replica.{state}", self.name, **detail)

    def _believe(self, run: int) -> None:
        """It has not ended: so it may be asked again."""
        if self._doubted == run:
            self._doubted = 0
            if self._life.run == run and self._life.state == "ready":
                self.route.admit()

    def _refusal(self) -> NotReady:
        """What callers are told. Why it does not start is the operator's to know: see `reason`."""
        if self._life.closed:
            return self.route.stopped()
        return self.route.not_ready(f"`{self.route.name}` cannot be started now; its operator can see why")

    def _watch_idle(self, delay_s: float | None = None) -> None:
        if self.endpoint.idle_seconds and self._idle_timer is None:
            delay_s = self.endpoint.idle_seconds if delay_s is None else delay_s
            self._idle_timer = asyncio.get_running_loop().call_later(delay_s, self._idle_over)

    def _idle_over(self) -> None:
        self._idle_timer = None
        if self._life.state != "ready" or self.slots.held:
            return
        left_s = self.endpoint.idle_seconds - (self._ground.clock_ns() - self._last_use_ns) / 1e9
        if left_s > 0:
            self._watch_idle(left_s)
        else:
            self._inbox.put_nowait(_Note("idle", self._life.run))

    async def _live(self, run: int) -> None:
        """One process, from its launch to its end."""
        end: Happening = "exited"
        try:
            async with asyncio.timeout(self.endpoint.start_seconds):
                await self.start.bring_up(run)
            self._inbox.put_nowait(_Note("up", run))
            with contextlib.suppress(EngineFailed, TimeoutError):
                async with asyncio.timeout(COUNT_S):
                    await self.start.measure()
            code = await self._until_it_ends()
            self._ground.tell("engine.exited", self.name, run=run, code=code)
        except TimeoutError:
            late = f"`{self.name}` did not start in {self.endpoint.start_seconds:g} s"
            end = self._failed(self.route.not_ready(late))
        except FreeholdError as error:
            end = self._failed(error)
        except Exception as error:  # noqa: BLE001  the door of this task: a fault unforeseen ends the run, not the owner
            end = self._failed(NotReady(f"`{self.name}` could not start: {type(error).__name__}: {error}"))
        finally:
            tearing = asyncio.create_task(self.start.tear_down(), name=f"tear down {self.name}")
            while not tearing.done():  # whoever cancels this waits for it: half a tear-down leaves an engine alive
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait((tearing,))
            if error := tearing.exception():
                self._failed(NotReady(f"`{self.name}` could not be cleared away: {type(error).__name__}: {error}"))
            self._inbox.put_nowait(_Note(end, run))

    async def _until_it_ends(self) -> int:
        """Its exit code. Raises NotReady when it lives on and does not answer any more."""
        upstream = self.start.upstream
        if upstream is None:
            return await self.start.ended()
        ending = asyncio.create_task(self.start.ended())
        watching = asyncio.create_task(self._health.watch(upstream, self.engine.ready_path, HUNG_PROBES))
        try:
            await asyncio.wait((ending, watching), return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                return ending.result()
            watching.result()
            raise NotReady(f"`{self.name}` hangs: it answered none of {HUNG_PROBES} probes in a row")
        finally:
            ending.cancel()
            watching.cancel()
            await asyncio.wait((ending, watching))

    def _failed(self, error: FreeholdError) -> Happening:
        self.reason = error
        self._ground.tell("engine.failed", self.name, run=self._life.run, reason=str(error), hint=error.hint)
        return "failed"

    async def _stop(self, run: int) -> None:
        """Let those who hold it finish, then end the process."""
        try:
            async with asyncio.timeout(self._drain_seconds):
                while self.slots.held:
                    self._released.clear()
                    await self._released.wait()
        except TimeoutError:
            self._ground.tell("engine.cut", self.name, run=run, in_flight=self.slots.held)
        await self.save_counts(final=not self.slots.held)
        if self._living:
            self._living.cancel()
            await asyncio.wait([self._living])
        self._inbox.put_nowait(_Note("stopped", run))
