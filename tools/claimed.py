"""Figures that several claims of tools/claims.py rest on, each with the step that computes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from freehold.catalogue import Catalogue
from freehold.facts import Card, Licence, Model, Offer, Pair, Score
from freehold.plan import quantization, vllm
from freehold.plan.cost import hourly, superseded
from freehold.plan.kv import WINDOWED, kv_bytes_per_token
from freehold.plan.params import Counts, count
from freehold.plan.performance import Performance, Unpredicted
from freehold.plan.roofline import work
from freehold.plan.scores import Scores
from freehold.plan.serving import Traffic, predict
from freehold.plan.traffic import number as n
from freehold.plan.units import GIB
from freehold.plan.weights import SCHEMES, Split, checkpoint_bytes, held_bytes, weigh

Verdict = Literal["true", "false", "only under these conditions", "not supported by any source we have"]
TRUE: Verdict = "true"
FALSE: Verdict = "false"
PARTLY: Verdict = "only under these conditions"
UNSUPPORTED: Verdict = "not supported by any source we have"
FULL = vllm.Settings(sequences=256)
ASKED = vllm.Settings(sequences=8)  # eight requests in one step, vLLM's defaults otherwise
SPLITS = [Split(tp=tp) for tp in (1, 2, 4, 8)] + [Split(tp=8, pp=2)]
H100 = "H100-SXM"


class Finding(NamedTuple):
    """What came out. A step with ` = ` can be computed again."""

    verdict: Verdict
    says: str
    steps: list[str]
    source: str


class Room(NamedTuple):
    """What is left on the fullest of some cards, and the longest request that it holds."""

    split: Split
    pool_bytes: int
    tokens: int
    steps: list[str]


class Known(NamedTuple):
    """Everything that verdicts rest on."""

    catalogue: Catalogue
    scores: Scores
    pairs: tuple[Pair, ...]

    def model(self, name: str) -> Model:
        return next(each for each in self.catalogue.models if each.id == name)

    def card(self, name: str) -> Card:
        return next(each for each in self.catalogue.cards if each.id == name)

    def licence(self, model: Model) -> Licence:
        return next(each for each in self.catalogue.licences if each.id == model.licence.id)

    def sizes(self) -> dict[str, int]:
        return {each.id: size for each in self.catalogue.models if (size := each.parameters.total)}

    def figures(self, model: str, benchmark: str) -> list[tuple[str, Score]]:
        """All scores of a model in one benchmark, each with its cohort in words."""
        found = []
        for cohort in self.scores.cohorts.values():
            if cohort.benchmark == benchmark and not cohort.informs.startswith("pair"):
                words = ", ".join(filter(None, (cohort.variant, cohort.mode, f"by {cohort.measured_by}")))
                found += [(words, score) for score in self.scores.by_cohort[cohort.id] if score.model == model]
        return found


def tokens_per_s(known: Known, model: str, scheme: str, card: str, split: Split) -> Performance | Unpredicted:
    """Of one vLLM that is kept full, written: prompts of 1,500 tokens and answers of 500, up to 256 at once."""
    of, sold = known.model(model), known.card(card)
    counts = counted(of)
    rank = vllm.rank(of, held_bytes(counts, scheme, of, split), scheme, sold, FULL, split=split)
    slots = vllm.layout(of.attention, FULL, split).requests(rank.pool_bytes, 2000, FULL.step_tokens(sold))
    traffic = Traffic(concurrency=max(1, min(256, int(slots))), prompt_tokens=1500, completion_tokens=500)
    return predict(work(of, counts, scheme, split), scheme, sold, traffic, slots=traffic.concurrency)


# arithmetic that several claims share


def gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def counted(model: Model) -> Counts:
    """Of a model that is inside the formulas, as all that are named in claims are."""
    found = count(model)
    assert found is not None
    return found


def weights(known: Known, name: str, scheme: str) -> tuple[int, str]:
    """Bytes of a checkpoint, and the sum by parts of the network."""
    model = known.model(name)
    counts = counted(model)
    parts = [part for part in weigh(counts, SCHEMES[scheme], model, mtp=True, tables=False) if part.parameters]
    total = checkpoint_bytes(counts, scheme, model)
    added = " + ".join(f"{n(part.parameters)} x {n(part.rate)}" for part in parts)
    return total, f"weights of {name} in {SCHEMES[scheme].name}: {added} = {total:,} bytes; parameters x bytes"


def room(known: Known, name: str, scheme: str, card: str, split: Split) -> Room:
    """The KV pool of the fullest card by vLLM's layout."""
    model, sold = known.model(name), known.card(card)
    counts = counted(model)
    rank = vllm.rank(model, held_bytes(counts, scheme, model, split), scheme, sold, ASKED, split=split)
    taken = (rank.weight_bytes, rank.activation_bytes, rank.other_bytes, rank.graph_bytes)
    layout = vllm.layout(model.attention, ASKED, split)
    limit = model.context.extended or model.context.native
    tokens = layout.longest(rank.pool_bytes, 1, ASKED.step_tokens(sold), limit) if rank.pool_bytes > 0 else 0
    on = f"{split.cards} x {card}"
    kinds = f"{name} in {scheme}: usable, weights, activations, runtime, graphs"
    less = " - ".join(f"{each:,}" for each in taken)
    steps = [
        f"left on a card of {on}: {rank.usable_bytes:,} - {less} = {rank.pool_bytes:,} bytes; {kinds}",
        f"{'for the KV cache' if rank.pool_bytes > 0 else 'lacking'}: {abs(rank.pool_bytes):,} / {GIB:,} = "
        f"{n(abs(rank.pool_bytes) / GIB)} GiB; "
        + (f"one request of up to {tokens:,} tokens" if tokens else "it does not fit"),
    ]
    return Room(split, rank.pool_bytes, tokens, steps)


def fewest(known: Known, name: str, scheme: str, card: str = H100) -> Room:
    """The smallest split on which a model fits with a request of 8,192 tokens."""
    rooms = (room(known, name, scheme, card, split) for split in SPLITS)
    return next(each for each in rooms if each.tokens >= 8192)


def cached(known: Known, name: str) -> tuple[int, str]:
    """KV bytes of a token in BF16, in the layers that keep all of them."""
    model = known.model(name)
    each = kv_bytes_per_token(model)
    whole = [group for group in model.attention if group.kind not in WINDOWED]
    heads = " + ".join(f"{g.layers} x 2 x {g.kv_heads} x {g.head_dim} x 2" for g in whole)
    words = "layers x keys and values x heads x width x bytes in BF16"
    return each, f"KV cache of a token, {name}: {heads} = {each:,} bytes; {words}"


def interruptible(known: Known, card: str) -> list[str]:
    """How far below its price on demand a provider's dated price on spot is."""
    offers = [each for each in known.catalogue.offers if each.card == card and each.date and each.per == "hour"]
    return [
        f"{spot.id}: 100 x (1 - {n(spot.price)} / {n(full.price)}) = {n(100 * (1 - spot.price / full.price))} % below; "
        f"{full.id}, {spot.date}"
        for spot in offers
        for full in offers
        if (spot.kind, full.kind) == ("spot", "on-demand")
        and (spot.provider, spot.cards, spot.currency) == (full.provider, full.cards, full.currency)
    ]


def rented(known: Known, card: str) -> list[Offer]:
    """Dated prices in USD of machines with this card on demand, cheapest first."""
    old = superseded(known.catalogue.offers)
    found = [each for each in known.catalogue.offers if each.card == card and each.kind == "on-demand" and each.date]
    return sorted((o for o in found if o.currency == "USD" and o.id not in old), key=lambda o: hourly(o) / o.cards)


def cited(licence: Licence) -> str:
    """Where its terms were read."""
    return licence.terms[0].source if licence.terms else licence.url


def among(value: float, low: float, high: float) -> bool:
    return low <= value <= high


def losses(known: Known, schemes: Sequence[str]) -> tuple[list[quantization.Loss], list[str], str]:
    """What models lose in these precisions, a line for each of them, and who measured."""
    found = [each for scheme in schemes for each in quantization.of_scheme(known.pairs, scheme, known.sizes())]
    steps = [
        f"{each.model}, {each.scheme}: loses {100 - each.median:z.1f} % (median; {100 - each.most:z.1f} to "
        f"{100 - each.least:z.1f}) over {each.pairs} pairs"
        for each in found
    ]
    steps += [f"{scheme}: not measured" for scheme in schemes if scheme not in {each.scheme for each in found}]
    who = sorted({name for each in found for name in each.measured_by})
    makers, pairs = sum(each.by_maker for each in found), sum(each.pairs for each in found)
    return (
        found,
        steps,
        f"matched pairs of {', '.join(who)}; {makers} of {pairs} by who made the files; `freehold quantization`",
    )


def sources(found: Iterable[tuple[str, Score]]) -> str:
    return "; ".join(dict.fromkeys(score.source for _, score in found))
