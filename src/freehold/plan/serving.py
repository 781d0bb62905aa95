"""How fast a deployment answers: requests in a closed loop on the steps of plan/roofline.py, with a band."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from freehold.errors import Unknown
from freehold.facts import Card
from freehold.plan.fitted import FITTED
from freehold.plan.performance import STRANGE, Performance, Unpredicted
from freehold.plan.roofline import Look, Machine, Step, Work, generation_of, look


class Traffic(Struct, frozen=True, kw_only=True):
    """What one replica is asked at the same time."""

    concurrency: float  # requests, each followed by the next
    prompt_tokens: float
    completion_tokens: float
    prefix_hit: float = 0.0  # share of the prompt that is in the cache already
    draft_tokens: int = 0  # guessed a step
    acceptance: float = 0.0  # of each guess, where those before it were right

    @property
    def context(self) -> float:
        """Tokens that are looked back at, halfway through an answer."""
        return self.prompt_tokens + self.completion_tokens / 2

    @property
    def tokens_a_step(self) -> float:
        """1 + a + a^2 + ... + a^k of k guesses: Leviathan et al. 2023, equation 1."""
        return sum(self.acceptance**n for n in range(self.draft_tokens + 1))


class Timing(NamedTuple):
    """Of requests in a loop, in seconds: what is seen of it, and what it is made of."""

    ttft_s: float
    tpot_s: float
    tokens_per_s: float  # of all requests together
    step: Step
    prompt_s: float  # to compute one prompt
    running: float  # requests of one rank
    at_once: float  # of them, that write at the same moment on one card: the others' prompts are computed
    written_s: float  # for a whole answer after its first token


def loop(machine: Machine, first: tuple[float, float], traffic: Traffic, slots: float) -> Timing:
    """As many requests as `concurrency`, each followed by the next, of which `slots` run and the others wait.

    While a request writes, the prompts of others are computed in between: as many as there are others, less those that
    fall into its own wait for the first token. How long that takes decides how many write at the same time.
    """
    split = machine.work.split
    running = max(1.0, min(traffic.concurrency, slots) / split.ep)
    prompt = machine.prefill(max(1.0, traffic.prompt_tokens * (1 - traffic.prefix_hit)))
    seen, written = look(machine.work, traffic.context), _Written(running, running)
    for _ in range(3):
        written = _write(machine, seen, traffic, prompt, written)
    step, cycle = written.step, written.seconds + prompt + written.step.seconds
    first_ms, queue = first
    ttft = first_ms / 1e3 + step.seconds + prompt * (1 + queue * (running - 1))
    if traffic.concurrency > slots:  # the others wait until one of those running is done
        ttft += (traffic.concurrency / slots - 1) * (written.seconds + prompt)
    return Timing(
        ttft_s=ttft,
        tpot_s=written.seconds / traffic.completion_tokens,
        tokens_per_s=running * split.ep * traffic.completion_tokens / cycle,
        step=step,
        prompt_s=prompt,
        running=running,
        at_once=written.at_once,
        written_s=written.seconds,
    )


class _Written(NamedTuple):
    """An answer under way: of `running` requests so many write at the same moment."""

    running: float
    writing: float
    at_once: float = 1.0  # on one card
    step: Step = Step(0, 0, 0, 0, 0, 0)
    seconds: float = 0.0


def _write(machine: Machine, seen: Look, traffic: Traffic, prompt: float, last: _Written) -> _Written:
    """What it takes with as many writing at the same moment as last time, and how many those are then."""
    pp, running = machine.work.split.pp, last.running
    at_once = max(1.0, last.writing / pp)  # a pipeline works on as many parts at the same time
    step = machine.decode(seen, at_once, 1 + traffic.draft_tokens)
    alone = written = max(1.0, traffic.completion_tokens / traffic.tokens_a_step) * step.seconds
    for _ in range(4):
        written = alone + (running - 1) * prompt / pp * written / (written + prompt + step.seconds)
    return _Written(running, running * written / (written + prompt + step.seconds), at_once, step, written)


def predict(
    work: Work, scheme: str, card: Card, traffic: Traffic, *, slots: float, engine: str = "vllm"
) -> Performance | Unpredicted:
    """One replica that runs up to `slots` requests at once; or why nobody can say."""
    generation = generation_of(card)
    fitted = FITTED.get((engine, generation))
    if fitted is None:
        return Unpredicted(reason=f"{engine} was never fitted on {generation or 'such'} cards")
    if scheme not in fitted.schemes:
        return Unpredicted(reason=f"{engine} on {generation} cards was never fitted in {scheme}")
    try:
        machine = Machine(card, fitted.constants, work)
    except Unknown as lack:
        return Unpredicted(reason=str(lack))
    timing = loop(machine, (fitted.first_ms, fitted.queue), traffic, slots)
    bands = fitted.bands_of(work.model)
    strange = fitted.strange(work, card)
    wider = STRANGE if strange else 1.0
    return Performance(
        concurrency=round(traffic.concurrency),
        ttft_s=bands.ttft.around(timing.ttft_s, wider),
        tpot_s=bands.tpot.around(timing.tpot_s, wider),
        tokens_per_s=bands.tokens_per_s.around(timing.tokens_per_s, wider),
        basis="predicted",
        source=fitted.about(work.model, strange),
    )
