"""How fast engines answered, by the requests that were metered: a measurement that asks for nothing to be written."""

from __future__ import annotations

import sqlite3
from bisect import bisect
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import NamedTuple

from freehold.ledger.sql import EDITION, QUERIES
from freehold.plan.performance import Estimate, Pace, Performance, level

REQUESTS = 3000  # looked at, the newest: so many are read in some 15 ms
RUNS = 1000
LEAST = 20  # at about the same concurrency, or it is no measurement
MOST = 500  # of them, the newest
WRITTEN = 8  # tokens of an answer, at least: of a shorter one the gaps say little


class Run(NamedTuple):
    """One engine process, as the book's table `measurement` has its start."""

    at_ns: int
    endpoint: str
    replica: str
    run: int
    model: str
    catalogue: str
    scheme: str
    engine: str
    engine_version: str
    options: str
    card: str
    host: str
    tp: int
    pp: int

    @property
    def key(self) -> tuple[str | int, ...]:
        """What makes it as fast as another run. What it is called does not."""
        return self[4:]


class Request(NamedTuple):
    """One that was served, as the book's table `usage` has it."""

    endpoint: str
    replica: str
    run: int
    started_ns: int
    queue_ms: float
    first_byte_ms: float | None
    total_ms: float
    prompt_tokens: int
    completion_tokens: int
    fit: int  # a whole stream of one answer: it says how fast tokens came

    @property
    def span_ns(self) -> tuple[int, int]:
        """While an engine had it: not while it waited for one."""
        return self.started_ns + int(self.queue_ms * 1e6), self.started_ns + int(self.total_ms * 1e6)

    @property
    def tells(self) -> bool:
        whole = self.fit and self.completion_tokens >= WRITTEN and ":" not in self.endpoint  # else of an adapter
        return bool(whole) and self.first_byte_ms is not None and self.total_ms > self.first_byte_ms


def paces(db: sqlite3.Connection) -> list[Pace]:
    """By model, engine, cards and concurrency, the newest first; none of a book that another edition wrote."""
    if db.execute("pragma user_version").fetchone()[0] != EDITION:
        return []
    boots = [row[0] for row in db.execute(QUERIES["boots"])]
    runs: dict[tuple[int, str, str, int], Run] = {}
    for row in db.execute(QUERIES["newest_runs"], (RUNS,)):
        start = Run(*row)
        runs[bisect(boots, start.at_ns), start.endpoint, start.replica, start.run] = start
    served: dict[Run, list[Request]] = {}
    for row in db.execute(QUERIES["newest_requests"], (REQUESTS,)):
        request = Request(*row)
        base = request.endpoint.partition(":")[0]
        if run := runs.get((bisect(boots, request.started_ns), base, request.replica, request.run)):
            served.setdefault(run, []).append(request)
    return list(_paces(served))


def crowds(spans: Sequence[tuple[int, int]]) -> list[float]:
    """With how many it was under way on average, itself included: for each of the spans of time."""
    area, level, before, until = 0, 0, 0, {}
    for at, step in sorted([(first, 1) for first, _ in spans] + [(last, -1) for _, last in spans]):
        area += level * (at - before)
        level, before, until[at] = level + step, at, area
    return [(until[last] - until[first]) / (last - first) if last > first else 1.0 for first, last in spans]


def _paces(served: dict[Run, list[Request]]) -> Iterator[Pace]:
    levels: dict[tuple, list[tuple[Run, Request, float]]] = {}
    for run, requests in served.items():
        crowd = crowds([each.span_ns for each in requests])
        for request, many in zip(requests, crowd, strict=True):
            if request.tells:
                levels.setdefault((run.key, level(many)), []).append((run, request, many))
    for (_, concurrency), found in sorted(levels.items(), key=lambda item: -max(r.started_ns for _, r, _ in item[1])):
        newest = sorted(found, key=lambda each: -each[1].started_ns)[:MOST]
        if len(newest) >= LEAST:
            run = newest[0][0]
            yield Pace(
                **{name: getattr(run, name) for name in Pace.__struct_fields__[:-3]},
                prompt_tokens=median(request.prompt_tokens for _, request, _ in newest),
                completion_tokens=median(request.completion_tokens for _, request, _ in newest),
                performance=_performance(concurrency, newest),
            )


def _performance(concurrency: int, found: list[tuple[Run, Request, float]]) -> Performance:
    """TTFT without the time a request waited for an engine; a token's time without that of the first."""
    firsts, gaps, rates = [], [], []
    for _, request, many in found:
        assert request.first_byte_ms is not None  # noqa: S101  it tells
        firsts.append((request.first_byte_ms - request.queue_ms) / 1e3)
        gaps.append((request.total_ms - request.first_byte_ms) / (request.completion_tokens - 1) / 1e3)
        rates.append(many * request.completion_tokens / (request.total_ms - request.queue_ms) * 1e3)
    run, newest, _ = found[0]
    first, last = (_day(each.started_ns) for each in (found[-1][1], newest))
    prompts = round(median(request.prompt_tokens for _, request, _ in found))
    version, options = run.engine_version and f" {run.engine_version}", run.options and f" with {run.options}"
    return Performance(
        concurrency=concurrency,
        ttft_s=_estimate(firsts),
        tpot_s=_estimate(gaps),
        tokens_per_s=_estimate(rates),
        basis="measured",
        source=(
            f"{len(found)} requests of {', '.join(sorted({each.endpoint for each, _, _ in found}))} on {run.host}, "
            f"{first if first == last else f'{first} to {last}'}, {run.engine}{version}{options}, prompts of about "
            f"{prompts:,} tokens; the band holds 8 of 10"
        ),
    )


def _estimate(values: list[float]) -> Estimate:
    """The median, and from the 10th to the 90th percentile."""
    values = sorted(values)
    tenth = len(values) // 10
    return Estimate(value=median(values), low=values[tenth], high=values[-1 - tenth])


def _day(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns / 1e9, UTC).date().isoformat()
