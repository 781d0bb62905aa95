"""How fast one model answers on each place: as it was measured there, else as it is predicted, else unknown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from freehold.facts import Model
from freehold.plan import cpu_speed, serving
from freehold.plan.deployment import Place, busy_replicas, written_per_s
from freehold.plan.need import Need
from freehold.plan.params import Counts
from freehold.plan.performance import Estimate, Pace, Performance, Served, Unpredicted, find_pace
from freehold.plan.roofline import Work, work
from freehold.plan.serving import Traffic
from freehold.plan.weights import Split

_SPARE_CORES = 1  # that Freehold keeps from llama.cpp


class Setup(NamedTuple):
    """What of a deployment decides how fast it is, beside the load."""

    scheme: str
    split: Split
    place: Place
    gpu_layers: int  # llama.cpp; -1: vLLM


class Carried(NamedTuple):
    """How a load is carried."""

    busy: int  # replicas that it keeps busy
    at_once: int  # requests in each of them
    each: float | None  # tokens a second that one of these gets; None: nobody can say
    unsure: bool  # a speed or a load is asked for, and nobody can say


class Speeds:
    """Of one model, for one need. Answers are remembered: prices differ where speed does not."""

    def __init__(self, need: Need, model: Model, counts: Counts, paces: Sequence[Pace] = (), digest: str = "") -> None:
        self.need, self.model, self.counts = need, model, counts
        self._paces, self._digest = paces, digest
        self._works: dict[tuple[str, Split], Work] = {}
        self._found: dict[tuple[object, ...], Performance | Unpredicted] = {}

    def of(self, setup: Setup, concurrency: int) -> Performance | Unpredicted:
        """One replica that answers so many at once."""
        place = setup.place
        key = (setup.scheme, setup.split, place.card or place.memory, setup.gpu_layers, concurrency)
        if key not in self._found:
            predicted = self._predicted(setup, traffic_of(self.need, concurrency))
            self._found[key] = self._measured(setup, concurrency, predicted) or predicted
        return self._found[key]

    def carry(self, setup: Setup, share: int, slots: int, ceiling: float | None) -> Carried:
        """With at least `share` requests at once, as users ask, and at most `slots`, as long as each is fast enough.

        Where nobody can say how fast it is, the load keeps no fewer replicas busy than the ceiling allows.
        """
        need = self.need
        at_once = max(share, 1 << slots.bit_length() - 1) if need.requests_a_day else share
        found = self._known(setup, at_once)
        while found and at_once > share and 1 / found.tpot_s.value < need.speed:
            at_once = max(share, at_once // 2)
            found = self._known(setup, at_once)
        rate = need.rate or (found.tokens_per_s.value if found else ceiling and ceiling * at_once)
        busy = busy_replicas(need, rate)
        if found is None:
            return Carried(busy, share, None, unsure=bool(need.speed or not need.rate))
        return Carried(busy, self._enough(setup, busy, share, at_once), 1 / found.tpot_s.value, unsure=False)

    def _enough(self, setup: Setup, busy: int, share: int, most: int) -> int:
        """Requests at once that each of the replicas needs to carry its part, in steps of two."""
        asked, at_once = written_per_s(self.need) / busy, share
        while at_once < most and (found := self._known(setup, at_once)) and found.tokens_per_s.value < asked:
            at_once = min(most, 2 * at_once)
        return at_once

    def _known(self, setup: Setup, concurrency: int) -> Performance | None:
        found = self.of(setup, concurrency)
        return found if isinstance(found, Performance) else None

    def _measured(self, setup: Setup, concurrency: int, predicted: Performance | Unpredicted) -> Performance | None:
        """In proportion to what is predicted for prompts and answers as long as they were, where that can be said."""
        if setup.split.ep > 1:  # what is started here has no ranks with requests of their own
            return None
        card = setup.place.card.id if setup.place.card and setup.gpu_layers else ""
        engine = "vllm" if setup.gpu_layers < 0 else "llamacpp"
        served = Served(self.model.id, setup.scheme, engine, card, setup.split.tp, setup.split.pp)
        pace = find_pace(self._paces, served, self._digest, concurrency)
        if pace is None:
            return None
        then = Traffic(
            concurrency=pace.performance.concurrency,
            prompt_tokens=pace.prompt_tokens,
            completion_tokens=pace.completion_tokens,
        )
        asked, base = traffic_of(self.need, concurrency), self._predicted(setup, then)
        if isinstance(predicted, Unpredicted) or isinstance(base, Unpredicted):
            return pace.performance
        return scaled(pace, base, predicted, asked)

    def _predicted(self, setup: Setup, traffic: Traffic) -> Performance | Unpredicted:
        place = setup.place
        if setup.gpu_layers < 0:
            assert place.card is not None  # noqa: S101  vLLM is planned on cards only
            return serving.predict(self._work(setup), setup.scheme, place.card, traffic, slots=traffic.concurrency)
        if setup.gpu_layers:
            return Unpredicted(reason="llama.cpp on cards was never fitted")
        return cpu_speed.predict(self.model, self.counts, setup.scheme, place.memory, on_cpu(traffic, place))

    def _work(self, setup: Setup) -> Work:
        key = setup.scheme, setup.split
        if key not in self._works:
            self._works[key] = work(self.model, self.counts, setup.scheme, setup.split, self.need.kv_dtype)
        return self._works[key]


def on_cpu(traffic: Traffic, place: Place) -> cpu_speed.Work:
    """What is asked of llama.cpp on a machine."""
    return cpu_speed.Work(
        requests=round(traffic.concurrency),
        prompt_tokens=max(1, round(traffic.computed_tokens)),
        context_tokens=round(traffic.context),
        threads=max(1, (place.memory.cores if place.memory else 1) - _SPARE_CORES),
    )


def scaled(pace: Pace, then: Performance, now: Performance, asked: Traffic) -> Performance:
    """What was measured of one load, for another: times what is predicted for it over what was for the one measured."""

    def times(name: str) -> Estimate:
        measured, factor = getattr(pace.performance, name), getattr(now, name).value / getattr(then, name).value
        return Estimate(value=measured.value * factor, low=measured.low * factor, high=measured.high * factor)

    said = (
        f"{pace.performance.source}; in proportion, for prompts of {asked.prompt_tokens:,.0f} tokens and answers of "
        f"{asked.completion_tokens:,.0f}, of which {1 / now.tpot_s.value:,.3g} tokens/s of one request were predicted"
    )
    return Performance(
        concurrency=now.concurrency, ttft_s=times("ttft_s"), tpot_s=times("tpot_s"),
        tokens_per_s=times("tokens_per_s"), basis="measured", source=said,
    )  # fmt: skip


def traffic_of(need: Need, concurrency: int) -> Traffic:
    """As the need says, shortened in proportion where prompt and answer would not fit into the context."""
    share = min(1.0, need.context / (need.prompt_tokens + need.completion_tokens))
    return Traffic(
        concurrency=concurrency,
        prompt_tokens=need.prompt_tokens * share,
        completion_tokens=max(1.0, need.completion_tokens * share),
        prefix_hit=need.prefix_hit,
        draft_tokens=need.draft_tokens,
        acceptance=need.acceptance,
    )
