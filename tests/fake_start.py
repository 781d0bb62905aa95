"""A replica on a real book and a real account, whose runs come up and end when a test says so, under a clock that a
test moves."""

import asyncio
import contextlib
from pathlib import Path

from freehold.engines.llamacpp import LlamaCpp
from freehold.errors import EngineFailed, FreeholdError
from freehold.fleet.config import Endpoint
from freehold.fleet.ground import Ground
from freehold.fleet.occupancy import Occupancy
from freehold.fleet.replica import Replica
from freehold.fleet.route import Hold, Route, _Waiter
from freehold.fleet.upstream import Upstream
from freehold.ledger.book import Book
from freehold.types import Event

SECOND_NS = 10**9
BEGAN_NS = 1_700_000_000 * SECOND_NS
PATIENCE_S = 20


class FakeStart:
    """What `Replica` uses of a `Start`. Each run waits for the test: to come up or fail, to end, to be torn down."""

    engine = LlamaCpp()
    process = None
    stage = ""
    context = 512
    plan = measured = None
    adapters: dict = {}  # noqa: RUF012
    full = False

    def __init__(self) -> None:
        self.upstream: Upstream | None = None
        self.runs: list[int] = []
        self.torn_down: list[int] = []
        self.may_go = asyncio.Event()
        self.may_go.set()
        self._coming: asyncio.Queue[FreeholdError | None] = asyncio.Queue()
        self._codes: asyncio.Queue[int] = asyncio.Queue()

    def come_up(self) -> None:
        self._coming.put_nowait(None)

    def fail(self, error: FreeholdError) -> None:
        self._coming.put_nowait(error)

    def end(self, code: int = 9) -> None:
        self._codes.put_nowait(code)

    async def bring_up(self, run: int) -> None:
        self.runs.append(run)
        if error := await self._coming.get():
            raise error
        self.upstream = Upstream(f"unix:/nowhere/{run}.sock")

    async def ended(self) -> int:
        return await self._codes.get()

    async def measure(self) -> None:
        pass

    async def metrics(self) -> bytes:
        raise EngineFailed("it has no counters")

    async def tear_down(self) -> None:
        self.upstream = None
        await self.may_go.wait()
        self.torn_down.append(self.runs[-1])


class Stage:
    """One replica, `demo`, and everything around it."""

    def __init__(self, folder: Path, *, drain_seconds=PATIENCE_S, **endpoint) -> None:
        self.now_ns = BEGAN_NS
        self.book = Book(folder)
        self.ground = Ground(
            executor=None,
            book=self.book,
            occupancy=Occupancy("here", "EUR", 3600 * 10**12, BEGAN_NS),  # 10**12 pico a second
            clock_ns=lambda: self.now_ns,
            state=folder,
            run_dir=folder,
            log_dir=folder,
        )
        self.start = FakeStart()
        settings = Endpoint(
            weights="demo.gguf", **{"idle_seconds": 0, "parallel": 1000, "wait_seconds": PATIENCE_S, **endpoint}
        )
        self.route = Route("demo", settings, None, self.start.engine)
        self.replica = Replica("demo", self.route, self.start, self.ground, drain_seconds)
        self.route.join(self.replica)
        self.owner = asyncio.create_task(self.replica.own())
        self.news: asyncio.Queue[Event] = asyncio.Queue()
        self.ground.listeners.add(self.news)

    def pass_s(self, seconds: float) -> None:
        self.now_ns += round(seconds * SECOND_NS)

    @property
    def state(self) -> str:
        return self.replica.status().state

    async def told(self, kind: str) -> Event:
        """The next event of this kind."""
        async with asyncio.timeout(PATIENCE_S):
            while (event := await self.news.get()).kind != kind:
                pass
        return event

    async def read(self) -> None:
        """Until the owner has taken every note there is, and whatever follows from them has had its turn."""
        while not self.replica._inbox.empty():  # noqa: ASYNC110  the owner tells nobody
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)

    async def waiting(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.replica.status().waiting != count:  # noqa: ASYNC110  nor here
                await asyncio.sleep(0)

    def call(self, **more) -> asyncio.Task[Hold]:
        return asyncio.create_task(self.route.hold(**more))

    def take(self) -> Hold | None:
        """Held without waiting, if it is ready."""
        return self.replica.hold(_Waiter()) if self.replica.usable else None

    async def ready(self) -> Hold:
        """Held, on a run that has just come up."""
        calling = self.call()
        await self.told("replica.starting")
        self.start.come_up()
        return await calling

    async def close(self) -> None:
        self.start.may_go.set()
        self.owner.cancel()
        await asyncio.wait([self.owner])
        await self.book.close()


@contextlib.asynccontextmanager
async def stage_in(folder: Path, **settings):
    stage = Stage(folder, **settings)
    try:
        yield stage
    finally:
        await stage.close()
