"""The arithmetic of a deployment's speed, at most and as it is predicted: lines as of plan/explain.py."""

from __future__ import annotations

from collections.abc import Iterator

from freehold.facts import Model
from freehold.plan import cpu_fitted
from freehold.plan.cpu_speed import Engine, Memory, Work
from freehold.plan.deployment import Deployment, Place
from freehold.plan.fitted import FITTED
from freehold.plan.need import Need
from freehold.plan.params import Counts, count
from freehold.plan.roofline import HIDDEN, Machine, generation_of, look, peak, work
from freehold.plan.serving import Timing, Traffic, loop
from freehold.plan.speed import CPU_BANDWIDTH_GB_S, active_bytes, active_parts, token_bytes
from freehold.plan.speeds import on_cpu, traffic_of
from freehold.plan.traffic import number
from freehold.plan.weights import SCHEMES


def speed_steps(plan: Deployment, model: Model, place: Place, need: Need) -> Iterator[str]:
    """Lines as of `explain`: what no engine can pass, then what this one is likely to reach."""
    counts = count(model)
    if counts is None:
        return
    if plan.ceiling is not None:
        yield from _at_most(plan, model, counts, place, traffic_of(need, 1).tokens_a_step)
    if plan.engine == "vllm" and plan.performance and plan.performance.basis == "predicted":
        yield from _likely(plan, model, counts, place, need)
    elif place.memory and plan.performance and plan.performance.basis == "predicted":
        yield from _on_cpu(plan, model, counts, place.memory, on_cpu(traffic_of(need, plan.at_once), place))


def ram_gb_s(place: Place) -> float:
    return place.ram_gb_s or CPU_BANDWIDTH_GB_S


def _at_most(plan: Deployment, model: Model, counts: Counts, place: Place, a_step: float) -> Iterator[str]:
    assert plan.ceiling is not None  # noqa: S101  it was asked
    bandwidth, memory = place.card.bandwidth_gb_s if place.card else None, f"({ram_gb_s(place):g} x 1,000,000,000)"
    figure = f"{number(plan.ceiling)} tokens a second; memory bandwidth over the bytes a token reads"
    if plan.engine == "vllm" or not model.file_bytes:
        parts = [round(part) for part in active_parts(model, counts, SCHEMES[plan.scheme], plan.ep)]
        yield (
            f"read for a token: {' + '.join(f'{part:,}' for part in parts)} = {sum(parts):,} bytes; attention, dense "
            "and shared layers, experts chosen, head"
        )
    if plan.engine == "vllm":
        read = round(active_bytes(model, counts, SCHEMES[plan.scheme], plan.ep))
        guessed = f" x {number(a_step)}" if a_step > 1 else ""
        words = f"{figure}{', tokens that a step writes' if guessed else ''}"
        yield f"speed of one request, at most: {bandwidth:g} x 1,000,000,000 x {plan.tp} / {read:,}{guessed} = {words}"
        return
    read, layers = round(token_bytes(model, counts, plan.scheme)), model.layers
    parts = [f"{layers - plan.gpu_layers} / {memory}"] if plan.gpu_layers < layers else []
    parts += [f"{plan.gpu_layers} / ({bandwidth:g} x 1,000,000,000)"] if plan.gpu_layers else []
    yield f"speed of one request, at most: {layers} / ({read:,} x ({' + '.join(parts)})) = {figure}, layer by layer"


def _likely(plan: Deployment, model: Model, counts: Counts, place: Place, need: Need) -> Iterator[str]:
    """The steps of plan/roofline.py and plan/serving.py, with the constants that were fitted."""
    card, n = place.card, number
    assert card is not None  # noqa: S101  vLLM is planned on cards only
    fitted = FITTED[plan.engine, generation_of(card)]
    fit = fitted.constants_of(model)
    machine = Machine(card, fit, work(model, counts, plan.scheme, plan.split, need.kv_dtype))
    traffic = traffic_of(need, plan.at_once)
    found = loop(machine, (fitted.first_ms, fitted.queue), traffic, traffic.concurrency)
    step, at_once, guesses, done = found.step, found.at_once, 1 + traffic.draft_tokens, machine.work
    bandwidth, touched = f"({card.bandwidth_gb_s:g} x 1,000,000,000", done.touched_by(at_once * guesses)
    read, own = done.weight_bytes + done.expert_bytes * touched, max(1.0, at_once / plan.ep)
    yield (
        f"read in a step: {n(done.weight_bytes)} + {n(done.expert_bytes)} x {n(touched)} = {n(read)} bytes on a card; "
        f"weights, experts x the share that {n(at_once * guesses)} tokens touch"
    )
    kinds = [(flops, *peak(card, kind)) for kind, flops in done.flops]
    peaks = (
        f"{n(flops)} / ({top:.0f}{'' if own_kind else f' x {fit.weight_only:g}'})" for flops, top, own_kind in kinds
    )
    yield (
        f"a token at peak: {' + '.join(peaks)} = {n(machine.token_s)} s; operations on a card by what they are "
        "computed in, over what it does a second, and what is left of that where it cannot compute in their precision"
    )
    yield f"reading: {n(read)} / {bandwidth} x {fit.memory:g}) = {n(step.reading)} s; bandwidth, share of it reached"
    yield (
        f"computing: {n(machine.token_s)} x {n(own)} x {guesses} / {fit.compute:g} = {n(step.computing)} s; a "
        "token at peak, requests that write at once, tokens of each, share of the peak reached"
    )
    yield from _beside(machine, found, traffic)
    longer, shorter = max(step.reading, step.computing), min(step.reading, step.computing)
    yield (
        f"a step: {n(longer)} + {HIDDEN} x {n(shorter)} + {n(max(step.cache, step.looking))} + {n(step.sending)} + "
        f"{n(step.waiting)} = {n(step.seconds)} s; the longer, what it does not hide of the shorter, the KV cache of "
        f"{n(traffic.context)} tokens each, what cards send each other, launches and waits"
    )
    yield from _request(machine, (fitted.first_ms, found), traffic)


def _request(machine: Machine, of: tuple[float, Timing], traffic: Traffic) -> Iterator[str]:
    """A whole request, of steps and prompts."""
    (first_ms, found), fit, n = of, machine.fit, number
    step = found.step
    alone, tokens = traffic.steps * step.seconds, traffic.computed_tokens
    looked = found.prompt_s - tokens * (machine.prompt_token_s + machine.send_s)
    yield (
        f"a prompt: {n(tokens)} x ({n(machine.prompt_token_s)} + {n(machine.send_s)}) + {n(max(0.0, looked))} = "
        f"{n(found.prompt_s)} s; tokens computed, their matrices at {fit.prefill:g} of the peak, what is sent, "
        f"attention at {fit.attention:g} of it"
    )
    yield (
        f"a request: {n(traffic.steps)} x {n(step.seconds)} + {n(step.seconds)} + {n(found.prompt_s)} + "
        f"{n(found.others_s)} = {n(found.cycle_s)} s; its steps, one more with its prompt, the prompts of the others"
    )
    yield (
        f"an answer: {n(alone)} x {n(found.cycle_s)} / {n(found.cycle_s - found.others_s)} = {n(found.written_s)} s; "
        "its steps alone, stretched as the whole is by the prompts of others"
    )
    yield (
        f"time per token: {n(found.written_s)} / {n(traffic.completion_tokens)} = {n(found.tpot_s)} s; of an answer of "
        f"so many tokens to a prompt of {n(traffic.prompt_tokens)}"
    )
    yield (
        f"time to first token: {first_ms:g} / 1000 + {n(step.seconds)} + {n(found.prompt_s)} x (1 + "
        f"{n(found.waits)} x {n(found.on_rank - 1)}) = {n(found.ttft_s)} s; the way in and out, a step, the prompt and "
        "its share of the others'"
    )
    yield (
        f"tokens a second: {n(found.running)} x {n(traffic.completion_tokens)} / {n(found.cycle_s)} = "
        f"{n(found.tokens_per_s)}; requests, tokens of each, seconds that each takes"
    )


def _beside(machine: Machine, found: Timing, traffic: Traffic) -> Iterator[str]:
    """What a step takes beside the weights."""
    fit, done, step, n = machine.fit, machine.work, found.step, number
    own, guesses, seen = max(1.0, found.at_once / done.split.ep), 1 + traffic.draft_tokens, look(done, traffic.context)
    if step.cache >= step.looking:
        sum_ = f"{n(own)} x {n(seen.cache_bytes)} / ({n(machine.bandwidth)} x {fit.cache:g}) = {n(step.cache)}"
        yield f"KV cache: {sum_} s; requests, bytes that each reads on a card, bandwidth, share of it reached"
    else:
        sum_ = f"{n(own)} x {guesses} x {n(seen.flops)} / {n(machine.attention)} = {n(step.looking)}"
        yield f"attention: {sum_} s; requests, tokens of each, operations, {fit.attention:g} of the peak in BF16"
    if step.sending:
        ranks, hidden, layers = done.together, done.model.hidden_size, done.model.layers
        sent = f"{layers} x 4 x ({ranks} - 1) / {ranks} x {hidden} x 2 / {n(machine.link)}"
        yield (
            f"sending: {n(own)} x {guesses} x {sent} = {n(step.sending)} s; requests, tokens of each, two all-reduces "
            f"a layer, {fit.link:g} of the link"
        )
    each = found.at_once * done.model.layers * fit.sequence_ns
    yield (
        f"waiting: {n(machine.waits_s)} + {n(each)} / 1,000,000,000 = {n(step.waiting)} s; layers, experts, "
        "all-reduces and the step itself, then each request in each layer"
    )


def _on_cpu(plan: Deployment, model: Model, counts: Counts, memory: Memory, asked: Work) -> Iterator[str]:
    """The step of plan/cpu_speed.py, with the constants that were measured."""
    n, step = number, Engine(model, counts, plan.scheme, memory).step(asked)
    longer, shorter = max(step.loaded, step.computed), min(step.loaded, step.computed)
    parts = " + ".join(n(each) for each in (step.waited, step.attention, step.overhead))
    yield (
        f"a step on the CPU: {n(longer)} + {cpu_fitted.SERIAL} x {n(shorter)} + {parts} = {n(step.seconds)} s; the "
        "longer of loading weights and computing with them, what it does not hide of the shorter, rows waited for, "
        f"attention to {asked.context_tokens:,} tokens, the program; threads: {asked.threads}; one token each request"
    )
    yield f"tokens a second: {asked.requests} / {n(step.seconds)} = {n(asked.requests / step.seconds)}; all together"
