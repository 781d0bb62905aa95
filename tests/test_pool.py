"""The replicas of one endpoint, replaced one by one while anything else happens to them."""

import asyncio
import contextlib
import time
from types import SimpleNamespace

import pytest
from fake_start import BEGAN_NS, PATIENCE_S, FakeStart

from freehold.engines.llamacpp import LlamaCpp
from freehold.engines.vllm import Vllm
from freehold.errors import DoesNotFit, EngineFailed, NotReady
from freehold.fleet import pool as pool_module
from freehold.fleet import replica as replica_module
from freehold.fleet.cards import Cards
from freehold.fleet.config import Config, Endpoint
from freehold.fleet.fleet import Fleet
from freehold.fleet.ground import Ground
from freehold.fleet.hearing import Hearing
from freehold.fleet.occupancy import Occupancy
from freehold.fleet.pool import Pool
from freehold.fleet.roster import Alias, Version
from freehold.fleet.route import Route, _Waiter
from freehold.fleet.starting import Start
from freehold.ledger.book import Book
from freehold.ledger.report import cost, reading
from freehold.types import Adapter, Gpu


class Started(FakeStart):
    def __init__(self, name, *_) -> None:
        super().__init__()
        self.name, self.adapters = name, {}


class Floor:
    """One pool, `demo`, whose starts a test decides on, by the replica's name."""

    def __init__(self, folder, **endpoint) -> None:
        self.book = Book(folder)
        self.ground = Ground(
            executor=None, book=self.book, occupancy=Occupancy("here", "EUR", 3600 * 10**12, BEGAN_NS),
            clock_ns=lambda: self.now_ns, state=folder, run_dir=folder, log_dir=folder,
        )  # fmt: skip
        self.now_ns = BEGAN_NS
        settings = {"weights": "demo.gguf", "idle_seconds": 0, "wait_seconds": PATIENCE_S, **endpoint}
        self.route = Route("demo", Endpoint(**settings), None, LlamaCpp())
        self.pool = Pool(self.route, LlamaCpp(), (SimpleNamespace(), None), self.ground, PATIENCE_S)
        self.owner = asyncio.create_task(self.pool.own())

    @property
    def names(self) -> list[str]:
        return [replica.name for replica in self.pool.replicas]

    def start(self, name: str) -> Started:
        return next(replica.start for replica in self.pool.replicas if replica.name == name)

    def replica(self, name: str):
        return next(replica for replica in self.pool.replicas if replica.name == name)

    async def until(self, what) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not what():  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0)

    async def state(self, name: str, state: str) -> None:
        await self.until(lambda: name in self.names and self.replica(name).status().state == state)

    async def up(self) -> None:
        for name in self.names:
            self.start(name).come_up()
        await self.pool.up()

    def replace(self) -> asyncio.Task:
        return asyncio.create_task(self.pool.replace())


@contextlib.asynccontextmanager
async def floor_in(folder, **endpoint):
    floor = Floor(folder, **endpoint)
    try:
        yield floor
    finally:
        floor.owner.cancel()
        await asyncio.wait([floor.owner])
        await floor.book.close()


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setattr(pool_module, "Start", Started)


async def test_each_gets_a_successor_and_is_gone_when_its_last_request_is_answered(tmp_path):
    async with floor_in(tmp_path, replicas=2) as floor:
        await floor.up()
        hold = floor.replica("demo-1").hold(_Waiter())
        replacing = floor.replace()
        for new in ("demo-1+2", "demo-2+3"):
            await floor.state(new, "starting")
            assert new not in [member.name for member in floor.route.replicas]
            floor.start(new).come_up()
        await replacing
        assert [member.name for member in floor.route.replicas] == ["demo-1+2", "demo-2+3"]
        await floor.until(lambda: floor.names == ["demo-1", "demo-1+2", "demo-2+3"])  # one is being asked
        old = floor.start("demo-1")
        assert old.torn_down == []
        floor.route.release(hold, served=True)
        await floor.until(lambda: floor.names == ["demo-1+2", "demo-2+3"])
        assert old.torn_down == [1]


async def test_a_successor_that_does_not_start_changes_nothing(tmp_path):
    async with floor_in(tmp_path) as floor:
        await floor.up()
        replacing = floor.replace()
        await floor.state("demo+2", "starting")
        floor.start("demo+2").fail(DoesNotFit("too large"))
        with pytest.raises(DoesNotFit, match="too large"):
            await replacing
        assert floor.names == ["demo"]
        assert floor.replica("demo").usable


async def test_a_successor_with_less_context_takes_nobodys_place(tmp_path):
    async with floor_in(tmp_path) as floor:
        await floor.up()
        replacing = floor.replace()
        await floor.state("demo+2", "starting")
        floor.start("demo+2").context = 256
        floor.start("demo+2").come_up()
        with pytest.raises(DoesNotFit, match="a context of 256 tokens, not 512"):
            await replacing
        assert floor.names == ["demo"]


async def test_what_its_operator_stops_stays_stopped(tmp_path):
    async with floor_in(tmp_path) as floor:
        await floor.up()
        replacing = floor.replace()
        await floor.state("demo+2", "starting")
        floor.route.post("stop")
        floor.start("demo+2").come_up()
        with pytest.raises(NotReady, match="stopped by its operator"):
            await replacing
        assert floor.names == ["demo"]
        with pytest.raises(NotReady, match="stopped by its operator"):
            await floor.route.hold()


async def test_one_that_crashes_while_it_is_replaced_is_replaced(tmp_path):
    async with floor_in(tmp_path) as floor:
        await floor.up()
        replacing = floor.replace()
        await floor.state("demo+2", "starting")
        floor.start("demo").end()
        await floor.until(lambda: floor.start("demo").torn_down)
        floor.start("demo+2").come_up()
        await replacing
        await floor.until(lambda: floor.names == ["demo+2"])


async def test_one_that_sleeps_is_not_replaced(tmp_path):
    async with floor_in(tmp_path) as floor:
        await floor.pool.replace()
        assert floor.names == ["demo"]
        assert floor.start("demo").runs == []


async def test_up_does_not_wait_for_a_successor(tmp_path):
    async with floor_in(tmp_path) as floor:
        await floor.up()
        replacing = floor.replace()
        await floor.state("demo+2", "starting")
        async with asyncio.timeout(PATIENCE_S):
            await floor.pool.up()
        floor.start("demo+2").come_up()
        await replacing


@pytest.mark.parametrize("doing", ["up", "replace"])
async def test_the_daemon_ends_meanwhile(tmp_path, doing):
    async with floor_in(tmp_path) as floor:
        if doing == "replace":
            await floor.up()
        last = "demo" if doing == "up" else "demo+2"
        waiting = asyncio.create_task(getattr(floor.pool, doing)())
        await floor.state(last, "starting")
        starts = [replica.start for replica in floor.pool.replicas]
        floor.owner.cancel()
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(NotReady, match="shutting down"):
                await waiting
        await asyncio.wait([floor.owner])
        assert [start.torn_down for start in starts] == [[1]] * len(starts)
        with pytest.raises(NotReady, match="shutting down"):  # who comes later waits for nothing either
            await floor.replica("demo").come_up()


def version(name: str) -> Alias:
    adapter = Adapter(name=f"{name}@1-dddddddd", path=f"/a/{name}.gguf")
    return Alias(
        current=Version(
            name=name, number=1, adapter=adapter, source="", source_digest="", base_digest="",
            **({"added_ns": 0} if "added_ns" in Version.__struct_fields__ else {}),
        )
    )  # fmt: skip


def asker(adapter: str) -> _Waiter:
    waiter = _Waiter()
    waiter.adapter = adapter
    return waiter


async def test_who_waits_for_an_adapter_that_no_replica_gets_any_more_is_told(tmp_path):
    async with floor_in(tmp_path) as floor:
        alias = version("german")
        floor.route.roster.aliases["german"] = alias
        waits = asker(alias.current.adapter.name)
        assert floor.route.place(waits) is None
        del floor.route.roster.aliases["german"]  # removed before the replica is up
        await floor.up()
        assert waits.told.done()
        with pytest.raises(NotReady, match="not this version"):
            await waits.told
        with pytest.raises(NotReady):
            floor.route.place(asker(alias.current.adapter.name))


async def test_who_asks_for_a_removed_adapter_gets_it_where_it_still_is(tmp_path):
    async with floor_in(tmp_path, parallel=1) as floor:
        await floor.up()
        floor.start("demo").adapters["german@1-dddddddd"] = {}
        first = floor.route.place(asker("german@1-dddddddd"))
        second = asker("german@1-dddddddd")
        assert floor.route.place(second) is None
        assert not second.told.done()
        floor.route.release(first, served=True)
        assert (await second.told).replica.name == "demo"


@pytest.mark.parametrize("value", ["1e300", "1e308\nllamacpp:prompt_tokens_total 1e308", "inf", "nan", "-1e19"])
async def test_an_engine_that_counts_nonsense_harms_nobody(tmp_path, value):
    async with floor_in(tmp_path) as floor:
        await floor.up()

        async def metrics() -> bytes:
            return f"llamacpp:prompt_tokens_total {value}\nllamacpp:tokens_predicted_total 3\n".encode()

        floor.start("demo").metrics = metrics
        await floor.replica("demo").save_counts()
        await floor.book.flush()
        assert not floor.book.broken


async def test_a_replica_and_its_successor_are_one_in_the_account(tmp_path):
    async with floor_in(tmp_path) as floor:
        await floor.up()
        floor.now_ns += 10**9
        replacing = floor.replace()
        await floor.state("demo+2", "starting")
        floor.now_ns += 10**9 + 1
        floor.start("demo+2").come_up()
        await replacing
        await floor.until(lambda: floor.names == ["demo+2"])
        floor.now_ns += 10**9 + 3
        floor.book.save_occupancy(*floor.ground.occupancy.take(floor.now_ns))
        await floor.book.flush()
        with reading(tmp_path) as db:
            found = cost(db)
        assert {row["endpoint"] for row in found["occupancy"]} <= {"demo", ""}
        assert (found["difference_pico"], found["machine_pico"]) == (0, 3 * 10**12 + 4000)


def gpu(number: int, name: str, free: int = 1) -> Gpu:
    return Gpu(name=name, memory_bytes=free, free_bytes=free, node=f"/dev/nvidia{number}")


def test_cards_of_one_kind_are_found_beside_a_lonely_one():
    cards = Cards()
    gpus = [gpu(0, "large", 9), gpu(1, "small", 2), gpu(2, "small", 3)]
    assert [each.node for each in cards.take("a", 2, gpus)] == ["/dev/nvidia2", "/dev/nvidia1"]
    with pytest.raises(DoesNotFit, match=r"2 cards of one kind, and 1 are free \(3 in this machine, 2 of them"):
        cards.take("b", 2, gpus)
    cards.give("a")
    assert len(cards.take("b", 2, gpus)) == 2


async def test_a_second_attempt_hears_nothing_of_the_first(tmp_path):
    async with floor_in(tmp_path, context="auto") as floor:
        start = Start("demo+2", LlamaCpp(), floor.route, (SimpleNamespace(digest=""), None), floor.ground)
        assert start._log == tmp_path / "demo.log"
        tried = []

        async def attempt(hearing, limit=None) -> None:
            tried.append((hearing, limit))
            assert start._hearing is hearing  # whose stage is shown
            hearing.hear(b"said\n")
            if len(tried) == 1:
                error = DoesNotFit("too long")
                error.longest = 256
                raise error

        async def prepare() -> None: ...

        start._outfit.prepare, start._start = prepare, attempt
        await start.bring_up(1)
        (first, none), (second, limit) = tried
        assert (none, limit) == (None, 256)
        assert first is not second
        assert second.said == "said\n"


async def test_an_engine_that_has_ended_answers_with_no_adapter(tmp_path):
    async with floor_in(tmp_path) as floor:
        start = Start("demo", LlamaCpp(), floor.route, (SimpleNamespace(), None), floor.ground)
        with pytest.raises(EngineFailed, match="the engine of `demo` ended"):
            await start.answer_of(Adapter(name="german@1-dddddddd", path="/a"))


async def test_an_engine_that_goes_to_and_fro_does_not_fill_the_book(tmp_path):
    async with floor_in(tmp_path) as floor:
        told: asyncio.Queue = asyncio.Queue()
        floor.ground.listeners.add(told)
        hearing = Hearing(Vllm(), "demo", floor.ground)
        hearing.hear(b"Loading safetensors checkpoint shards:  50% Completed\nCapturing CUDA graphs: 10%\n" * 1000)
        assert told.qsize() == len(hearing.seconds | {hearing.now: 0}) == 2


async def test_engines_that_hang_are_asked_what_they_counted_at_the_same_time(tmp_path, monkeypatch):
    monkeypatch.setattr(replica_module, "COUNT_S", 0.3)
    async with floor_in(tmp_path, replicas=4) as floor:
        await floor.up()
        for name in floor.names:
            floor.start(name).metrics = asyncio.Event().wait
        fleet = Fleet(Config(), floor.ground)
        fleet._pools["demo"] = floor.pool
        began_s = time.monotonic()
        await fleet.save_counts(final=True)
        assert time.monotonic() - began_s < 2 * 0.3
