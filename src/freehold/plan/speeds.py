"""How fast one model answers on each place: as it was measured there, else as it is predicted, else unknown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from freehold.facts import Model
from freehold.plan import cpu_speed, serving
from freehold.plan.deployment import Place
from freehold.plan.need import Need
from freehold.plan.params import Counts
from freehold.plan.performance import Pace, Performance, Served, Unpredicted, find_pace
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
            self._found[key] = self._measured(setup, concurrency) or self._predicted(setup, concurrency)
        return self._found[key]

    def _measured(self, setup: Setup, concurrency: int) -> Performance | None:
        card = setup.place.card.id if setup.place.card and setup.gpu_layers else ""
        engine = "vllm" if setup.gpu_layers < 0 else "llamacpp"
        served = Served(self.model.id, setup.scheme, engine, card, setup.split.tp, setup.split.pp)
        return find_pace(self._paces, served, self._digest, concurrency)

    def _predicted(self, setup: Setup, concurrency: int) -> Performance | Unpredicted:
        traffic, place = traffic_of(self.need, concurrency), setup.place
        if setup.gpu_layers < 0:
            assert place.card is not None  # noqa: S101  vLLM is planned on cards only
            return serving.predict(self._work(setup), setup.scheme, place.card, traffic, slots=concurrency)
        if setup.gpu_layers:
            return Unpredicted(reason="llama.cpp on cards was never fitted")
        cores = place.memory.cores if place.memory else 1
        asked = cpu_speed.Work(
            requests=concurrency,
            prompt_tokens=max(1, round(traffic.prompt_tokens * (1 - traffic.prefix_hit))),
            context_tokens=round(traffic.context),
            threads=max(1, cores - _SPARE_CORES),
        )
        return cpu_speed.predict(self.model, self.counts, setup.scheme, place.memory, asked)

    def _work(self, setup: Setup) -> Work:
        key = setup.scheme, setup.split
        if key not in self._works:
            self._works[key] = work(self.model, self.counts, setup.scheme, setup.split, self.need.kv_dtype)
        return self._works[key]


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
