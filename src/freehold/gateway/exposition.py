"""The numbers of `metrics.py`, and the values of this moment, as Prometheus reads them.

Names come from OpenTelemetry's conventions for generative AI where these have one, put into Prometheus' words by its
rules (dots become underscores, the unit is appended), else they begin with `freehold_`. `gen_ai.client.token.usage` is
that of conventions 1.41; their drafts since then count tokens as `freehold_tokens_total` does.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from operator import add
from typing import get_args

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from freehold import __version__
from freehold.fleet.fleet import Fleet
from freehold.gateway.limits import Limits
from freehold.gateway.metrics import DURATION_S, FIRST_TOKEN_S, PER_TOKEN_S, TOKENS, WAIT_S, Labels, Metrics, Tally
from freehold.policy.lifecycle import State
from freehold.policy.price import machine_pico
from freehold.types import PICO_PER_UNIT, ReplicaStatus

_GEN_AI = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_response_model")
_OPERATIONS = {"completion": "text_completion", "embedding": "embeddings"}  # the others are called as we call them
_STATES = (*get_args(State), "stopped", "external")
_PLAIN = "text/plain; version=0.0.4; charset=utf-8"
_HEAD = re.compile(rb"^# .*\n", re.MULTILINE)
_SAMPLES = 200  # written at a time, in 2 ms
_OF_REPLICAS: tuple[tuple[str, str, Callable[[ReplicaStatus], float | None]], ...] = (
    ("requests_in_flight", "That a replica is held for.", lambda each: each.in_flight),
    ("replica_slots", "Requests it answers at once.", lambda each: each.slots),
    ("replica_circuit_open", "1: it does not answer.", lambda each: not each.answers),
    ("replica_last_start_seconds", "Until it was ready.", lambda each: each.last_start_s),
)
_OF_ENGINES = (
    ("requests_running", "That it computes, as it says itself.", "running"),
    ("requests_waiting", "In its own queue.", "waiting"),
    ("kv_cache_ratio", "Of its KV cache that is in use.", "kv_usage"),
)
_COUNTED_BY_ENGINES = (
    ("prefix_asked_tokens", "That it looked for in its prefix cache.", "prefix_asked"),
    ("prefix_hit_tokens", "That it found there.", "prefix_hit"),
    ("drafted_tokens", "Guessed by speculative decoding.", "drafted"),
    ("accepted_tokens", "Guessed right.", "accepted"),
)
_PARTS = ("weight", "kv", "compute", "graph", "total")
_Row = tuple[tuple[str, ...], list[int], float]  # label values, counts by bucket, sum


class _Only(Collector):
    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> tuple[Metric]:
        return (self._family,)


class Exposition:
    """Made once. It reads in the event loop, whose all of this is."""

    def __init__(self, metrics: Metrics, fleet: Fleet, limits: Limits) -> None:
        self._metrics, self._fleet, self._limits = metrics, fleet, limits
        self._began_ns = fleet.ground.clock_ns()
        self._process = ProcessCollector(registry=None)

    async def answer(self, _: Request) -> Response:
        """The page in Prometheus' own text format. Writing it takes 10 µs a line, so requests go on in between."""
        pieces = []
        for family in self.collect():
            samples = family.samples
            for at in range(0, len(samples) or 1, _SAMPLES):
                family.samples = samples[at : at + _SAMPLES]
                piece = generate_latest(_Only(family))
                pieces.append(_HEAD.sub(b"", piece) if at else piece)
                await asyncio.sleep(0)
        return Response(b"".join(pieces), headers={"content-type": _PLAIN})

    def collect(self) -> Iterator[Metric]:
        tallies = [(Labels(*labels), tally) for labels, tally in self._metrics.tallies.items()]
        yield from _latencies(tallies)
        yield from _requests(tallies)
        yield from self._money(tallies)
        yield _counter(
            "refused_requests", "Turned away before they had a record.", "error_type", self._metrics.refusals
        )
        yield _counter("limits_hit", "Requests that ran into a limit.", "limit", self._limits.times)
        replicas = self._fleet.status()
        yield from _replicas(replicas)
        yield from _engines(replicas)
        yield from self._ledger()
        yield InfoMetricFamily("freehold_build", "What runs here.", {"version": __version__})
        yield from self._process.collect()

    def _money(self, tallies: Sequence[tuple[Labels, Tally]]) -> Iterator[Metric]:
        machine = self._fleet.config.machine
        charged, served = Counter(), Counter()
        for labels, tally in tallies:
            charged[labels.endpoint, labels.group, machine.currency] += tally.charge_pico
            served[labels.endpoint, machine.currency] += tally.machine_pico
        yield _sums("charge", "By the price list.", ("endpoint", "group", "currency"), charged, PICO_PER_UNIT)
        text = "Of the machine's price, while it served requests."
        yield _sums("serving_cost", text, ("endpoint", "currency"), served, PICO_PER_UNIT)
        lasted_ns = self._fleet.ground.clock_ns() - self._began_ns
        cost = {(machine.name, machine.currency): machine_pico(machine.pico_per_hour, lasted_ns)}
        text = "Of the machine since the daemon's start, used or not."
        yield _sums("machine_cost", text, ("machine", "currency"), cost, PICO_PER_UNIT)

    def _ledger(self) -> Iterator[Metric]:
        book = self._fleet.ground.book
        for name, text, value in (
            ("requests_open", "In the journal, without an end yet.", book.journal.in_flight),
            ("journal_bytes", "Of the journal's segment.", book.journal.size_bytes),
            ("book_batches_waiting", "On their way into the book, of up to 200 rows.", book.batches_waiting),
            ("book_broken", "1: the book cannot be written.", book.broken),
        ):
            yield GaugeMetricFamily(f"freehold_{name}", text, value)


def metrics_app(exposition: Exposition) -> Starlette:
    """What answers at `server.metrics`."""
    return Starlette(routes=[Route("/metrics", exposition.answer, methods=["GET"])])


def _latencies(tallies: Sequence[tuple[Labels, Tally]]) -> Iterator[Metric]:
    every = [((*_gen_ai(labels), _error_type(labels)), tally) for labels, tally in tallies]
    good = [(_gen_ai(labels), tally) for labels, tally in tallies if labels.outcome == "ok"]
    of_endpoint = [((labels.endpoint,), tally) for labels, tally in tallies]
    for name, text, labels, rows, bounds, part in (
        ("gen_ai_server_request_duration", "From the request's arrival to its last byte.",
         (*_GEN_AI, "error_type"), every, DURATION_S, "duration"),
        ("gen_ai_server_time_to_first_token", "Streams that came to their end: to their first byte, waiting included.",
         _GEN_AI, good, FIRST_TOKEN_S, "first_token"),
        ("gen_ai_server_time_per_output_token", "Streams that came to their end: each token after the first.",
         _GEN_AI, good, PER_TOKEN_S, "per_token"),
        ("freehold_queue", "Until a replica was held.", ("endpoint",), of_endpoint, WAIT_S, "queue"),
        ("freehold_wake", "Of requests that found no replica up: until there was one.",
         ("endpoint",), of_endpoint, WAIT_S, "wake"),
    ):  # fmt: skip
        counted = ((values, getattr(tally, part), getattr(tally, f"{part}_ms") / 1e3) for values, tally in rows)
        yield _histogram(f"{name}_seconds", text, labels, bounds, counted)
    tokens = [((*labels, "input"), t.prompt, t.prompt_tokens) for labels, t in good]
    tokens += [((*labels, "output"), t.completion, t.completion_tokens) for labels, t in good]
    text = "Tokens of requests that came to their end."
    yield _histogram("gen_ai_client_token_usage", text, (*_GEN_AI, "gen_ai_token_type"), TOKENS, tokens)


def _requests(tallies: Sequence[tuple[Labels, Tally]]) -> Iterator[Metric]:
    requests, bounded, tokens = Counter(), Counter(), Counter()
    for labels, tally in tallies:
        status, operation = str(labels.status or ""), _OPERATIONS.get(labels.kind, labels.kind)
        requests[labels.endpoint, labels.replica, labels.group, operation, status, labels.outcome] += tally.requests
        bounded[labels.endpoint] += tally.lower_bound
        counts = (tally.prompt_tokens, tally.cached, tally.completion_tokens, tally.reasoning)
        for kind, count in zip(("input", "cached", "output", "reasoning"), counts, strict=True):
            tokens[labels.endpoint, labels.group, kind] += count
    names = ("endpoint", "replica", "group", "operation", "status", "outcome")
    yield _sums("requests", "That have a record, by what became of them.", names, requests)
    yield _counter("lower_bound_requests", "Cut: the engine produced at least what was counted.", "endpoint", bounded)
    text = "As they are charged; cached ones are part of input, reasoning of output."
    yield _sums("tokens", text, ("endpoint", "group", "type"), tokens)


def _replicas(replicas: Sequence[ReplicaStatus]) -> Iterator[Metric]:
    names = ("endpoint", "replica")
    waiting = GaugeMetricFamily("freehold_requests_waiting", "For a replica.", labels=["endpoint"])
    for endpoint in dict.fromkeys(each.endpoint for each in replicas):
        waiting.add_metric([endpoint], sum(each.waiting for each in replicas if each.endpoint == endpoint))
    yield waiting
    for name, text, value in _OF_REPLICAS:
        family = GaugeMetricFamily(f"freehold_{name}", text, labels=names)
        for each in replicas:
            if (said := value(each)) is not None:
                family.add_metric((each.endpoint, each.replica), said)
        yield family
    state = GaugeMetricFamily("freehold_replica_state", "1 for the state it is in.", labels=(*names, "state"))
    for each in replicas:
        for name in _STATES:
            state.add_metric((each.endpoint, each.replica, name), each.state == name)
    yield state
    yield _sums(
        "replica_starts", "Processes started.", names, {(each.endpoint, each.replica): each.run for each in replicas}
    )


def _engines(replicas: Sequence[ReplicaStatus]) -> Iterator[Metric]:
    """What engines say of themselves, as of the last reading, and what their last start took."""
    names = ("endpoint", "replica")
    said = {(each.endpoint, each.replica): each.signals for each in replicas if each.signals}
    for name, text, field in _OF_ENGINES:
        family = GaugeMetricFamily(f"freehold_engine_{name}", text, labels=names)
        for replica, signals in said.items():
            if (now := getattr(signals, field)) is not None:
                family.add_metric(replica, now)
        yield family
    for name, text, field in _COUNTED_BY_ENGINES:
        yield _sums(f"engine_{name}", text, names, {of: getattr(signals, field) for of, signals in said.items()})
    for figure, text in (("predicted", "By the plan of its last start."), ("measured", "At its last start.")):
        family = GaugeMetricFamily(f"freehold_replica_{figure}_bytes", text, labels=(*names, "part"))
        for each in replicas:
            for part in _PARTS:
                if (size := getattr(getattr(each, figure), f"{part}_bytes", None)) is not None:
                    family.add_metric((each.endpoint, each.replica, part), size)
        yield family


def _gen_ai(labels: Labels) -> tuple[str, ...]:
    operation = _OPERATIONS.get(labels.kind, labels.kind)
    return operation, "freehold", labels.asked or labels.endpoint, labels.endpoint


def _error_type(labels: Labels) -> str:
    """The status, where there is one to tell it by: the record has no more."""
    if labels.outcome == "error":
        return str(labels.status) if labels.status >= 400 else "engine_failed"  # it broke off in the middle
    return "cut" if labels.outcome == "cut" else ""


def _counter(name: str, text: str, label: str, counts: Counter[str]) -> Metric:
    return _sums(name, text, (label,), {(value,): count for value, count in counts.items()})


def _sums(name: str, text: str, labels: Sequence[str], sums: dict[tuple[str, ...], int], unit: int = 1) -> Metric:
    family = CounterMetricFamily(f"freehold_{name}", text, labels=labels)
    for values, amount in sums.items():
        family.add_metric(values, amount / unit)
    return family


def _histogram(name: str, text: str, labels: Sequence[str], bounds: Sequence[float], rows: Iterable[_Row]) -> Metric:
    """Rows with the same labels are added up; one in which nothing was counted is left out."""
    added: dict[tuple[str, ...], tuple[list[int], float]] = {}
    for values, counts, total in rows:
        if any(counts):
            before = added.get(values)
            added[values] = (list(map(add, before[0], counts)), total + before[1]) if before else (counts, total)
    family = HistogramMetricFamily(name, text, labels=labels)
    ends = [floatToGoString(bound) for bound in (*bounds, float("inf"))]
    for values, (counts, total) in added.items():
        family.add_metric(values, list(zip(ends, accumulate(counts), strict=True)), total)
    return family
