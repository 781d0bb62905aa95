"""The arithmetic of a deployment, figure by figure: what is left of `=` computes to what is right of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from msgspec.structs import replace

from freehold.facts import Attention, Card, Model, Pair
from freehold.plan import kv, llamacpp, quantization, vllm
from freehold.plan.cost import SETUP_MONTHS
from freehold.plan.deployment import INTERRUPTIONS, Deployment, Place, machines, settings
from freehold.plan.explain_speed import ram_gb_s, speed_steps
from freehold.plan.need import Need
from freehold.plan.params import Counts, count
from freehold.plan.speeds import traffic_of
from freehold.plan.traffic import DAYS_A_MONTH, HOURS_A_MONTH, number
from freehold.plan.units import GIB
from freehold.plan.weights import SCHEMES, Weights, checkpoint_bytes, weigh

_PARTS = {
    "rest": "norms, routers, biases",
    "tables": "tables of positions, copies of latents",
    "dense": "dense and shared layers",
    "mtp": "multi-token prediction",
}


def explain(plan: Deployment, model: Model, place: Place, need: Need) -> tuple[str, ...]:
    """Lines `what: sum = figure unit; words`, in the order in which one rests on another."""
    lines = _vllm(plan, model, place, settings(need)) if plan.engine == "vllm" else _llamacpp(plan, model, place)
    return (*lines, *speed_steps(plan, model, place, need), *_money(plan, place, need))


def assumptions(plan: Deployment, place: Place, need: Need) -> tuple[str, ...]:
    """What was taken for granted, for whoever runs it otherwise."""
    asked = settings(need)
    common = ("memory: every request uses its whole context", f"speed: {_load(plan, need)}")
    if place.offer and place.offer.kind == "spot":
        cut = INTERRUPTIONS
        common = (*common, f"{cut.a_day:g} interruptions a day, {cut.lost_minutes:g} minutes lost in each")
    if plan.engine == "llamacpp":
        where = f"on cards and the CPU, {llamacpp.CARD_SHARE:.0%} of each card" if plan.card else "on the CPU"
        measured = "measured here" if place.memory else "which nobody measured (freehold doctor does)"
        return (
            f"llama.cpp {where}; {ram_gb_s(place):g} GB/s of memory bandwidth, {measured}",
            "1 GiB of memory is left to the system",
            *common,
        )
    version = ".".join(map(str, asked.version))
    link, whole = place.card.link_gb_s if place.card else None, plan.split.cards
    guessed = place.offer and place.machines is None and place.offer.cards < place.cards
    shared = f"joined by a link of {link:g} GB/s" if link else "joined by PCIe alone, or nobody said how"
    return (
        f"vLLM {version}, {asked.share():.0%} of the card, {plan.sequences} sequences, {asked.kv_dtype} KV cache",
        "nothing else uses the card",
        *([f"{plan.tp} cards in one machine, {shared}"] if plan.tp > 1 else []),
        *([f"{place.cards} cards in one machine: the offer does not say"] if plan.tp > 1 and guessed else []),
        *([f"{whole} cards in several machines, joined by a fast network"] if whole > place.cards else []),
        *common,
    )


def _load(plan: Deployment, need: Need) -> str:
    """What the speed is of."""
    asked = traffic_of(need, plan.at_once)
    hit = f"{asked.prefix_hit:.0%} of each cached" if asked.prefix_hit else "none of it cached"
    guesses = f"{asked.draft_tokens} guesses a step, {asked.acceptance:.0%} accepted, their making not counted"
    return (
        f"{asked.concurrency:,} at once in each replica, prompts of {asked.prompt_tokens:,.0f} tokens, {hit}, answers "
        f"of {asked.completion_tokens:,.0f}; {guesses if asked.draft_tokens else 'no speculation'}"
    )


def quality(plan: Deployment, pairs: Iterable[Pair], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """What the precision loses, as it was measured, or that nobody did; nothing of the publisher's own."""
    if plan.native:
        return ()
    return (f"quality in {SCHEMES[plan.scheme].name}: {quantization.answer(pairs, plan.model, plan.scheme, sizes)}",)


def _vllm(plan: Deployment, model: Model, place: Place, asked: vllm.Settings) -> Iterator[str]:
    card, counts = place.card, count(model)
    assert card is not None  # noqa: S101  a deployment on cards has one
    assert counts is not None  # noqa: S101  it was counted to be planned
    scheme = SCHEMES[plan.scheme]
    held = weigh(counts, scheme, model, plan.split)
    filed = model.file_bytes if plan.scheme == model.checkpoint else 0
    on_card = held.total if filed else plan.weight_bytes
    yield from _weights(held, counts, f"tensor {plan.tp} x pipeline {plan.pp} x experts {plan.ep}; {scheme.name}")
    if filed:
        tables, whole = held.tables.bytes, checkpoint_bytes(counts, plan.scheme, model)
        yield (
            f"weights, by the files: ({on_card:,} - {tables:,}) x {filed:,} / {whole:,} + "
            f"{tables:,} = {plan.weight_bytes:,} bytes; their size over that by dimensions; tables are made, not read"
        )
    yield from _cache(plan, model, asked, card)
    yield (
        f"usable: {asked.share():g} x {card.memory_bytes:,} = {plan.usable_bytes:,} bytes; of {card.id}, "
        f"{card.memory_source}"
    )
    yield from _beside(plan, model, asked, card)
    taken = (plan.weight_bytes, plan.activation_bytes, plan.other_bytes, plan.graph_bytes)
    yield (
        f"KV pool: {plan.usable_bytes:,} - {' - '.join(f'{each:,}' for each in taken)} = {plan.pool_bytes:,} bytes; "
        "weights, activations of the profiling run, runtime, CUDA graphs"
    )
    yield f"KV pool: {plan.pool_bytes:,} / {GIB:,} = {number(plan.pool_bytes / GIB)} GiB"
    blocks = plan.pool_bytes // plan.block_bytes
    yield f"blocks in the pool: {plan.pool_bytes:,} // {plan.block_bytes:,} = {blocks:,} blocks"
    yield (
        f"requests at once: {blocks:,} // {plan.request_blocks:,} x {plan.ep} x {plan.replicas} = {plan.requests:,} of "
        f"{plan.context:,} tokens; ranks with requests of their own, replicas"
    )
    yield (
        f"tokens in all: {blocks:,} x {plan.context:,} // {plan.request_blocks:,} x {plan.ep} x {plan.replicas} = "
        f"{plan.kv_tokens:,} tokens; as vLLM prints its KV cache size since 0.20.1"
    )
    each, layout = -(-plan.users // (plan.replicas * plan.ep)), vllm.layout(model.attention, asked, plan.split)
    long = layout.blocks_per_request(plan.longest, asked.step_tokens(card))
    yield (
        f"longest context: {each:,} x {long:,} = {each * long:,} blocks of the pool's; requests on a rank, blocks of "
        f"{plan.longest:,} tokens, which is the most that fits or that the model has"
    )


def _weights(held: Weights, counts: Counts, how: str) -> Iterator[str]:
    """Parameters of each kind with the bytes they take, and their sum."""
    yield f"parameters: {counts.text:,} + {counts.mtp:,} + {counts.encoders:,} = {counts.total:,}; text, MTP, encoders"
    for field, part in zip(held._fields, held, strict=True):
        if part.parameters:
            name = _PARTS.get(field, field)
            yield f"{name}: {number(part.parameters)} x {number(part.rate)} = {part.bytes:,} bytes; parameters held"
    yield f"weights: {' + '.join(f'{part.bytes:,}' for part in held)} = {held.total:,} bytes; fullest rank of {how}"


def _beside(plan: Deployment, model: Model, asked: vllm.Settings, card: Card) -> Iterator[str]:
    """What vLLM takes beside the weights."""
    peak = vllm.activation(model, plan.scheme, asked, card, plan.split)
    tokens, hidden, moe = asked.step_tokens(card), model.hidden_size, model.moe
    yield (
        f"sampler: {peak.logit_bytes:g} x {plan.sequences:,} x {model.output_vocab_size or model.vocab_size:,} + 2 x "
        f"{hidden:,} x {tokens:,} = {number(peak.sampler)} bytes; logits of all sequences, hidden states of a step"
    )
    yield (
        f"prefill: 2 x {tokens:,} x (2 x {model.intermediate_size:,} / {plan.tp} + 2.5 x {hidden:,}) = "
        f"{number(peak.prefill)} bytes; of a full step"
    )
    if peak.workspace and moe:
        width = moe.intermediate_size // (1 if plan.ep > 1 else plan.tp)
        wide = max((2 if moe.gated else 1) * width, moe.latent_size or hidden)
        yield (
            f"experts' workspace: 2 x {tokens:,} x {moe.experts_per_token} x ({wide:,} + {width:,}) = "
            f"{number(peak.workspace)} bytes; outputs of both steps"
        )
    yield (
        f"activations: {number(max(peak.sampler, peak.prefill))} + {number(peak.workspace)} = "
        f"{plan.activation_bytes:,} bytes; the larger of sampler and prefill, workspace"
    )
    gib = vllm.other_gib(asked, card, plan.split.cards)
    yield f"runtime: {gib:g} x {GIB:,} = {plan.other_bytes:,} bytes; read from start-up logs of this generation"
    sizes, each = vllm.graphs(asked, card, plan.tp)
    yield f"CUDA graphs: {sizes} x {number(each)} x {GIB:,} = {plan.graph_bytes:,} bytes; sizes, GiB of each, from logs"


def _cache(plan: Deployment, model: Model, asked: vllm.Settings, card: Card) -> Iterator[str]:
    layout = vllm.layout(model.attention, asked, plan.split)
    for group in model.attention:
        yield _of_layer(group, asked.kv_dtype, plan.tp)
    if not layout.page_bytes:
        sizes = [(-(-g.layers // plan.pp), kv.bytes_per_token(g, asked.kv_dtype, plan.tp)) for g in model.attention]
        layers = " + ".join(f"{n} x {each:,}" for n, each in sizes if each)
        yield f"a block: {layout.block_tokens} x ({layers}) = {plan.block_bytes:,} bytes; tokens, all layers"
    else:
        layers = plan.block_bytes // layout.page_bytes
        yield (
            f"a block: {layout.page_bytes:,} x {layers} = {plan.block_bytes:,} bytes; a page of {layout.block_tokens} "
            "tokens of the widest layer, layers in a group"
        )
    step = asked.step_tokens(card)
    each = " + ".join(f"{n} x {_blocks(g, page, plan.context, step)}" for g, n, page in layout.groups)
    kinds = ", ".join(group.kind.replace("_", " ") for group, _, _ in layout.groups)
    yield f"blocks of a request: {each} = {plan.request_blocks:,} blocks; groups of {kinds} layers, tokens by page"


def _blocks(group: Attention, page: int, tokens: int, step: int) -> str:
    """Blocks of one group of layers: tokens over the page, rounded up; a window keeps itself and a step."""
    if group.kind in kv.LINEAR:
        return "1"
    kept = min(tokens, group.window + step - (group.kind == "sliding")) if group.window else tokens
    rounded = f"(({kept:,} + {page - 1:,}) // {page:,}"
    return rounded + (" + 1)" if group.kind == "sliding" else ")")


def _of_layer(group: Attention, dtype: str, tp: int) -> str:
    width, kind = kv.BYTES[dtype], group.kind.replace("_", " ")
    if group.kind in kv.LINEAR:
        mixed, state = kv.state_values(group, tp)
        return (
            f"state of a {kind} layer: {mixed:,} x {group.conv_kernel - 1} x 2 + {state:,} x {kv.STATE_BYTES} = "
            f"{kv.state_bytes(group, tp):,} bytes a sequence; convolution, recurrent state; {group.layers} such layers"
        )
    found = kv.bytes_per_token(group, dtype, tp)
    where = f"a token in each of {group.layers} {kind} layers" + (
        f" of window {group.window:,}" if group.window else ""
    )
    if not found:
        return f"KV cache of a {kind} layer: 0 x 2 = 0 bytes; it reads another layer's"
    if group.kv_lora_rank:
        extra = f" + {found - round(width * (group.kv_lora_rank + group.qk_rope_head_dim))}"
        return (
            f"KV cache of a {kind} layer: ({group.kv_lora_rank} + {group.qk_rope_head_dim}) x {width:g}{extra} = "
            f"{found:,} bytes; latent and position, scales, indexer; {where}"
        )
    heads, dim = max(1, group.kv_heads // tp), group.head_dim
    return (
        f"KV cache of a {kind} layer: {heads} x ({dim} + {group.v_head_dim or dim}) x {width:g} = {found:,} bytes; "
        f"heads on a card, keys and values; {where}"
    )


def _llamacpp(plan: Deployment, model: Model, place: Place) -> Iterator[str]:
    rows, buffers = llamacpp.cells(plan.context), 1 + (place.cards if plan.gpu_layers else 0)
    wide = llamacpp.widest(model.vocab_size, model.hidden_size)
    counts = count(model)
    if model.file_bytes or counts is None:
        yield f"weights: {plan.weight_bytes:,} x 1 = {plan.weight_bytes:,} bytes; the size of the files"
    else:
        held = weigh(counts, SCHEMES[plan.scheme], model, tables=False)
        yield from _weights(held, counts, f"1; {SCHEMES[plan.scheme].name}")
    kept = []
    for group in model.attention:
        one = llamacpp.kv_buffers((replace(group, layers=1),), plan.context)
        kept.append(f"{group.layers} x {one:,}")
        yield _of_buffer(group, one)
    yield f"KV cache of a request: {' + '.join(kept)} = {plan.block_bytes:,} bytes; layers"
    yield (
        f"KV cache: {plan.users:,} x {plan.block_bytes:,} = {plan.users * plan.block_bytes:,} bytes; requests of "
        f"{plan.context:,} tokens, f16"
    )
    yield (
        f"compute buffers: {buffers} x (({wide:,} + {model.hidden_size:,}) x {llamacpp.UBATCH} x 4 + "
        f"{rows:,} x {llamacpp.UBATCH} x 2) = {plan.activation_bytes:,} bytes; one a device: activations, attention "
        "mask; at most"
    )
    each = int(llamacpp.CARD_SHARE * place.card.memory_bytes) if place.card else 0
    cards = f" + {place.cards if plan.card else 0} x {each:,}"
    yield (
        f"usable: {place.ram_bytes:,}{cards} = {plan.usable_bytes:,} bytes; memory that is free, "
        f"{llamacpp.CARD_SHARE:.0%} of each card"
    )
    yield (
        f"left for the KV cache: {plan.usable_bytes:,} - {plan.weight_bytes:,} - {plan.activation_bytes:,} = "
        f"{plan.pool_bytes:,} bytes; {plan.gpu_layers} of {model.layers} layers on cards, whole ones; at most "
        f"{plan.requests:,} such requests fit"
    )
    yield f"tokens in all: {plan.requests:,} x {plan.context:,} = {plan.kv_tokens:,} tokens; of as many requests as fit"
    long = llamacpp.kv_buffers(model.attention, plan.longest)
    yield (
        f"longest context: {plan.users:,} x {long:,} = {plan.users * long:,} bytes; KV cache of {plan.longest:,} "
        "tokens, which is the most that fits or that the model has"
    )


def _of_buffer(group: Attention, one: int) -> str:
    """One layer's share of llama.cpp's buffers for one request."""
    kind = group.kind.replace("_", " ")
    if group.kind in kv.LINEAR:
        mixed, state = kv.state_values(group)
        return f"state of a {kind} layer: {mixed:,} x {group.conv_kernel - 1} x 4 + {state:,} x 4 = {one:,} bytes"
    values = kv.values_per_token(group)
    cells = one // (values * 2) if values else 0
    return f"KV cache of a {kind} layer: {values:,} x 2 x {cells:,} = {one:,} bytes; values, f16, cells that are kept"


def _money(plan: Deployment, place: Place, need: Need) -> Iterator[str]:
    if place.offer is None or plan.hour is None or plan.month is None:
        return
    offer, cards = place.offer, plan.split.cards if plan.card else 1
    price = offer.price / (HOURS_A_MONTH if offer.per == "month" else 1)
    useful = f" / {number(INTERRUPTIONS.useful)}" if offer.kind == "spot" else ""
    yield (
        f"an hour: {machines(offer, cards, plan.replicas)} x ({number(price)} + "
        f"{number(offer.setup / SETUP_MONTHS / HOURS_A_MONTH)}) x {number(place.rate)}{useful} = {number(plan.hour)} "
        f"{plan.currency}; machines of {offer.cards}, price, setup over 12 months, exchange; {offer.id}, "
        f"{offer.source or 'no source'}, {offer.date or 'undated'}"
    )
    yield (
        f"a month: {number(plan.hour)} x {number(place.paid_hours(need))} = {number(plan.month)} {plan.currency}; "
        "hours that are paid"
    )
    rate = need.rate or (plan.performance.tokens_per_s.value if plan.performance else None)
    if plan.per_million is None or not rate:
        return
    source = "predicted" if plan.performance and plan.performance.basis == "predicted" else "measured"
    if need.rate:
        source = need.rate_source or "stated by the asker"
    if need.requests_a_day:
        both = f"({need.prompt_tokens:g} + {need.completion_tokens:g})"
        tokens = f"({number(need.requests_a_day)} x {number(DAYS_A_MONTH)} x {both})"
        words = "requests a day, days, tokens of a request"
    else:
        tokens = f"({number(rate)} x 3600 x {number(need.hours_a_day)} x {number(DAYS_A_MONTH)} x {plan.replicas})"
        words = "completion tokens a second at full load, hours, days, replicas"
    yield (
        f"a million tokens: {number(plan.month)} / {tokens} x 1,000,000 = {number(plan.per_million)} {plan.currency}; "
        f"{words}; rate {number(rate)} a second, {source}"
    )
