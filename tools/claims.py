"""Writes docs/claims.md: what is commonly printed about models, and what the catalogue and our arithmetic say of it.

Every verdict and every figure is computed by Freehold's own functions; --check only compares with the page.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from claimed import (
    FALSE,
    H100,
    PARTLY,
    TRUE,
    UNSUPPORTED,
    Finding,
    Known,
    among,
    cached,
    cited,
    counted,
    fewest,
    gb,
    interruptible,
    losses,
    rented,
    room,
    sources,
    tokens_per_s,
    weights,
)

from freehold import catalogue
from freehold.plan.cost import Interruptions, hourly, spot_hourly
from freehold.plan.performance import Performance
from freehold.plan.speed import active_parts
from freehold.plan.traffic import number as n
from freehold.plan.units import GIB
from freehold.plan.weights import SCHEMES, Split

PAGE = Path(__file__).resolve().parents[1] / "docs" / "claims.md"
SIZES = "dimensions of the catalogue (`freehold show MODEL`); memory as in `freehold plan --explain`"


def mistral_large(known: Known) -> Finding:
    models = [known.model(f"mistral-large-{version}") for version in ("2407", "2411")]
    apache = [m for m in models if known.licence(m).spdx == "Apache-2.0"]
    own = known.licence(models[0])
    clauses = [f"{m.id}: {known.licence(m).name}, commercial use {known.licence(m).commercial_use}" for m in models]
    clauses += [f"{term.says}; {term.clause}" for term in own.terms if term.kind == "non-commercial"]
    says = "Both versions are under a research licence that excludes a company's own work, proofs of concept included."
    return Finding(TRUE if len(apache) == len(models) else FALSE, says, clauses, cited(own))


def gpt_oss(known: Known) -> Finding:
    own = known.licence(known.model("gpt-oss-120b"))
    terms = [f"{own.name}, commercial use {own.commercial_use}", *(f"{t.says}; {t.clause}" for t in own.terms)]
    verdict = FALSE if own.spdx == "Apache-2.0" else TRUE
    return Finding(verdict, "It is Apache-2.0 with a sentence beside it: the law must be obeyed.", terms, cited(own))


def qwen_active(known: Known) -> Finding:
    family = [m for m in known.catalogue.models if m.id.startswith("qwen3.5-") and m.moe]
    other = known.model("qwen3-235b-a22b")
    steps = []
    for m in (*family, other):
        counts = counted(m)
        sum_ = f"{counts.text:,} - {counts.idle:,} = {counts.active:,}"
        steps.append(f"{m.id}: {sum_} parameters a token; all, experts not chosen")
    hit = any(among(m.parameters.active or 0, 21e9, 23e9) for m in family)
    says = f"None of the family does; {other.id}, of the generation before, activates 22B."
    return Finding(TRUE if hit else FALSE, says, steps, "dimensions: " + "; ".join(family[0].sources["dims"]))


def qwen_context(known: Known) -> Finding:
    family = [m for m in known.catalogue.models if m.id.startswith("qwen3.5-")]
    steps = [
        f"{m.id}: {m.context.native:,} native, {m.context.extended or 0:,} by {m.context.extension}" for m in family
    ]
    stated = family[0].sources
    says = "262,144 tokens are native in every size; more only by stretching the positions."
    return Finding(
        TRUE if all(m.context.native == 262_144 for m in family) else FALSE,
        says,
        steps,
        "; ".join(stated.get("context", stated["dims"])),
    )


def scout_int4(known: Known) -> Finding:
    size, step = weights(known, "llama-4-scout-17b-16e", "int4-gptq")
    left = room(known, "llama-4-scout-17b-16e", "int4-gptq", H100, Split())
    barred = known.model("llama-4-scout-17b-16e").licence.eu_companies is False
    holds = among(size, 55e9, 65e9) and left.tokens >= 8192
    law = " The licence gives companies established in the EU no right to it." if barred else ""
    says = f"The weights do: {gb(size)}. A request of {left.tokens:,} tokens fits beside them, not one of 10M.{law}"
    verdict = (PARTLY if barred or left.tokens < 10e6 else TRUE) if holds else FALSE
    return Finding(verdict, says, [step, *left.steps], SIZES)


def maverick(known: Known) -> Finding:
    rooms = {s: fewest(known, "llama-4-maverick-17b-128e", s) for s in ("int4-gptq", "fp8", "bf16")}
    steps = [weights(known, "llama-4-maverick-17b-128e", s)[1] for s in rooms]
    steps += [step for found in rooms.values() for step in found.steps]
    said = ", ".join(f"{found.split.cards} in {SCHEMES[s].name}" for s, found in rooms.items())
    cards = [found.split.cards for found in rooms.values()]
    verdict = TRUE if set(cards) == {4} else PARTLY if 4 in cards else FALSE
    return Finding(verdict, f"Cards that hold it, a power of two to a machine: {said}.", steps, SIZES)


def deepseek_v3(known: Known) -> Finding:
    first, later = known.model("deepseek-v3"), [known.model(f"deepseek-{v}") for v in ("v3-0324", "v3.1", "v3.2")]
    counts = counted(first)
    steps = [
        f"all: {counts.total:,} - {counts.mtp:,} = {counts.text:,} parameters; without the layer that drafts",
        f"a token: {counts.text:,} - {counts.idle:,} = {counts.active:,} parameters",
        *(f"{m.id}: {known.licence(m).name}" for m in (first, *later)),
    ]
    numbers = among(counts.text, 670e9, 672e9) and among(counts.active, 36.5e9, 38e9)
    free = known.licence(first).spdx == "MIT"
    says = "The numbers are right. The weights of December 2024 have a licence with limits on use; MIT came later."
    verdict = TRUE if numbers and free else PARTLY if numbers else FALSE
    return Finding(verdict, says, steps, cited(known.licence(first)))


def llama_fp8(known: Known) -> Finding:
    size, step = weights(known, "llama-3.3-70b", "fp8")
    left = room(known, "llama-3.3-70b", "fp8", H100, Split())
    _, of_token = cached(known, "llama-3.3-70b")
    says = f"{gb(size)} of weights fit, with a KV cache for {left.tokens:,} tokens in all: a trial, not a service."
    full = left.tokens >= known.model("llama-3.3-70b").context.native
    verdict = FALSE if not left.tokens else TRUE if full else PARTLY
    return Finding(verdict, says, [step, *left.steps, of_token], SIZES)


def scout_context(known: Known) -> Finding:
    model = known.model("llama-4-scout-17b-16e")
    cache, step = cached(known, model.id)
    whole = cache * model.context.native
    card = known.card(H100)
    cards = n(whole / card.memory_bytes)
    steps = [
        f"native context: {model.context.native:,} tokens",
        step,
        f"a full request: {cache:,} x {model.context.native:,} = {whole:,} bytes; without the layers of a window",
        f"cards for that alone: {whole:,} / {card.memory_bytes:,} = {cards} x {card.id}",
    ]
    says = f"The publisher says so. Its KV cache is then {gb(whole)}; we know of no test of its answers at that length."
    verdict = (TRUE if whole < card.memory_bytes else PARTLY) if model.context.native >= 10e6 else FALSE
    return Finding(verdict, says, steps, "; ".join(model.sources.get("context", model.sources["dims"])))


def gpt_oss_scores(known: Known) -> Finding:
    wide, deep = known.figures("gpt-oss-120b", "MMLU-Pro"), known.figures("gpt-oss-120b", "GPQA-Diamond")
    steps = [f"GPQA-Diamond: {score.value:g} ({words})" for words, score in deep]
    steps += [f"MMLU-Pro: {score.value:g} ({words})" for words, score in wide] or ["MMLU-Pro: no source"]
    met = any(score.value >= 88 for _, score in wide) and any(among(score.value, 84, 86) for _, score in deep)
    best = max((score.value for _, score in deep), default=0.0)
    says = (
        f"{best:g} is the best GPQA-Diamond we may quote; the 90.0 of the publisher's card (arXiv:2508.10925) is MMLU."
    )
    return Finding(TRUE if met else UNSUPPORTED, says, steps, sources(deep + wide))


def qwen_humaneval(known: Known) -> Finding:
    found = known.figures("qwen3-32b", "HumanEval")
    steps = [f"{score.value:g} ({words})" for words, score in found] or ["HumanEval: no source"]
    met = any(among(score.value, 88, 90) for _, score in found)
    says = "No figure of the publisher and none of one try a question; what there is counts the best of ten."
    return Finding(TRUE if met else UNSUPPORTED, says, steps, sources(found) or "none")


def eight_b(known: Known) -> Finding:
    found = [weights(known, name, "fp16") for name in ("llama-3.1-8b", "qwen3-8b")]
    small = room(known, "llama-3.1-8b", "fp16", "RTX-4080", Split())
    next_one = room(known, "llama-3.1-8b", "fp16", "L4", Split())
    steps = [step for _, step in found] + small.steps + next_one.steps
    right = all(among(size, 15.5e9, 16.5e9) for size, _ in found)
    holds = "holds them" if small.tokens else "does not hold them"
    says = (
        f"So much are the weights. A card of 16 GB {holds}; one of 24 GB holds {next_one.tokens:,} tokens beside them."
    )
    return Finding((TRUE if small.tokens else PARTLY) if right else FALSE, says, steps, SIZES)


def seventy_b(known: Known) -> Finding:
    size, step = weights(known, "llama-3.3-70b", "fp16")
    left = room(known, "llama-3.3-70b", "fp16", H100, Split(tp=2))
    native = known.model("llama-3.3-70b").context.native
    says = f"{gb(size)}. What is left holds {left.tokens:,} tokens in all; one request may have {native:,}."
    full = left.tokens >= native
    verdict = (TRUE if full else PARTLY) if among(size, 138e9, 142e9) and left.tokens else FALSE
    return Finding(verdict, says, [step, *left.steps], SIZES)


def kv_overhead(known: Known) -> Finding:
    steps, shares, ranges = [], [], []
    for name in ("llama-3.1-8b", "qwen3-32b", "llama-3.3-70b"):
        size, (each, _) = weights(known, name, "fp16")[0], cached(known, name)
        for users, tokens in ((1, 8192), (16, 8192), (16, 32_768)):
            share = 100 * users * tokens * each / size
            shares.append(share)
            what = f"{name}, {users} x {tokens:,} tokens"
            steps.append(f"{what}: 100 x {users} x {tokens} x {each:,} / {size:,} = {n(share)} % of the weights")
        few, many = (part * size / each for part in (0.2, 0.3))
        steps += [
            f"{name}, {part}: {part} x {size:,} / {each:,} = {n(part * size / each)} tokens" for part in (0.2, 0.3)
        ]
        ranges.append(f"{few / 1e3:.0f} to {many / 1e3:.0f} thousand for {name}")
    inside = [share for share in shares if among(share, 20, 30)]
    says = (
        f"It is no property of a model: here {min(shares):.0f} to {max(shares):.0f} %, with users and context. "
        f"It holds for this many tokens of all requests together: {', '.join(ranges)}."
    )
    return Finding(TRUE if len(inside) == len(shares) else PARTLY, says, steps, SIZES)


def qwen_sizes(known: Known) -> Finding:
    (eight, first), (four, second) = weights(known, "qwen3-32b", "fp8"), weights(known, "qwen3-32b", "int4-awq")
    steps = [first, second]
    steps += [f"in GiB: {size:,} / {GIB:,} = {n(size / GIB)} GiB" for size in (eight, four)]
    exact = among(eight / 1e9, 32.5, 33.5) and among(four / 1e9, 17.5, 18.5)
    near = all(abs(size / said - 1) < 0.08 for size, said in ((eight, 33e9), (four, 18e9)))
    says = (
        f"{gb(eight)} and {gb(four)}: embeddings and head stay in 16 bits, and scales come on top. "
        f"In GiB they are {eight / GIB:.0f} and {four / GIB:.0f}."
    )
    return Finding(TRUE if exact else PARTLY if near else FALSE, says, steps, SIZES)


def million(known: Known) -> Finding:
    offers = rented(known, H100)
    ends, steps, met, prices = [offers[0], offers[-1]], [], [], []
    for offer in ends:
        hour = hourly(offer) / offer.cards
        needed = hour / 0.85 * 1e6 / 3600
        steps.append(f"{offer.id}, {offer.date}: {n(hour)} / 0.85 x 1000000 / 3600 = {n(needed)} tokens/s; USD an hour")
        for name, scheme in (("qwen3-32b", "fp8"), ("llama-4-scout-17b-16e", "int4-gptq")):
            speed = tokens_per_s(known, name, scheme, H100, Split())
            if isinstance(speed, Performance):
                band, price = speed.tokens_per_s, hour / speed.tokens_per_s.value / 3600 * 1e6
                met.append(band.low <= needed <= band.high)
                prices.append(price)
                sum_ = f"{n(hour)} / {n(band.value)} / 3600 x 1000000 = {n(price)}"
                likely = f"{n(band.low)} to {n(band.high)} tokens/s, {speed.concurrency} at once"
                steps.append(f"{name} in {scheme}: {sum_} USD; {likely}")
            elif offer is ends[0]:
                steps.append(f"{name} in {scheme}: {speed.reason}")
    between = not prices or any(met) or min(prices) <= 0.85 <= max(prices)
    verdict = TRUE if met and all(met) else PARTLY if between else FALSE
    says = (
        "A price a token is a speed in disguise: the card must write just this, every second that is paid. Half the "
        "hours idle double it; counting the tokens that are read divides it."
    )
    return Finding(verdict, says, steps, "; ".join(dict.fromkeys(o.source for o in ends)))


def dearer(known: Known) -> Finding:
    big, small = fewest(known, "deepseek-v3", "fp8-block"), fewest(known, "qwen3-32b", "fp8")
    cards = big.split.cards / small.split.cards
    model, other = known.model("deepseek-v3"), known.model("qwen3-32b")
    served = ((model, "fp8-block"), (other, "fp8"))
    reads = [sum(active_parts(m, counted(m), SCHEMES[s])) for m, s in served]
    work = reads[0] / reads[1]
    steps = [
        *big.steps,
        f"cards: {big.split.cards} / {small.split.cards} = {n(cards)} times as many",
        f"read for a token: {reads[0]:.0f} / {reads[1]:.0f} = {n(work)} times as much; bytes of active weights",
    ]
    means = "times the tokens/s of one card, from all of them"
    steps += [f"{times} times dearer: {n(cards)} / {times} = {n(cards / times)} {means}" for times in (12, 18)]
    fast = tokens_per_s(known, model.id, "fp8-block", H100, big.split)
    slow = tokens_per_s(known, other.id, "fp8", H100, small.split)
    verdict, full = PARTLY, "they deliver more"
    if isinstance(fast, Performance) and isinstance(slow, Performance):
        one, all_ = slow.tokens_per_s, fast.tokens_per_s
        ratio, least, most = cards * one.value / all_.value, cards * one.low / all_.high, cards * one.high / all_.low
        steps += [
            (
                f"kept full: {n(cards)} x {n(one.value)} / {n(all_.value)} = {n(ratio)} times; one, all; "
                f"{slow.concurrency} and {fast.concurrency} at once"
            ),
            f"at best: {n(cards)} x {n(one.low)} / {n(all_.high)} = {n(least)} times; the ends of both bands",
            f"at worst: {n(cards)} x {n(one.high)} / {n(all_.low)} = {n(most)} times; {fast.source}",
        ]
        verdict = TRUE if among(ratio, 12, 18) else PARTLY if least <= 18 and most >= 12 else FALSE
        full = f"it is likely {ratio:.0f} times ({least:.0f} to {most:.0f})"
    else:
        steps.append("throughput of both: nobody measured or predicted it here")
    says = (
        f"With few users, when {big.split.cards} cards deliver little more than one. Kept full {full}, as a token "
        f"reads only {work:.1f} times as much."
    )
    return Finding(verdict, says, steps, SIZES)


def spot(known: Known) -> Finding:
    cheap, full, steps, savings = 1.03, 2.50, [], []
    for a_day, lost, fallback in ((0, 0, 0), (2, 10, 0), (12, 15, 0), (2, 10, 0.1), (2, 10, 0.2)):
        cut = Interruptions(a_day=a_day, lost_minutes=lost, fallback=fallback)
        hour = spot_hourly(cheap, full, cut)
        savings.append(100 * (1 - hour / full))
        what = f"{a_day} interruptions a day of {lost} minutes, on-demand for {100 * fallback:g} percent"
        sum_ = f"100 x (1 - ((1 - {fallback:g}) x {cheap} / {n(cut.useful)} + {fallback:g} x {full}) / {full})"
        steps.append(f"{what}: {sum_} = {n(savings[-1])} % saved")
    usual = Interruptions()
    half = (full / 2 - cheap / usual.useful) / (full - cheap / usual.useful)
    paid = f"{cheap} / {n(usual.useful)}"
    steps += [
        f"half is saved, interrupted twice: ({full} / 2 - {paid}) / ({full} - {paid}) = {n(half)} of hours on demand",
        f"nothing is saved: 1440 x (1 - {cheap} / {full}) = {n(1440 * (1 - cheap / full))} minutes lost a day",
    ]
    steps += interruptible(known, H100)
    verdict = TRUE if min(savings) >= 59.5 else PARTLY if max(savings) >= 58 else FALSE
    says = f"{savings[0]:.1f} % if it is never interrupted and always to be had; here down to {min(savings):.0f} %."
    return Finding(verdict, says, steps, "the two prices as printed; the arithmetic of `freehold cost --interruptions`")


def int4(known: Known) -> Finding:
    found, steps, source = losses(known, ("int4-gptq", "int4-awq"))
    inside = [each for each in found if among(100 - each.median, 0.5, 1.5)]
    worst = min(found, key=lambda each: each.median)
    low, high = 100 - max(each.most for each in found), 100 - min(each.least for each in found)
    says = (
        f"The median loss of {len(inside)} of {len(found)} models is in that range. Small models lose more "
        f"({worst.model}: {100 - worst.median:.1f} %), large ones less, and one benchmark says little: single pairs go "
        f"from {low:.0f} to {high:.0f} %."
    )
    return Finding(TRUE if len(inside) == len(found) else PARTLY if inside else FALSE, says, steps, source)


def int8(known: Known) -> Finding:
    found, steps, source = losses(known, ("int8",))
    most = max(100 - each.median for each in found)
    smallest = min((known.sizes().get(each.model, 0) or 9e99) for each in found)
    worst = 100 - min(each.least for each in found)
    judges = sum(each.pairs - each.by_maker for each in found)
    says = (
        f"In the median: no model's is above {most:.1f} %. A single benchmark lost up to {worst:.0f} %, no model below "
        f"{smallest / 1e9:.0f}B was measured, and {judges or 'none'} of the pairs by others than who made the files."
    )
    return Finding(FALSE if most > 2 else TRUE if worst <= 2 and judges else PARTLY, says, steps, source)


CLAIMS: tuple[tuple[str, Callable[[Known], Finding]], ...] = (
    ("Mistral Large 2 is under Apache 2.0", mistral_large),
    ("gpt-oss has a custom licence", gpt_oss),
    ("Qwen3.5 activates 22B parameters", qwen_active),
    ("Qwen3.5 has 256K tokens of context", qwen_context),
    ("Llama 4 Scout runs on one H100 in INT4, with 55 to 65 GB", scout_int4),
    ("Llama 4 Maverick needs at least four H100", maverick),
    ("DeepSeek-V3 has 671B parameters, 37B active, and is MIT", deepseek_v3),
    ("A 70B model in FP8 fits one card of 80 GB", llama_fp8),
    ("Llama 4 Scout has 10M tokens of context", scout_context),
    ("gpt-oss-120b: about 90 on MMLU-Pro, 85 on GPQA", gpt_oss_scores),
    ("Qwen3-32B: 88 to 90 on HumanEval", qwen_humaneval),
    ("An 8B model in FP16 takes 16 GB", eight_b),
    ("A 70B model in FP16 is 140 GB, on two cards of 80 GB", seventy_b),
    ("The KV cache adds 20 to 30 %", kv_overhead),
    ("Qwen3-32B is 33 GB in FP8 and 18 GB in INT4", qwen_sizes),
    ("Qwen3-32B and Scout cost about 0.85 USD a million tokens on one H100", million),
    ("DeepSeek is 12 to 18 times dearer a token", dearer),
    ("Spot at 1.03 instead of 2.50 USD saves 60 %", spot),
    ("INT4 costs 0.5 to 1.5 % of quality", int4),
    ("INT8 is nearly lossless", int8),
)
INTRODUCTION = """# Claims

What is commonly printed about open-weight models, and what their dimensions, our catalogue and arithmetic say of it.
`tools/claims.py` computes every verdict, and every figure of ours, with the functions that decide in `freehold plan`;
the sentences around them are written by hand. A test fails when the page is not what the tool prints.

    python tools/claims.py           # after the catalogue or a formula changed
    python tools/claims.py --check   # what CI asks

- **true**: the figures bear it out as it stands.
- **only under these conditions**: it is right for what is named, and misleads without that.
- **false**: a source or the arithmetic contradicts it.
- **not supported by any source we have**: nobody whom we may quote measured it. It may still be so.

Memory is that of vLLM with eight requests in a step and its defaults otherwise. GB are powers of ten, GiB of two. In a
step, what is left of `=` computes to what is right of it.
"""


def page(known: Known) -> str:
    """The whole page."""
    found = [(said, check(known)) for said, check in CLAIMS]
    table = [f"| {i} | {said} | {each.verdict} |" for i, (said, each) in enumerate(found, 1)]
    parts = [INTRODUCTION, "\n".join(["| | claim | verdict |", "|---|---|---|", *table, ""])]
    for i, (said, each) in enumerate(found, 1):
        steps = "\n".join(f"- {step}" for step in each.steps)
        verdict = f"**{each.verdict.capitalize()}.** {each.says}"
        parts.append(f'## {i}. "{said}"\n\n{verdict}\n\n{steps}\n\nSource: {each.source}\n')
    return "\n".join(parts)


def main() -> int:
    """Write the page, or with --check say whether it is what would be written."""
    text = page(Known(catalogue.load(), catalogue.scores(), catalogue.pairs()))
    if "--check" in sys.argv[1:]:
        same = PAGE.exists() and PAGE.read_text() == text
        print("claims.md is what the tool says" if same else "claims.md is stale: run tools/claims.py")
        return int(not same)
    PAGE.write_text(text)
    print(f"docs/claims.md: {len(CLAIMS)} claims")
    return 0


if __name__ == "__main__":
    sys.exit(main())
