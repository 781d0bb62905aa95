"""The arithmetic of a deployment's speed, at most and as it is predicted: lines as of plan/explain.py."""

from __future__ import annotations

from collections.abc import Iterator

from freehold.facts import Model
from freehold.plan.deployment import Deployment, Place
from freehold.plan.fitted import FITTED
from freehold.plan.need import Need
from freehold.plan.params import Counts, count
from freehold.plan.roofline import HIDDEN, Machine, generation_of, work
from freehold.plan.serving import loop
from freehold.plan.speed import CPU_BANDWIDTH_GB_S, active_bytes, active_parts, token_bytes
from freehold.plan.speeds import traffic_of
from freehold.plan.traffic import number
from freehold.plan.weights import SCHEMES


def speed_steps(plan: Deployment, model: Model, place: Place, need: Need) -> Iterator[str]:
    """Lines as of `explain`: what no engine can pass, then what this one is likely to reach."""
    counts = count(model)
    if counts is None:
        return
    if plan.ceiling is not None:
        yield from _at_most(plan, model, counts, place)
    if plan.engine == "vllm" and plan.performance and plan.performance.basis == "predicted":
        yield from _likely(plan, model, counts, place, need)


def ram_gb_s(place: Place) -> float:
    return place.ram_gb_s or CPU_BANDWIDTH_GB_S


def _at_most(plan: Deployment, model: Model, counts: Counts, place: Place) -> Iterator[str]:
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
        yield f"speed of one request, at most: {bandwidth:g} x 1,000,000,000 x {plan.tp} / {read:,} = {figure}"
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
    fit = fitted.constants
    machine = Machine(card, fit, work(model, counts, plan.scheme, plan.split, need.kv_dtype))
    traffic = traffic_of(need, -(-plan.users // plan.replicas))
    found = loop(machine, (fitted.first_ms, fitted.queue), traffic, traffic.concurrency)
    step, at_once, guesses = found.step, found.at_once, 1 + traffic.draft_tokens
    done, bandwidth = machine.work, f"({card.bandwidth_gb_s:g} x 1,000,000,000"
    touched = 1 - (1 - done.touched) ** (at_once * plan.ep * guesses)
    read = done.weight_bytes + done.expert_bytes * touched
    yield (
        f"read in a step: {n(done.weight_bytes)} + {n(done.expert_bytes)} x {n(touched)} = {n(read)} bytes on a card; "
        f"weights, experts x the share that {n(at_once * plan.ep * guesses)} tokens touch"
    )
    yield f"reading: {n(read)} / {bandwidth} x {fit.memory:g}) = {n(step.reading)} s; bandwidth, share of it reached"
    yield (
        f"computing: {n(machine.token_s)} x {n(at_once)} x {guesses} / {fit.compute:g} = {n(step.computing)} s; a "
        "token at peak, requests that write at once, tokens of each, share of the peak reached"
    )
    longer, shorter = max(step.reading, step.computing), min(step.reading, step.computing)
    look = max(step.cache, step.looking)
    yield (
        f"a step: {n(longer)} + {HIDDEN} x {n(shorter)} + {n(look)} + {n(step.sending)} + {n(step.waiting)} = "
        f"{n(step.seconds)} s; the longer, what it does not hide of the shorter, the KV cache of {n(traffic.context)} "
        "tokens each, what cards send each other, launches and waits"
    )
    steps = traffic.completion_tokens / traffic.tokens_a_step
    others = found.written_s - steps * step.seconds
    yield (
        f"an answer: {n(steps)} x {n(step.seconds)} + {n(others)} = {n(found.written_s)} s; steps, and the prompts of "
        f"others that are computed meanwhile, {n(found.prompt_s)} s each"
    )
    yield (
        f"time per token: {n(found.written_s)} / {n(traffic.completion_tokens)} = {n(found.tpot_s)} s; of an answer of "
        f"so many tokens to a prompt of {n(traffic.prompt_tokens)}"
    )
    wait = fitted.queue * (found.running - 1)
    yield (
        f"time to first token: {fitted.first_ms:g} / 1000 + {n(step.seconds)} + {n(found.prompt_s)} x (1 + {n(wait)}) "
        f"= {n(found.ttft_s)} s; the way in and out, a step, the prompt and its share of the others'"
    )
    cycle = found.written_s + found.prompt_s + step.seconds
    yield (
        f"tokens a second: {n(found.running)} x {plan.ep} x {n(traffic.completion_tokens)} / {n(cycle)} = "
        f"{n(found.tokens_per_s)}; requests, ranks with their own, tokens of each, seconds that each takes"
    )
