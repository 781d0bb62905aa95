"""How fast llama.cpp answers on a CPU: what a step reads and computes, with constants measured on real kernels.

A step writes one token for each request under way. Every weight that it touches is read from memory once and computed
with once for each token; both overlap for the most part. llama.cpp has other kernels for one token, for a few and for a
prompt, and their times do not follow from one another: two requests at once may take longer than one after the other.
What the constants are fitted on, and how far off they were on models they were not, is in cpu_fitted.py, which
bench/cpu_speed.py writes.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator
from math import ceil, exp, log
from typing import NamedTuple

from msgspec import Struct

from freehold.facts import Attention, Model
from freehold.plan import cpu_fitted
from freehold.plan.kv import LINEAR, WINDOWED, state_values, values_per_token
from freehold.plan.llamacpp import UBATCH
from freehold.plan.params import Counts
from freehold.plan.performance import STRANGE, Estimate, Performance, Unpredicted
from freehold.plan.weights import SCHEMES, weigh

TOKENS = (1, 2, 4, 32, 512)  # in a batch, for which kernels were timed; between them their logarithm is interpolated
BYTES = {  # of one weight
    "F16": 2.0, "BF16": 2.0, "Q8_0": 34 / 32, "Q6_K": 210 / 256, "Q5_K": 176 / 256, "Q4_K": 144 / 256,
    "Q4_0": 18 / 32, "Q3_K": 110 / 256, "Q2_K": 84 / 256, "IQ4_XS": 136 / 256,
}  # fmt: skip
MIXTURES = {  # layers; half of the down and value projections; the head
    "gguf-f16": ("F16", "F16", "F16"), "bf16": ("BF16", "BF16", "BF16"), "gguf-q8_0": ("Q8_0", "Q8_0", "Q8_0"),
    "gguf-q6_k": ("Q6_K", "Q6_K", "Q6_K"), "gguf-q5_k_m": ("Q5_K", "Q6_K", "Q6_K"),
    "gguf-q4_k_m": ("Q4_K", "Q6_K", "Q6_K"), "gguf-q4_0": ("Q4_0", "Q4_0", "Q6_K"),
    "gguf-q3_k_m": ("Q3_K", "Q5_K", "Q6_K"), "gguf-q2_k": ("Q2_K", "Q3_K", "Q6_K"),
    "gguf-iq4_xs": ("IQ4_XS", "Q5_K", "Q6_K"),
}  # fmt: skip
FITTED_THREADS = 2  # and fewer


class Memory(Struct, frozen=True, kw_only=True):
    """How fast a machine reads what it keeps, in GB/s (10^9 bytes)."""

    one_gb_s: float  # from memory, one thread
    all_gb_s: float  # as many threads as cores, together
    cache_gb_s: float  # from its last cache, one thread
    cache_bytes: int
    cores: int
    cpu: str
    at_ns: int


class Read(NamedTuple):
    """Weights of one type that a step touches."""

    type: str
    values: float
    tokens: float  # that each of them is computed with
    row: float  # values in one, on average; 0: of an expert

    @property
    def computed_s(self) -> float:
        """By one core. Some types have kernels for several tokens that experts do not use."""
        together = 1.0 if not self.row and self.type in cpu_fitted.ROW_NS else self.tokens
        return self.values * self.tokens * value_s(self.type, together)

    @property
    def waited_s(self) -> float:
        """Those kernels wait for the beginning of each row. More tokens hide it."""
        if self.tokens <= 1 or not self.row or self.type not in cpu_fitted.ROW_NS:
            return 0.0
        share = log(self.tokens) / log(2) if self.tokens < 2 else 2 / self.tokens
        return self.values / self.row * share * cpu_fitted.ROW_NS[self.type] * 1e-9


class Work(Struct, frozen=True, kw_only=True):
    """What is asked of one engine."""

    requests: int = 1  # at once
    prompt_tokens: int
    context_tokens: int  # before the token that is written
    threads: int


class Step(NamedTuple):
    """Seconds of one step, by what they go into. Loading and computing overlap for the most part."""

    loaded: float
    computed: float
    waited: float = 0.0  # for rows of a matrix to come from memory
    attention: float = 0.0
    overhead: float = 0.0

    @property
    def seconds(self) -> float:
        longer, shorter = max(self.loaded, self.computed), min(self.loaded, self.computed)
        return longer + cpu_fitted.SERIAL * shorter + self.waited + self.attention + self.overhead


class Engine(NamedTuple):
    """One model, at one precision, on one machine."""

    model: Model
    counts: Counts
    scheme: str
    memory: Memory

    def step(self, work: Work) -> Step:
        """That writes one token for each request."""
        reads, cores = list(self._reads(work.requests, work.requests)), _cores(work.threads)
        groups, tokens = self.model.attention, work.context_tokens
        attention = sum(_products(group, tokens) for group in groups) * cpu_fitted.ATTENTION_PS * 1e-12
        kept = sum(group.layers * values_per_token(group) * 2 * _seen(group, tokens) for group in groups)  # bytes
        far = sum(group.layers * _seen(group, tokens) for group in groups if group.kind not in LINEAR)
        if not self._cached(self._touched_bytes(reads) + kept * work.requests):
            attention += far * cpu_fitted.KEPT_NS * 1e-9
        if work.requests > 1:
            attention += far * cpu_fitted.TURN_NS * 1e-9
        overhead = self._overhead_s(work.requests, work.threads)
        return self._matrices(reads, work.threads)._replace(
            attention=attention * work.requests / cores, overhead=overhead
        )

    def prompt_s(self, work: Work) -> float:
        """Seconds for the first token of a prompt alone: as many steps as it has batches."""
        total, steps = 0.0, ceil(work.prompt_tokens / UBATCH)
        each = work.prompt_tokens / steps
        for _ in range(steps):
            total += self._matrices(list(self._reads(each, 1)), work.threads).seconds
        half = sum(_products(group, work.prompt_tokens / 2) for group in self.model.attention)
        attention = half * work.prompt_tokens * cpu_fitted.PROMPT_ATTENTION_PS * 1e-12 / _cores(work.threads)
        overhead = self._overhead_s(1, work.threads) * steps
        return total + attention + overhead + cpu_fitted.FIRST_US * 1e-6

    def _reads(self, tokens: float, outputs: float) -> Iterator[Read]:
        """`tokens` go through every layer, `outputs` of them through the head."""
        counts, model, moe = self.counts, self.model, self.model.moe
        base, better, head = MIXTURES[self.scheme]
        attention, hidden = sum(part.matrices for part in counts.attention), model.hidden_size
        vocabulary = counts.head or counts.embedding
        yield Read(base, attention * 19 / 20, tokens, hidden)
        yield Read(better, attention / 20, tokens, hidden)
        yield Read(head, vocabulary, outputs, hidden)
        if dense := counts.dense.matrices + counts.shared.matrices:
            yield Read(base, dense * 5 / 6, tokens, _row(hidden, model.intermediate_size))
            yield Read(better, dense / 6, tokens, model.intermediate_size or hidden)
        if moe:
            idle = (1 - moe.experts_per_token / moe.experts) ** tokens  # of experts, that no token picks
            touched = counts.experts.matrices * (1 - idle)
            each = tokens * moe.experts_per_token / moe.experts / (1 - idle)
            yield Read(base, touched * 5 / 6, each, 0)
            yield Read(better, touched / 6, each, 0)

    def _matrices(self, reads: list[Read], threads: int) -> Step:
        """Every weight is loaded once and computed with for each token."""
        memory, cores = self.memory, _cores(threads)
        computed = sum(read.computed_s for read in reads) / cores
        if self._cached(self._touched_bytes(reads)):
            loaded, waited = self._touched_bytes(reads) / (memory.cache_gb_s * threads * 1e9), 0.0
        else:
            rate = min(memory.all_gb_s, memory.one_gb_s * threads)
            loaded, waited = self._touched_bytes(reads) / (rate * 1e9), sum(read.waited_s for read in reads) / cores
        return Step(loaded, computed, waited)

    def _touched_bytes(self, reads: list[Read]) -> float:
        return sum(read.values * BYTES[read.type] for read in reads) * self._filed

    def _cached(self, size_bytes: float) -> bool:
        """Whether it stays in the last cache from one step to the next. Others use that, too."""
        return size_bytes < self.memory.cache_bytes / 2

    @property
    def _filed(self) -> float:
        """How much larger its file is than its dimensions say."""
        if not self.model.file_bytes or self.scheme not in SCHEMES:
            return 1.0
        return self.model.file_bytes / weigh(self.counts, SCHEMES[self.scheme], self.model, tables=False).total

    def _overhead_s(self, outputs: int, threads: int) -> float:
        """Of a step: the program, layer by layer, and choosing a token from the vocabulary for each request."""
        layer = cpu_fitted.LAYER_US + (cpu_fitted.BARRIER_US if threads > 1 else 0.0)
        chosen = cpu_fitted.REQUEST_US + self.model.vocab_size * cpu_fitted.CHOICE_NS / 1e3
        return (cpu_fitted.STEP_US + layer * self.model.layers + chosen * outputs) * 1e-6


def predict(model: Model, counts: Counts, scheme: str, memory: Memory | None, work: Work) -> Performance | Unpredicted:
    """Times of one llama.cpp on this machine's cores. Freehold gives it all of them but one."""
    if memory is None:
        return Unpredicted(reason="nobody measured this machine's memory: freehold doctor")
    if scheme not in MIXTURES:
        name = SCHEMES[scheme].name if scheme in SCHEMES else scheme
        return Unpredicted(reason=f"no kernel of llama.cpp for {name} was timed")
    engine = Engine(model, counts, scheme, memory)
    step_s, prompt_s = engine.step(work).seconds, engine.prompt_s(work)
    strange = list(_strange(model, memory, work.threads))
    wider, waits = STRANGE if strange else 1.0, work.requests > 1
    low, high = cpu_fitted.TPOT_BAND
    tpot = Estimate(value=step_s, low=step_s * low / wider, high=step_s * high * wider)
    low, high = cpu_fitted.TTFT_BAND
    first_s = prompt_s + step_s / 2 * waits  # for the step that is under way
    last_s = prompt_s * work.requests + step_s * waits
    ttft = Estimate(value=first_s, low=first_s * low / wider, high=last_s * high * wider)
    said = f"; never fitted: {' and '.join(strange)}, so the band is wider" if strange else ""
    return Performance(
        concurrency=work.requests,
        ttft_s=ttft,
        tpot_s=tpot,
        tokens_per_s=Estimate(
            value=work.requests / step_s, low=work.requests / tpot.high, high=work.requests / tpot.low
        ),
        basis="predicted",
        source=cpu_fitted.SOURCE + said,
    )


def _strange(model: Model, memory: Memory, threads: int) -> Iterator[str]:
    if memory.cpu != cpu_fitted.CPU:
        yield f"the CPU {memory.cpu}"
    if threads > FITTED_THREADS:
        yield f"{threads} threads"
    if kinds := sorted({group.kind for group in model.attention} - {"full"}):
        yield f"attention of the kind {', '.join(kinds)}"


def value_s(kind: str, tokens: float) -> float:
    """Seconds that one core computes with one weight for one of so many tokens."""
    return _between(cpu_fitted.VALUE_PS[kind], tokens) * 1e-12


def _row(hidden: int, width: int) -> float:
    """Of a feed-forward block without half of its down projection, which is one of the better type."""
    return 1 / (0.8 / hidden + 0.2 / (width or hidden))


def _cores(threads: int) -> float:
    """What so many threads do, in what one does."""
    return 1 + (threads - 1) * cpu_fitted.THREAD


def _between(values: tuple[float, ...], tokens: float) -> float:
    """At so many tokens, of `values` at TOKENS."""
    tokens = min(max(tokens, TOKENS[0]), TOKENS[-1])
    at = min(bisect(TOKENS, tokens), len(TOKENS) - 1)
    (n, m), (a, b) = TOKENS[at - 1 : at + 1], values[at - 1 : at + 1]
    share = log(tokens / n) / log(m / n)
    return exp(log(a) * (1 - share) + log(b) * share)


def _products(group: Attention, tokens: float) -> float:
    """Multiplications of one token's queries with the keys and values before it, in all layers of the group."""
    if group.kind in LINEAR:
        return 2.0 * group.layers * state_values(group)[1]
    if group.kv_lora_rank:
        return group.layers * group.heads * (2 * group.kv_lora_rank + group.qk_rope_head_dim) * _seen(group, tokens)
    return group.layers * group.heads * (group.head_dim + (group.v_head_dim or group.head_dim)) * _seen(group, tokens)


def _seen(group: Attention, tokens: float) -> float:
    return min(tokens, group.window) if group.kind in WINDOWED else tokens
