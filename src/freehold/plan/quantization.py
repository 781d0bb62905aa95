"""What a model loses in fewer bits: recovery = value / base, recomputed, over matched pairs only, as a range.

A pair counts where one party measured both precisions in one harness, the base was in 16 bits, and the scale has a zero
that means zero. KL divergence, perplexity and agreement on tokens are no scores and become no percentage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import median

from msgspec import Struct

from freehold.facts import Pair
from freehold.plan.weights import SCHEMES

UNQUANTIZED = ("bf16", "fp16", "fp32", "gguf-f16")
LEAST_BASE_PCT = 10.0  # of the scale; below it one question more or less is worth more than any loss


class Loss(Struct, frozen=True, kw_only=True):
    """What is kept of the scores in 16 bits, in percent of them; 100: nothing is lost."""

    model: str
    scheme: str
    least: float
    median: float
    most: float
    pairs: int  # that count
    benchmarks: int
    measured_by: tuple[str, ...]
    by_maker: int  # pairs measured by whoever made the quantized files
    left_out: tuple[tuple[str, int], ...] = ()  # why, and how many: scores of the same model in this precision


def why_not(pair: Pair) -> str:
    """Why a pair says nothing of a loss from 16 bits; "": it does."""
    least = LEAST_BASE_PCT / (100 if pair.unit == "fraction" else 1)
    reasons = {
        pair.left_out: bool(pair.left_out),
        f"{pair.unit} is no score": pair.unit not in ("score", "fraction"),
        f"the base is quantized itself: {pair.base}": pair.base not in UNQUANTIZED,
        "low trust: a figure that others repeat": pair.trust == "low",
        "a value is missing": pair.base_value is None or pair.value is None,
        f"the base is below {LEAST_BASE_PCT:g} %: chance moves it more than a loss": (pair.base_value or 0.0) < least,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def recovery_pct(pair: Pair) -> float:
    """Value in percent of the base, of a pair that counts."""
    return 100 * (pair.value or 0.0) / (pair.base_value or 1.0)


def contradicts(pair: Pair) -> bool:
    """Whether the recovery that the source prints is not that of its own two values, however they were rounded."""
    if pair.printed is None or not pair.base_value or pair.value is None:
        return False
    base, value, printed = (_half_digit(each) for each in (pair.base_value, pair.value, pair.printed))
    low = 100 * (pair.value - value) / (pair.base_value + base) - printed
    high = 100 * (pair.value + value) / max(pair.base_value - base, 1e-9) + printed
    return not low <= pair.printed <= high


def _half_digit(value: float) -> float:
    return 0.5 / 10 ** len(repr(value).partition(".")[2])


def loss(pairs: Iterable[Pair], model: str, scheme: str) -> Loss | None:
    """What this model keeps in just this precision. None: not measured; nothing else stands in for it."""
    return _spread((pair for pair in pairs if (pair.model, pair.scheme) == (model, scheme)), model, scheme)


def of_model(pairs: Iterable[Pair], model: str) -> tuple[Loss, ...]:
    """Every precision in which this model was measured, finer ones first."""
    mine = [pair for pair in pairs if pair.model == model]
    found = (loss(mine, model, scheme) for scheme in {pair.scheme for pair in mine} - {""})
    return tuple(sorted(filter(None, found), key=lambda each: (-_bytes(each.scheme), each.scheme)))


def of_scheme(pairs: Iterable[Pair], scheme: str, sizes: Mapping[str, int]) -> tuple[Loss, ...]:
    """Every model that was measured in this precision, by `sizes`, which are parameters; those without one last."""
    alike = [pair for pair in pairs if pair.scheme == scheme]
    found = (loss(alike, model, scheme) for model in {pair.model for pair in alike})
    return tuple(sorted(filter(None, found), key=lambda each: (sizes.get(each.model) or float("inf"), each.model)))


def pooled(pairs: Iterable[Pair], scheme: str) -> Loss | None:
    """All models together: how wide what people call one precision is."""
    return _spread((pair for pair in pairs if pair.scheme == scheme), "", scheme)


def nearest(pairs: Iterable[Pair], model: str, scheme: str, sizes: Mapping[str, int]) -> Loss | None:
    """What was measured instead: the same model in the precision nearest in bytes, else the model nearest in size in
    this precision. It is to be named as what it is: it does not say what is lost here.
    """
    pairs = tuple(pairs)
    if own := of_model(pairs, model):
        return min(own, key=lambda each: abs(_bytes(each.scheme) - _bytes(scheme)))
    others, size = of_scheme(pairs, scheme, sizes), sizes.get(model)
    sized = [each for each in others if each.model in sizes]
    return min(sized, key=lambda each: abs(sizes[each.model] / size - 1)) if sized and size else None


def words(found: Loss) -> str:
    """A loss as one sentence."""
    span = f"{found.least:.1f} to {found.most:.1f} %" if found.pairs > 1 else f"{found.median:.1f} %"
    middle = f" (median {found.median:.1f})" if found.pairs > 1 else ""
    made = {0: "", found.pairs: ", who made the files"}.get(found.by_maker, f"; {found.by_maker} by who made the files")
    pairs = f"{found.pairs} matched pair{'s' if found.pairs > 1 else ''}"
    return f"keeps {span}{middle} of its scores in 16 bits, in {pairs} by {', '.join(found.measured_by)}{made}"


def answer(pairs: Iterable[Pair], model: str, scheme: str, sizes: Mapping[str, int]) -> str:
    """What is lost, or that nobody measured it, with the nearest that was measured."""
    pairs = tuple(pairs)
    if found := loss(pairs, model, scheme):
        return words(found)
    near = nearest(pairs, model, scheme, sizes)
    if near is None:
        return "not measured"
    return f"not measured; the nearest that was, which is something else: {near.model} in {near.scheme} {words(near)}"


def _bytes(scheme: str) -> float:
    return SCHEMES[scheme].experts


def _spread(pairs: Iterable[Pair], model: str, scheme: str) -> Loss | None:
    """Of the pairs that count; None: of none."""
    kept, left_out = [], Counter[str]()
    for pair in pairs:
        if why := why_not(pair):
            left_out[why] += 1
        else:
            kept.append(pair)
    if not kept:
        return None
    found = [recovery_pct(pair) for pair in kept]
    return Loss(
        model=model, scheme=scheme, least=min(found), median=median(found), most=max(found), pairs=len(kept),
        benchmarks=len({pair.benchmark for pair in kept}),
        measured_by=tuple(sorted({pair.measured_by for pair in kept})),
        by_maker=sum(pair.maker for pair in kept), left_out=tuple(sorted(left_out.items())),
    )  # fmt: skip
