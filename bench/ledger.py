"""What the ledger costs a request: both lines of the journal, the record as JSON, its row and its seal.

An event loop is kept busy in the same process, as the gateway's is: each turn takes some requests, and works for as
long as the rest of the gateway would. The CPU time of all threads counts, less the same turns without a ledger.
"""

import argparse
import asyncio
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median, quantiles

from figures import keep

from freehold.ledger.book import Book
from freehold.types import Price, UsageRecord

PRICE = Price(prompt_pico_per_token=150_000, completion_pico_per_token=600_000)


def a_record(number: int) -> UsageRecord:
    return UsageRecord(
        request=f"req-{number:024x}", key="0a1b2c3d4e5f", endpoint="demo", kind="chat", stream=True,
        started_ns=time.time_ns(), group="research", held_tokens=4096, held_pico=2_457_600_000,
    )  # fmt: skip


def fill(record: UsageRecord) -> None:
    record.status, record.outcome, record.prompt_tokens, record.completion_tokens = 200, "ok", 120, 256
    record.queue_ms, record.first_byte_ms, record.total_ms = 0.021, 12.5, 812.3
    record.charge_pico, record.machine_pico, record.held_tokens, record.held_pico = 171_600_000, 99_999, 0, 0
    record.replica, record.run, record.policy = "demo-1", 3, "country DE"


class Gateway:
    """As far as it matters here: `each` requests a turn, every one settled as soon as it may be."""

    def __init__(self, book: Book | None, each: int, work_us: float) -> None:
        self.book, self.each, self.work_s = book, each, each * work_us / 1e6
        self.waits_s: list[float] = []  # from opening until it may go on
        self.turns_s: list[float] = []
        self.worked_s = 0.0  # CPU
        self.settled = 0
        self.more = asyncio.Event()

    def take(self, number: int) -> None:
        record, began_s = a_record(number), time.perf_counter()
        if self.book:
            self.book.open_request(record, partial(self.opened, record, began_s), PRICE)
        else:
            self.opened(record, began_s, None)

    def opened(self, record: UsageRecord, began_s: float, error: Exception | None) -> None:
        assert error is None
        self.waits_s.append(time.perf_counter() - began_s)
        fill(record)
        if self.book:
            self.book.settle_request(record, None, self.done)
        else:
            self.done(None)

    def done(self, error: Exception | None) -> None:
        assert error is None
        self.settled += 1
        self.more.set()

    def work(self) -> None:
        began_s = time.thread_time()
        while time.thread_time() - began_s < self.work_s:
            sum(range(200))
        self.worked_s += time.thread_time() - began_s

    async def serve(self, requests: int) -> None:
        for first in range(0, requests, self.each):
            began_s = time.perf_counter()
            for number in range(first, first + self.each):
                self.take(number)
            self.work()
            await asyncio.sleep(0)
            await self.until(first)  # at most two turns' requests are under way
            self.turns_s.append(time.perf_counter() - began_s)
        await self.until(requests)

    async def until(self, settled: int) -> None:
        while self.settled < settled:
            self.more.clear()
            await self.more.wait()


async def cpu(folder: Path | None, args: argparse.Namespace, *, power_loss: bool = False) -> dict:
    book = Book(folder, power_loss=power_loss) if folder else None
    gateway = Gateway(book, args.each, args.work_us)
    began_s, process_s, thread_s = time.perf_counter(), time.process_time(), time.thread_time()
    await gateway.serve(args.requests)
    lasted_s = time.perf_counter() - began_s
    if book:
        await book.flush()
    all_s = time.process_time() - process_s
    loop_s = time.thread_time() - thread_s
    if book:
        await book.close()
    return {
        "all_us": (all_s - gateway.worked_s) / args.requests * 1e6,
        "loop_us": (loop_s - gateway.worked_s) / args.requests * 1e6,
        "per_s": args.requests / lasted_s,
        "wait_ms": [median(gateway.waits_s) * 1e3, quantiles(gateway.waits_s, n=100)[98] * 1e3],
        "turn_ms": [median(gateway.turns_s) * 1e3, quantiles(gateway.turns_s, n=1000)[998] * 1e3],
        "longest_turn_ms": max(gateway.turns_s) * 1e3,
    }


def measure(args: argparse.Namespace, *, power_loss: bool) -> dict:
    """The best of some runs: what the machine's other work adds is not the ledger's."""
    found = []
    for _ in range(args.runs):
        bare = asyncio.run(cpu(None, args))
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            with_it = asyncio.run(cpu(Path(folder), args, power_loss=power_loss))
        whole, loop = with_it["all_us"] - bare["all_us"], with_it["loop_us"] - bare["loop_us"]
        found.append(
            {
                "cpu_us_a_request": round(whole, 2),
                "of_that_in_the_loop_us": round(loop, 2),
                "requests_per_s": round(with_it["per_s"]),
                "without_a_ledger_per_s": round(bare["per_s"]),
                "wait_until_opened_ms_p50_p99": [round(ms, 3) for ms in with_it["wait_ms"]],
                "turn_ms_p50_p999": [round(ms, 3) for ms in with_it["turn_ms"]],
                "longest_turn_ms": round(with_it["longest_turn_ms"], 2),
                "longest_turn_without_ms": round(bare["longest_turn_ms"], 2),
            }
        )
    return min(found, key=lambda run: run["cpu_us_a_request"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=120_000)
    parser.add_argument("--each", type=int, default=16, help="requests in one turn of the loop")
    parser.add_argument("--work-us", type=float, default=10.0, help="what else is done for each of them")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", help="where the books are made; power-loss depends on that disk")
    args = parser.parse_args()
    args.requests -= args.requests % args.each
    found = {}
    for name, power_loss in (("crash", False), ("power-loss", True)):
        found[name] = measure(args, power_loss=power_loss)
        print(name, *(f"  {what:<30} {value}" for what, value in found[name].items()), sep="\n")
    keep("ledger", found)


if __name__ == "__main__":
    main()
