"""One replica and the task that owns it.

Nobody looks at a replica's state and then acts: they `hold` it and the owner decides. Notes to the owner carry the run
they speak of, so news of a process that is gone changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from freehold.errors import FreeholdError, NotReady, QueueFull
from freehold.fleet.config import Endpoint
from freehold.fleet.ground import Ground
from freehold.fleet.starting import Start
from freehold.fleet.upstream import Upstream
from freehold.policy.lifecycle import Effect, Happening, Life, step
from freehold.policy.waiting import backoff_s, retry_after_s
from freehold.types import ReplicaStatus

STARTS_REMEMBERED = 9
_PHASES = {"starting": "starting", "ready": "idle", "stopping": "stopping"}


class Hold(NamedTuple):
    """A ready replica, kept ready until it is given back with `release`."""

    upstream: Upstream
    run: int
    mark: float  # where the occupancy account stood


class _Note(NamedTuple):
    happening: Happening
    run: int | None = None
    reason: FreeholdError | None = None


class Replica:
    """One engine process at a time, started when wanted, stopped when idle."""

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        start: Start,
        ground: Ground,
        drain_seconds: float,
        *,
        starts_s: Sequence[float] = (),
    ) -> None:
        self.name, self.endpoint = name, endpoint
        self.engine = start.engine
        self._start, self._ground, self._drain_seconds = start, ground, drain_seconds
        self._life = Life()
        self._inbox: asyncio.Queue[_Note] = asyncio.Queue()
        self._waiters: deque[asyncio.Future[Hold]] = deque()
        self._held = 0
        self._released = asyncio.Event()
        self._last_use_ns = self._began_ns = self._due_ns = ground.clock_ns()
        self._starts_s = deque(starts_s, maxlen=STARTS_REMEMBERED)
        self.reason: FreeholdError | None = None  # it did not start last time
        self._living: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._idle_timer: asyncio.TimerHandle | None = None

    # for the gateway

    def try_hold(self) -> Hold | None:
        """Hold it if it is ready, without waiting."""
        if self._life.state != "ready" or self._start.upstream is None:
            return None
        self._held += 1
        mark = self._ground.occupancy.hold(self.name, self._ground.clock_ns())
        return Hold(self._start.upstream, self._life.run, mark)

    async def hold(self, wait_seconds: float | None = None) -> Hold:
        """Hold it as soon as it is ready, waking it if need be. Raises NotReady.

        `wait_seconds`: an operator's own patience, in place of the endpoint's, and outside of its queue.
        """
        if held := self.try_hold():
            return held
        self._inbox.put_nowait(_Note("wanted"))  # even for who is sent away: they are told to come back
        if wait_seconds is None and len(self._waiters) >= self.endpoint.max_waiting:
            late = self._not_ready(f"{len(self._waiters)} requests already wait for `{self.name}`")
            raise QueueFull(str(late), retry_after_s=late.retry_after_s)
        waiter: asyncio.Future[Hold] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        limit = self.endpoint.wait_seconds if wait_seconds is None else wait_seconds
        try:
            async with asyncio.timeout(limit):
                return await waiter
        except BaseException as gone:
            if waiter.done() and not waiter.cancelled() and not waiter.exception():
                self.release(waiter.result(), served=False)  # admitted in the very moment they gave up
            if isinstance(gone, TimeoutError):
                raise self._not_ready(f"`{self.name}` was not ready within {limit:g} s") from None
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def release(self, hold: Hold, *, served: bool) -> int:
        """Give it back; returns the request's share of the machine's cost, in pico."""
        self._held -= 1
        self._last_use_ns = self._ground.clock_ns()
        if served and self._life.failures:
            self._inbox.put_nowait(_Note("served", hold.run))
        if not self._held:
            self._released.set()
            self._watch_idle()
        return self._ground.occupancy.release(self.name, hold.mark, self._last_use_ns)

    async def is_over(self, run: int) -> bool:
        """Whether this run has ended; its engine did not answer, so that it has may be about to be known."""
        for _ in range(100):
            if self._life.run != run or self._life.state != "ready":
                return True
            await asyncio.sleep(0.01)
        return False

    # for the operator

    def post(self, happening: Happening) -> None:
        """`stop` keeps everybody out until `open`."""
        self._inbox.put_nowait(_Note(happening))

    def close(self, run: int, reason: FreeholdError) -> None:
        """Stop it if this run still serves, and keep everybody out until somebody opens it who has seen why."""
        if self.serving == run:
            self._ground.tell("endpoint.stop", self.name, run=run, reason=str(reason), hint=reason.hint)
            self._inbox.put_nowait(_Note("stop", run, reason))

    @property
    def serving(self) -> int | None:
        """The run that is ready; None when there is none."""
        return self._life.run if self._life.state == "ready" else None

    def refuse_waiting(self) -> None:
        self._refuse(NotReady(f"`{self.name}` is shutting down", retry_after_s=5))

    def status(self) -> ReplicaStatus:
        process = self._start.process
        return ReplicaStatus(
            endpoint=self.name,
            engine=self.endpoint.engine,
            state="stopped" if self._life.closed and self._life.state == "cold" else self._life.state,
            isolated=process.isolated if process else None,
            pid=process.pid if process else None,
            run=self._life.run,
            in_flight=self._held,
            waiting=len(self._waiters),
            last_start_s=round(self._starts_s[-1], 3) if self._starts_s else None,
            reason=str(self.reason) if self.reason else None,
        )

    # the owner

    async def own(self) -> None:
        """Runs until cancelled, then leaves nothing behind."""
        try:
            while True:
                self._take(await self._inbox.get())
        finally:
            self.refuse_waiting()
            for task in (self._stopping, self._living):
                if task:
                    task.cancel()
                    await asyncio.wait([task])

    def _take(self, note: _Note) -> None:
        if note.run not in (None, self._life.run):
            return  # stale news
        if note.happening == "idle" and self._held:
            return  # somebody came in the meantime
        before = self._life.state
        self._life, effects = step(self._life, note.happening)
        came_late = self._waiters and before == "ready" and note.happening in ("exited", "failed")
        if came_late:  # after the end, and before the news of it
            self._life, _ = step(self._life, "wanted")
        if self._life.state != before:
            self._changed(note)
        self.reason = note.reason or self.reason
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
                self._admit()
            case "refuse":
                self._refuse(self._refusal())
            case "schedule":
                delay_s = backoff_s(self._life.failures)
                self._due_ns = self._ground.clock_ns() + round(delay_s * 1e9)
                asyncio.get_running_loop().call_later(delay_s, self._inbox.put_nowait, _Note("due", run))

    def _changed(self, note: _Note) -> None:
        state, now_ns = self._life.state, self._ground.clock_ns()
        self._ground.occupancy.enter(self.name, _PHASES.get(state), now_ns)  # type: ignore[arg-type]
        if state == "starting":
            self._began_ns = now_ns
        elif state == "ready":
            self._starts_s.append((now_ns - self._began_ns) / 1e9)
            self.reason = None
        detail = {"run": self._life.run, "because": note.happening}
        if state == "ready":
            detail["seconds"] = round(self._starts_s[-1], 3)
        self._ground.tell(f"replica.{state}", self.name, **detail)

    def _admit(self) -> None:
        while self._waiters:
            if self._waiters[0].done():
                self._waiters.popleft()
            elif hold := self.try_hold():
                self._waiters.popleft().set_result(hold)
            else:  # the engine has just ended, and the news of it is on its way: they wait for the next run
                return
        if not self._held:
            self._watch_idle()

    def _refuse(self, error: FreeholdError) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error)

    def _refusal(self) -> NotReady:
        """What callers are told. Why it does not start is the operator's to know: see `reason`."""
        if self._life.closed:
            return NotReady(f"`{self.name}` was stopped by its operator")
        return self._not_ready(f"`{self.name}` cannot be started now; its operator can see why")

    def _not_ready(self, message: str) -> NotReady:
        life = self._life
        now_ns = self._ground.clock_ns()
        since_s = (now_ns - self._began_ns) / 1e9 if life.state == "starting" else 0.0
        backoff_left_s = max(0.0, (self._due_ns - now_ns) / 1e9) if life.state == "backoff" else 0.0
        return NotReady(message, retry_after_s=retry_after_s(self._starts_s, since_s, backoff_left_s))

    def _watch_idle(self, delay_s: float | None = None) -> None:
        if self.endpoint.idle_seconds and self._idle_timer is None:
            delay_s = self.endpoint.idle_seconds if delay_s is None else delay_s
            self._idle_timer = asyncio.get_running_loop().call_later(delay_s, self._idle_over)

    def _idle_over(self) -> None:
        self._idle_timer = None
        if self._life.state != "ready" or self._held:
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
                await self._start.bring_up(run)
            self._inbox.put_nowait(_Note("up", run))
            code = await self._start.ended()
            self._ground.tell("engine.exited", self.name, run=run, code=code)
        except TimeoutError:
            end = self._failed(self._not_ready(f"`{self.name}` did not start in {self.endpoint.start_seconds:g} s"))
        except FreeholdError as error:
            end = self._failed(error)
        except Exception as error:  # noqa: BLE001  the door of this task: a fault unforeseen ends the run, not the owner
            end = self._failed(NotReady(f"`{self.name}` could not start: {type(error).__name__}: {error}"))
        finally:
            tearing = asyncio.create_task(self._start.tear_down(), name=f"tear down {self.name}")
            while not tearing.done():  # whoever cancels this waits for it: half a tear-down leaves an engine alive
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait((tearing,))
            if error := tearing.exception():
                self._failed(NotReady(f"`{self.name}` could not be cleared away: {type(error).__name__}: {error}"))
            self._inbox.put_nowait(_Note(end, run))

    def _failed(self, error: FreeholdError) -> Happening:
        self.reason = error
        self._ground.tell("engine.failed", self.name, run=self._life.run, reason=str(error), hint=error.hint)
        return "failed"

    async def _stop(self, run: int) -> None:
        """Let those who hold it finish, then end the process."""
        try:
            async with asyncio.timeout(self._drain_seconds):
                while self._held:
                    self._released.clear()
                    await self._released.wait()
        except TimeoutError:
            self._ground.tell("engine.cut", self.name, run=run, in_flight=self._held)
        if self._living:
            self._living.cancel()
            await asyncio.wait([self._living])
        self._inbox.put_nowait(_Note("stopped", run))
