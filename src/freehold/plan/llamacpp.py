"""Memory of one llama.cpp process on one host: exact where the engine is, an upper bound where it is not.

Checked against the buffer sizes that xllamacpp 2026.10.11549 prints: the KV cache agrees to the byte, the compute
buffer stays below the figure here as long as feed-forward layers are at most four times as wide as the hidden state.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from freehold.facts import Attention, Model
from freehold.plan.kv import LINEAR, WINDOWED, state_bytes, values_per_token
from freehold.plan.units import GIB, size
from freehold.types import Build, Host, Plan, Refusal

CELLS = 256  # llama.cpp rounds the context of each request up to a multiple of this
UBATCH = 512  # tokens computed in one step: llama.cpp's default
CARD_SHARE = 0.95  # of a card's memory that is used, beside a compute buffer
RESERVE_BYTES = GIB  # for the system, the gateway, and the engine's own code and scratch memory


def kv_bytes_per_token(build: Build) -> int:
    """Bytes of KV cache a token takes in all layers, in f16, llama.cpp's default.

    An upper bound for models with sliding-window, linear-attention or narrower layers: all count as full here.
    """
    return build.layers * build.kv_heads * (build.key_dim + build.value_dim) * 2


def cells(context: int) -> int:
    """Tokens llama.cpp makes room for when a request may have `context`."""
    return -(-context // CELLS) * CELLS


def kv_buffers(
    attention: Sequence[Attention],
    context: int,
    *,
    sequences: int = 1,
    ubatch: int = UBATCH,
    unified: bool = True,
    bytes_per_value: float = 2.0,
) -> int:
    """Bytes of all KV and state buffers for `context` tokens shared by `sequences`: exact for 37 of 38 public logs.

    Layers with a window keep it and one step of tokens. `unified` False: every sequence has cells of its own, and
    windows with them. Linear layers keep one state a sequence, all in f32.
    """
    streams = 1 if unified else sequences
    each = cells(-(-context // streams))
    total = 0.0
    for group in attention:
        if group.kind in LINEAR:
            state = state_bytes(group, bytes_per_input=4)
            total += group.layers * state * sequences
            continue
        kept = each
        if group.kind in WINDOWED:
            seen = group.window * (sequences if unified else 1)
            kept = min(each, cells(seen + ubatch))
        total += group.layers * values_per_token(group) * bytes_per_value * kept * streams
    return round(total)


class Offload(Struct, frozen=True):
    """How many layers go to the cards, and what lacks if the rest does not fit the memory; 0 or less: it fits."""

    gpu_layers: int
    lack_bytes: int
    compute_bytes: int  # of memory, and of each card that is used
    usable_bytes: int  # of memory, and of the cards that are used


def offload(
    model: Model, weight_bytes: int, *, context: int, users: int, ram_bytes: int, card_bytes: int = 0, cards: int = 0
) -> Offload:
    """As many whole layers, with their KV cache, on the `cards` as these hold; the others in RAM.

    Every request has cells of its own. Of each card CARD_SHARE without a compute buffer is used.
    """
    kept = kv_buffers(model.attention, context) * users
    compute = compute_bytes(model.vocab_size, model.hidden_size, context)
    layer = (weight_bytes + kept) / model.layers
    gpu_layers = min(model.layers, cards * max(0, int((CARD_SHARE * card_bytes - compute) / layer)))
    used = cards if gpu_layers else 0
    return Offload(
        gpu_layers=gpu_layers,
        lack_bytes=round((model.layers - gpu_layers) * layer) + compute - ram_bytes,
        compute_bytes=compute * (1 + used),
        usable_bytes=ram_bytes + int(CARD_SHARE * card_bytes) * used,
    )


def compute_bytes(vocabulary: int, hidden: int, context: int, ubatch: int = UBATCH) -> int:
    """At most this many bytes for llama.cpp's compute buffer with flash attention: f32 activations, f16 attention mask.

    (vocabulary + hidden) x ubatch x 4 is exact for releases that keep logits for every token of a step: 25 of 34 public
    start-up logs, 8 more within 10 %, one without flash attention 4.5 x. The pinned release keeps a row a request, and
    (5 x hidden + 3 x feed-forward width) x ubatch x 4 was measured on dense models, which 17 x hidden bounds; so was
    the mask, context x ubatch x 2. Index tensors, some tens of KiB, are left to the reserve.
    """
    return (widest(vocabulary, hidden) + hidden) * ubatch * 4 + cells(context) * ubatch * 2


def widest(vocabulary: int, hidden: int) -> int:
    """Values that a step keeps at most for one token, beside its hidden state."""
    return max(vocabulary, 16 * hidden)


def fit(
    build: Build,
    host: Host,
    *,
    context: int,
    parallel: int,
    threads: int,
    model: Model | None = None,
    longest: bool = False,
) -> Plan | Refusal:
    """A plan to serve `parallel` requests of up to `context` tokens each from `host`'s memory, or why not.

    With the `model`'s dimensions the KV cache is exact; without, every layer counts as one that keeps all tokens.
    `longest`: if they do not fit, those with the longest context that does.
    """
    subject = f"{build.name} on {host.name}"
    if build.format != "gguf":
        return Refusal(subject=subject, reason="llama.cpp reads GGUF only", hint="use a GGUF build of the model")
    if min(context, parallel, threads) < 1:
        return Refusal(subject=subject, reason="context, parallel and threads are at least 1")
    if context > build.context:
        reason = f"{context:,} tokens of context, but the model was trained for {build.context:,}"
        return Refusal(subject=subject, reason=reason, hint=f"ask for a context of at most {build.context:,}")
    per_token = sum(g.layers * values_per_token(g) for g in model.attention) * 2 if model else kv_bytes_per_token(build)
    per_request = _request_bytes(build, model, context)
    compute = compute_bytes(build.vocabulary, build.hidden_size, context)
    available = max(0, host.available_bytes - RESERVE_BYTES)
    requests = max(0, available - build.weight_bytes - compute) // per_request
    plan = Plan(
        build=build.name,
        host=host.name,
        context=context,
        parallel=parallel,
        threads=threads,
        weight_bytes=build.weight_bytes,
        kv_bytes_per_token=per_token,
        kv_bytes=per_request * parallel,
        compute_bytes=compute,
        available_bytes=available,
        requests_that_fit=requests,
        steps=(),
    )
    steps = _steps(plan, build, model, host)
    if requests < parallel:
        shorter = _longest(plan, build, model)
        if longest and shorter >= CELLS:
            return fit(build, host, context=shorter, parallel=parallel, threads=threads, model=model)
        reason = f"needs {size(plan.total_bytes)}, but {size(available)} may be used"
        return Refusal(subject=subject, reason=reason, hint=_smaller(plan, build, model, shorter), steps=steps)
    return replace(plan, steps=steps)


def _request_bytes(build: Build, model: Model | None, context: int) -> int:
    """KV cache of one request, in f16: each has cells of its own."""
    return kv_buffers(model.attention, context) if model else kv_bytes_per_token(build) * cells(context)


def _longest(plan: Plan, build: Build, model: Model | None) -> int:
    """The context that fits for as many requests as the plan has; less than CELLS: none."""
    room = plan.available_bytes - build.weight_bytes

    def fits(steps: int) -> bool:
        kept = _request_bytes(build, model, steps * CELLS) * plan.parallel
        return kept + compute_bytes(build.vocabulary, build.hidden_size, steps * CELLS) <= room

    steps = bisect_left(range(1, build.context // CELLS + 2), x=True, key=lambda n: not fits(n))
    return min(steps * CELLS, build.context)


def _smaller(plan: Plan, build: Build, model: Model | None, shorter: int) -> str:
    """What would fit: fewer requests at this context, or a shorter context for as many."""
    ways = [f"parallel {plan.requests_that_fit} at this context"] if plan.requests_that_fit else []
    ways += [f"a context of {shorter:,} for {plan.parallel} at once"] if shorter >= CELLS else []
    if ways:
        return "these fit: " + ", or ".join(ways)
    least = compute_bytes(build.vocabulary, build.hidden_size, 1)
    least += plan.weight_bytes + _request_bytes(build, model, 1)
    return f"use a smaller or more quantised build: the least context for one request needs {size(least)}"


def _cache_steps(plan: Plan, build: Build, model: Model | None) -> Iterator[str]:
    """Layer by layer where they are known; `kept` tokens are in steps of CELLS, a window with a step of tokens."""
    layers = model.attention if model else ()
    if not layers:
        yield (
            f"KV cache: {build.layers} layers x {build.kv_heads} heads x ({build.key_dim} K + {build.value_dim} V "
            f"values) x 2 bytes = {plan.kv_bytes_per_token:,} bytes a token, at most: its layers are not known"
        )
    for group in layers:
        one = replace(group, layers=1)
        kind, kept = group.kind.replace("_", " "), kv_buffers((one,), plan.context)
        values = values_per_token(group)
        tokens = f"{values} values x 2 bytes x {kept // (values * 2):,} tokens" if values else "the state of a sequence"
        yield f"KV cache: {group.layers} {kind} layers x {kept:,} bytes ({tokens}) = {size(group.layers * kept)}"
    yield f"KV cache: {size(plan.kv_bytes // plan.parallel)} x {plan.parallel} requests = {size(plan.kv_bytes)}"


def _steps(plan: Plan, build: Build, model: Model | None, host: Host) -> tuple[str, ...]:
    mask = f"mask {cells(plan.context):,} x {UBATCH} x 2 bytes"
    vocabulary, hidden = f"{build.vocabulary:,} vocabulary", f"{build.hidden_size:,} hidden"
    wide = vocabulary if widest(build.vocabulary, build.hidden_size) == build.vocabulary else f"16 x {hidden}"
    states = f"({wide} + {hidden}) x {UBATCH} tokens x 4 bytes"
    usable = f"{size(host.available_bytes)} available of {size(host.memory_bytes)} RAM - {size(RESERVE_BYTES)} reserve"
    requests = f"{plan.requests_that_fit:,}, with {plan.context:,} tokens each"
    lines = [
        f"Weights: {size(plan.weight_bytes)}, {build.weights_source or 'as stated'}",
        *_cache_steps(plan, build, model),
        f"Compute buffer: at most {states} + {mask} = {size(plan.compute_bytes)}",
        f"Total: {size(plan.total_bytes)}",
        f"May be used: {usable} = {size(plan.available_bytes)}",
        f"Requests that fit: (may be used - weights - compute) / {size(plan.kv_bytes // plan.parallel)} = {requests}",
        f"Threads: {plan.threads} of {host.cores} physical cores",
    ]
    if host.gpus:
        lines.append(f"GPUs: {len(host.gpus)} x {host.gpus[0].name} not used: this llama.cpp build computes on the CPU")
    return tuple(lines)
