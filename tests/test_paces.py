"""How fast engines answered: from the requests in the book, by concurrency."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from freehold.ledger import paces, report
from freehold.ledger.book import Book
from freehold.ledger.paces import LEAST, MOST, crowds
from freehold.plan.deployment import Deployment
from freehold.plan.performance import Pace, find_pace
from freehold.types import Measurement, Stated, UsageRecord

MS = 10**6
START = Measurement(
    at_ns=0, endpoint="tiny", replica="tiny-1", run=3, engine="llamacpp", engine_version="0.2", model="d" * 64,
    catalogue="acme-1b", build="demo", scheme="gguf-f16", host="laptop", context=2048, parallel=4,
    predicted=Stated(), stated=Stated(),
)  # fmt: skip
DEPLOYMENT = Deployment(
    model="acme-1b", scheme="gguf-f16", native=True, engine="llamacpp", place="this machine", context=1, users=1,
    requests=1, longest=1, kv_tokens=1, sequences=1, weight_bytes=1, activation_bytes=1, usable_bytes=1, pool_bytes=1,
    block_bytes=1, request_blocks=1,
)  # fmt: skip
# 10 ms in the queue, 40 ms until the first token, then 20 more of 5 ms each
ONE = UsageRecord(
    request="", key="k", endpoint="tiny", kind="chat", stream=True, started_ns=0, status=200, outcome="ok",
    prompt_tokens=100, completion_tokens=21, queue_ms=10.0, first_byte_ms=50.0, total_ms=150.0, replica="tiny-1", run=3,
)  # fmt: skip


class Shop:
    """A book that is filled boot by boot."""

    def __init__(self, folder):
        self.folder, self.at_ns, self._count = folder, 0, 0

    async def boot(self, *starts: Measurement, records=(), ago_s: int = 0) -> None:
        """A daemon's life: engines that started, then requests, each so many ms after the beginning."""
        book = Book(self.folder)
        self.at_ns = time.time_ns() - ago_s * 10**9
        for start in starts:
            book.save_measurement(replace(start, at_ns=self.at_ns))
        for after_ms, record in records:
            self._count += 1
            started_ns = self.at_ns + int(after_ms * MS)
            full = replace(record, request=f"r{self._count}", started_ns=started_ns)
            book.open_request(full)
            book.settle_request(full)
        await book.close()

    def paces(self) -> list[Pace]:
        with report.reading(self.folder) as db:
            return paces.paces(db)


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


def alone(record=ONE, times=LEAST) -> list[tuple[float, UsageRecord]]:
    """One after the other."""
    return [(200.0 * n, record) for n in range(times)]


# -- concurrency -----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=12))
def test_the_crowd_is_the_mean_number_under_way(pairs):
    spans = [(first, first + length) for first, length in pairs]
    for (first, last), found in zip(spans, crowds(spans), strict=True):
        shared = sum(max(0, min(last, end) - max(first, begin)) for begin, end in spans)
        assert found == pytest.approx(shared / (last - first))


def test_a_span_of_no_length_is_alone():
    assert crowds([(5, 5), (0, 10)]) == [1.0, 1.0]


# -- from the book ---------------------------------------------------------------------------------------------------


async def test_times_are_those_of_the_engine_alone(shop):
    await shop.boot(START, records=alone())
    (pace,) = shop.paces()
    found = pace.performance
    assert (pace.model, pace.host, found.concurrency, found.basis) == ("d" * 64, "laptop", 1, "measured")
    assert found.ttft_s.value == pytest.approx(0.040)  # not the 10 ms in the queue
    assert found.tpot_s.value == pytest.approx(0.005)
    assert found.tokens_per_s.value == pytest.approx(21 / 0.140)
    assert found.source.startswith(f"{LEAST} requests of tiny on laptop, 20")
    assert "llamacpp 0.2, prompts of about 100 tokens" in found.source


async def test_the_band_leaves_out_a_tenth_at_each_end(shop):
    spread = [(200.0 * n, replace(ONE, total_ms=150.0 + n)) for n in range(40)]  # 5 ms a token, and 0.05 ms more each
    await shop.boot(START, records=spread)
    (pace,) = shop.paces()
    estimate = pace.performance.tpot_s
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((0.0052, 0.005975, 0.00675))


@pytest.mark.parametrize(
    "record",
    [
        replace(ONE, stream=False),
        replace(ONE, outcome="cut"),
        replace(ONE, kind="embedding"),
        replace(ONE, completion_tokens=7),
        replace(ONE, first_byte_ms=None),
        replace(ONE, endpoint="tiny:german"),
        replace(ONE, repeated_tokens=100),
        replace(ONE, run=4),
        replace(ONE, run=0),
        replace(ONE, replica="tiny-2"),
    ],
)
async def test_what_does_not_tell_is_not_counted(shop, record):
    await shop.boot(START, records=[*alone(times=LEAST - 1), (4000.0, record)])
    assert shop.paces() == []


async def test_who_does_not_tell_is_company_all_the_same(shop):
    silent = [(200.0 * n, replace(ONE, stream=False)) for n in range(LEAST)]
    await shop.boot(START, records=[*alone(), *silent])
    (pace,) = shop.paces()
    assert pace.performance.concurrency == 2
    assert pace.performance.tokens_per_s.value == pytest.approx(2 * 21 / 0.140)


async def test_a_run_is_one_of_its_daemon(shop):
    """Runs count from 1 with each daemon."""
    other = replace(START, model="e" * 64, catalogue="acme-2b")
    await shop.boot(START, records=alone(), ago_s=3600)
    await shop.boot(other, records=alone(replace(ONE, total_ms=250.0)))
    new, old = shop.paces()
    assert (new.model, new.performance.tpot_s.value) == ("e" * 64, pytest.approx(0.010))
    assert (old.model, old.performance.tpot_s.value) == ("d" * 64, pytest.approx(0.005))


async def test_the_newest_count(shop):
    slow, fast = replace(ONE, total_ms=250.0), [(300.0 * (n + 30), ONE) for n in range(MOST)]
    await shop.boot(START, records=[*((300.0 * n, slow) for n in range(30)), *fast])
    (pace,) = shop.paces()
    assert pace.performance.source.startswith(f"{MOST} requests")
    assert pace.performance.tpot_s.high == pytest.approx(0.005)


async def test_a_book_of_another_edition_says_nothing(shop):
    import sqlite3

    await shop.boot(START, records=alone())
    with closing(sqlite3.connect(shop.folder / "book.db")) as db:
        db.execute("pragma user_version = 4")
    assert shop.paces() == []


@pytest.mark.parametrize(
    ("change", "digest", "concurrency", "found"),
    [
        ({}, "", 1, True),
        ({}, "d" * 64, 1, True),
        ({"model": "a file"}, "d" * 64, 1, True),
        ({}, "", 2, False),
        ({}, "e" * 64, 1, False),
        ({"model": "acme-2b"}, "", 1, False),
        ({"scheme": "gguf-q4_k_m"}, "", 1, False),
        ({"engine": "vllm"}, "", 1, False),
        ({"card": "L4"}, "", 1, False),
        ({"tp": 2}, "", 1, False),
    ],
)
async def test_a_pace_is_of_the_same_model_engine_cards_and_concurrency(shop, change, digest, concurrency, found):
    await shop.boot(START, records=alone())
    one = find_pace(shop.paces(), replace(DEPLOYMENT, **change), digest, concurrency)
    assert bool(one) == found


# -- of real processes -----------------------------------------------------------------------------------------------


def test_a_daemon_leaves_what_is_needed(team):
    """The fake engine writes a token every 4 ms, whoever else asks."""
    team.write(demo=team.fake("parallel = 4"))
    team.serve()
    team.up("demo")

    def ask(_) -> None:
        assert b"[DONE]" in team.post("demo", "@@n=20,us=4000", stream=True).read()

    for _ in range(LEAST):
        ask(0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(2 * LEAST)))
    team.until(lambda: team.events("engine.measured"))
    team.daemon.ask("POST", "/flush")
    with report.reading(team.state) as db:
        found = {pace.performance.concurrency: pace.performance for pace in paces.paces(db)}
    assert {1, 4} <= found.keys()
    for each in found.values():
        assert 0.0038 < each.tpot_s.low <= each.tpot_s.value < 0.02
        assert each.tokens_per_s.value == pytest.approx(each.concurrency / each.tpot_s.value, rel=0.5)
    assert "requests of demo on" in found[1].source
