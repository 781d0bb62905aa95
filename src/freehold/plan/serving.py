"""How fast a deployment answers: requests in a closed loop on the steps of plan/roofline.py, with a band."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from freehold.errors import Unknown
from freehold.facts import Card
from freehold.plan.fitted import FITTED
from freehold.plan.performance import STRANGE, Performance, Unpredicted
from freehold.plan.roofline import Machine, Step, Work, generation_of, look


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

    @property
    def steps(self) -> float:
        """Of an answer."""
        return max(1.0, self.completion_tokens / self.tokens_a_step)

    @property
    def computed_tokens(self) -> float:
        """Of a prompt: the last is computed even where the whole is cached."""
        return max(1.0, self.prompt_tokens * (1 - self.prefix_hit))


class Timing(NamedTuple):
    """Of requests in a loop, in seconds: what is seen of it, and what it is made of."""

    ttft_s: float
    tpot_s: float
    tokens_per_s: float  # of all requests together
    step: Step
    prompt_s: float  # to compute one prompt
    others_s: float  # to compute those of the others on the same rank
    waits: float  # share of these that a new request waits for
    running: float  # requests, on all ranks
    on_rank: float  # of them, on each
    at_once: float  # of them, that write at the same moment: the others' prompts are computed
    written_s: float  # for a whole answer after its first token
    cycle_s: float  # from one request to the next


def loop(machine: Machine, first: tuple[float, float], traffic: Traffic, slots: float) -> Timing:
    """As many requests as `concurrency`, each followed by the next, of which `slots` run and the others wait.

    From one request to the next the prompt of every other on its rank is computed once. They come evenly, so all that
    it does takes longer by the same factor, and how many write at the same time is as if it were alone.
    """
    split = machine.work.split
    running = max(1.0, min(traffic.concurrency, slots))
    on_rank = max(1.0, running / split.ep)
    prompt = machine.prefill(traffic.computed_tokens, traffic.prompt_tokens)
    seen, at_once, step, alone, cycle = look(machine.work, traffic.context), running, Step(0, 0, 0, 0, 0, 0), 1.0, 1.0
    for _ in range(3):
        at_once = max(1.0, running * alone / cycle / split.pp)  # a pipeline works on as many parts at the same time
        step = machine.decode(seen, at_once, 1 + traffic.draft_tokens)
        alone = traffic.steps * step.seconds
        cycle = alone + step.seconds + prompt
    others = (on_rank - 1) * prompt / split.pp
    first_ms, queue = first
    waits = max(queue, (1 - alone / cycle) / split.pp)  # for those that fall into its own wait, at least
    ttft = first_ms / 1e3 + step.seconds + prompt * (1 + waits * (on_rank - 1))
    written, cycle = alone * (1 + others / cycle), cycle + others
    if traffic.concurrency > slots:  # the others wait until one of those running is done
        ttft += (traffic.concurrency / slots - 1) * cycle
    return Timing(
        ttft_s=ttft,
        tpot_s=written / traffic.completion_tokens,
        tokens_per_s=running * traffic.completion_tokens / cycle,
        step=step,
        prompt_s=prompt,
        others_s=others,
        waits=waits,
        running=running,
        on_rank=on_rank,
        at_once=at_once,
        written_s=written,
        cycle_s=cycle,
    )


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
        machine = Machine(card, fitted.constants_of(work.model), work)
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
