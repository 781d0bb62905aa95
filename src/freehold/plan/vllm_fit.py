"""One vLLM process on one machine: what it is started with, or why it does not fit.

Its cache is paged: a request takes what it uses, so the cache need not hold all of them at their longest at once. It
must hold one, or vLLM does not start.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from freehold.facts import Attention, Card, Model
from freehold.plan.llamacpp import RESERVE_BYTES
from freehold.plan.units import size
from freehold.plan.vllm import Layout, Rank, Settings, layout, rank
from freehold.plan.weights import NOT_SPLIT, Split
from freehold.types import Build, Host, Plan, Refusal

# What vLLM's three processes take on a CPU beside weights and cache: 1.49 GiB of 0.32 with the demonstration model, as
# the kernel counts it (Pss), half of it PyTorch's and vLLM's own modules.
CPU_PROCESSES_BYTES = 1600 << 20
CPU_BLOCK_TOKENS = 128  # vLLM's block on a CPU
_CARD_LEFT = 0.01  # of a card's free memory: between our look at it and vLLM's


class Asked(Struct, frozen=True, kw_only=True):
    """How it is to be served. `longest`: less context than `context` will do, if that is what fits."""

    context: int
    longest: bool = False
    parallel: int
    threads: int = 0
    settings: Settings
    split: Split = NOT_SPLIT
    card: Card | None = None
    free_bytes: int = 0  # of the fullest card
    draft_bytes: int = 0


def fit(build: Build, model: Model | None, host: Host, asked: Asked) -> Plan | Refusal:
    """The plan, or why there is none; what would fit is in the hint.

    Without the model's dimensions every layer counts as one that keeps all tokens, and cards are not planned for.
    """
    where = f"{asked.split.cards} x {asked.card.id}" if asked.card else host.name
    subject = f"{build.name} on {where}"
    if build.format != "safetensors":
        return Refusal(subject=subject, reason="vLLM is given safetensors", hint="use llamacpp for GGUF files")
    if asked.context > build.context and not asked.longest:
        reason = f"{asked.context:,} tokens of context, but the model was trained for {build.context:,}"
        return Refusal(subject=subject, reason=reason, hint=f"ask for a context of at most {build.context:,}")
    if asked.card and not model:
        reason = "the layers of its architecture are not known, so its memory cannot be planned"
        return Refusal(subject=subject, reason=reason, hint="serve it as an external endpoint")
    if held := _held_by_others(asked):
        return replace(held, subject=subject)
    room = _on_cards(build, model, asked) if asked.card and model else _on_cpu(build, host, asked)
    paged = _layout(build, model, asked)
    limit = min(asked.context, build.context)
    pool = max(0, room.pool_bytes - paged.block_bytes)  # one block is never given to anybody
    longest = paged.longest(pool, 1, _step(asked), limit)
    fits = limit if longest == limit else 0
    context = longest if asked.longest else fits
    plan = _plan(build, host, asked, room, (paged, context or limit))
    steps = tuple(_steps(plan, build, asked, room, paged))
    if not context:
        if longest:
            reason = f"the KV cache has {size(room.pool_bytes)}, and one request of {limit:,} tokens needs more"
            hint = f'this fits: a context of {longest:,}; or context = "auto"'
        else:
            reason = f"needs {size(room.taken_bytes)} before any KV cache, but {size(room.usable_bytes)} may be used"
            hint = "use a smaller or more quantised build, or more cards"
        return Refusal(subject=subject, reason=reason, hint=hint, steps=steps)
    return replace(plan, steps=steps)


def _step(asked: Asked) -> int:
    """Tokens computed in one step."""
    return asked.settings.step_tokens(asked.card) if asked.card else asked.settings.batched_tokens or 2048


def _held_by_others(asked: Asked) -> Refusal | None:
    """vLLM looks for its whole share of the card before it begins."""
    card, share = asked.card, asked.settings.utilisation
    if not card or not share or not asked.free_bytes or share * card.memory_bytes <= asked.free_bytes:
        return None
    reason = (
        f"card_share = {share:g} is {size(round(share * card.memory_bytes))}, and {size(asked.free_bytes)} are free"
    )
    free = _share(replace(asked, settings=replace(asked.settings, utilisation=None)))
    hint = f"card_share = {free:g}, or none; nvidia-smi shows who else is there"
    return Refusal(subject="", reason=reason, hint=hint)


def _on_cpu(build: Build, host: Host, asked: Asked) -> Rank:
    return Rank(
        usable_bytes=max(0, host.available_bytes - RESERVE_BYTES),
        weight_bytes=build.weight_bytes + asked.draft_bytes,
        activation_bytes=0,
        other_bytes=CPU_PROCESSES_BYTES,
        graph_bytes=0,
    )


def _on_cards(build: Build, model: Model, asked: Asked) -> Rank:
    """Of a split model each card has its part of the weights; what is not split is little."""
    assert asked.card is not None  # noqa: S101  fit has just looked
    share = _share(asked)
    weights = -(-build.weight_bytes // asked.split.cards) + asked.draft_bytes
    settings = replace(asked.settings, utilisation=share)
    return rank(model, weights, build.precision.lower(), asked.card, settings, split=asked.split)


def _share(asked: Asked) -> float:
    """Of each card: vLLM's default, or what is free of it, if others are there too."""
    assert asked.card is not None  # noqa: S101
    if asked.settings.utilisation or not asked.free_bytes:
        return asked.settings.share()
    free = asked.free_bytes / asked.card.memory_bytes - _CARD_LEFT
    return max(0.01, round(min(asked.settings.share(), free), 3))


def _layout(build: Build, model: Model | None, asked: Asked) -> Layout:
    full = Attention(
        kind="full", layers=build.layers, kv_heads=build.kv_heads, head_dim=build.key_dim, v_head_dim=build.value_dim
    )
    return layout(model.attention if model else (full,), asked.settings, asked.split)


def _plan(build: Build, host: Host, asked: Asked, room: Rank, cache: tuple[Layout, int]) -> Plan:
    """On a CPU the cache gets what all requests of its context could use at most; on cards all that is left."""
    paged, context = cache
    each = paged.blocks_per_request(context, _step(asked))
    pool = max(0, room.pool_bytes)
    if not asked.card:
        pool = min(pool, (asked.parallel * each + 1) * paged.block_bytes)
    return Plan(
        build=build.name,
        host=host.name,
        context=context,
        parallel=asked.parallel,
        threads=asked.threads,
        weight_bytes=room.weight_bytes,
        kv_bytes_per_token=paged.block_bytes // paged.block_tokens,
        kv_bytes=pool,
        compute_bytes=room.activation_bytes + room.other_bytes + room.graph_bytes,
        available_bytes=room.usable_bytes,
        requests_that_fit=max(0, paged.blocks(pool) - 1) // each,
        steps=(),
        card=asked.card.id if asked.card else "",
        tp=asked.split.tp,
        pp=asked.split.pp,
        ep=asked.split.ep,
        card_share=_share(asked) if asked.card else 0.0,
        batched_tokens=asked.settings.batched_tokens or 0,
        kv_dtype=asked.settings.kv_dtype,
    )


def _steps(plan: Plan, build: Build, asked: Asked, room: Rank, paged: Layout) -> Iterator[str]:
    each = "" if asked.split.cards == 1 else f", on each of {asked.split.cards} cards"
    yield f"Weights: {size(room.weight_bytes)}{each}, {build.weights_source or 'as stated'}"
    if asked.card:
        taken = f"{plan.card_share:.1%} of {size(asked.card.memory_bytes)}"
        yield f"Activations: {size(room.activation_bytes)}; graphs: {size(room.graph_bytes)}"
        yield f"Runtime, and buffers between cards: {size(room.other_bytes)}"
        yield f"May be used: {taken} = {size(room.usable_bytes)}"
    else:
        yield f"vLLM's own processes: {size(room.other_bytes)}, as measured of 0.32 on a CPU"
        yield f"May be used: what is available of RAM - {size(RESERVE_BYTES)} reserve = {size(room.usable_bytes)}"
    blocks = f"{paged.blocks(plan.kv_bytes):,} blocks of {paged.block_tokens} tokens, {paged.block_bytes:,} bytes each"
    yield f"KV cache: {size(plan.kv_bytes)} = {blocks}"
    yield f"Requests of {plan.context:,} tokens that it holds at once: {plan.requests_that_fit:,}"
