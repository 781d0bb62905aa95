"""What is known of quality: ranks inside one cohort, percentiles over the same cohorts for all, and floors. No more.

Nothing here adds, averages or sorts values of two cohorts together.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from math import sqrt

from msgspec import Struct

from freehold.errors import BadRequest, Unknown
from freehold.facts import Benchmark, Cohort, Pair, Score
from freehold.plan.quantization import UNQUANTIZED, loss, words

LEAST = 2  # benchmarks that a composite needs


class Scores(Struct, frozen=True, kw_only=True):
    """Cohorts by id, and what was reached in each."""

    benchmarks: Mapping[str, Benchmark] = {}
    cohorts: Mapping[str, Cohort] = {}
    by_cohort: Mapping[str, Sequence[Score]] = {}

    def with_more(self, more: Iterable[tuple[Cohort, Score]]) -> Scores:
        """These and others. A cohort that is known already stays what it is."""
        cohorts, by_cohort = dict(self.cohorts), {name: list(those) for name, those in self.by_cohort.items()}
        for cohort, score in more:
            cohorts.setdefault(cohort.id, cohort)
            by_cohort.setdefault(cohort.id, []).append(score)
        return Scores(benchmarks=self.benchmarks, cohorts=cohorts, by_cohort=by_cohort)

    def cohort(self, name: str) -> Cohort:
        """By its id, or by a beginning that only one has. Raises Unknown with the nearest."""
        found = [each for each in self.cohorts if each.startswith(name)] if name else []
        if name in self.cohorts or len(found) == 1:
            return self.cohorts[name if name in self.cohorts else found[0]]
        near = sorted(found, key=len)[:5] or get_close_matches(name, self.cohorts, n=5, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "freehold scores shows the cohorts there are"
        raise Unknown(f"no cohort is called {name!r}", hint=hint)

    def ranking(self, name: str) -> Cohort:
        """One that a decision may rest on. Raises BadRequest for what only informs."""
        cohort = self.cohort(name)
        if cohort.informs:
            raise BadRequest(f"{cohort.id} does not rank: {cohort.informs}", hint="choose a cohort that does")
        return cohort

    def of(self, cohort: str, model: str, scheme: str = "") -> Score | None:
        """The figure of a model: that of the precision asked for, else of the one that was not quantized."""
        those = [each for each in self.by_cohort.get(cohort, ()) if each.model == model and each.trust != "low"]
        return min(those, key=lambda s: (not is_served(s, scheme), s.served not in ("", "BF16")), default=None)


NOTHING = Scores()


class Entry(Struct, frozen=True, kw_only=True):
    """One line of a cohort. `rank`: shared by all whose values cannot be told apart; None: it does not rank."""

    score: Score
    rank: int | None = None
    error: float | None = None  # half of the 95 % interval: as printed, or from the number of questions
    percentile: float | None = None  # of the other entries that are below, those of the same rank by half


def entries(cohort: Cohort, scores: Iterable[Score]) -> list[Entry]:
    """The scores of a cohort, the best first. What is of low trust, or of another cohort, does not rank."""
    mine = [each for each in scores if each.cohort == cohort.id]
    sign = 1.0 if cohort.lower_is_better else -1.0
    ranked = [] if cohort.informs else sorted(
        (each for each in mine if each.trust != "low"), key=lambda s: (sign * s.value, s.model, s.served)
    )  # fmt: skip
    groups: list[list[Score]] = []
    for each in ranked:
        if groups and tied(cohort, groups[-1][0], each):
            groups[-1].append(each)
        else:
            groups.append([each])
    found, before = [], 0
    for group in groups:
        below = len(ranked) - before - len(group)
        share = (below + (len(group) - 1) / 2) / (len(ranked) - 1) * 100 if len(ranked) > 1 else None
        found += [Entry(score=s, rank=before + 1, error=error(cohort, s), percentile=share) for s in group]
        before += len(group)
    rest = sorted((each for each in mine if each not in ranked), key=lambda s: (sign * s.value, s.model, s.served))
    return found + [Entry(score=each, error=error(cohort, each)) for each in rest]


def tied(cohort: Cohort, first: Score, second: Score) -> bool:
    """Whether the two cannot be told apart: their intervals overlap; without intervals, the values are the same."""
    one, other = error(cohort, first), error(cohort, second)
    if one is None or other is None:
        return first.value == second.value
    return abs(first.value - second.value) <= one + other


def error(cohort: Cohort, score: Score) -> float | None:
    """Half of the 95 % interval: as the source prints it, else of a share of so many questions (normal, rule of 3)."""
    if score.error is not None or not cohort.items or cohort.unit != "percent":
        return score.error
    share = min(max(score.value / 100, 0.0), 1.0)
    return max(100 * 1.96 * sqrt(share * (1 - share) / cohort.items), 300 / cohort.items if share in (0, 1) else 0.0)


def interval_basis(cohort: Cohort, scores: Iterable[Score]) -> str:
    """In words: what near-ties of this cohort are grouped by."""
    if any(each.error is not None for each in scores):
        return "near-ties grouped where the printed 95 % intervals overlap"
    if cohort.items and cohort.unit == "percent":
        return f"near-ties grouped by the 95 % interval of {cohort.items} questions"
    return "no interval is known: only equal values share a rank, and small gaps may be noise"


def composite(cohorts: Sequence[Cohort], scores: Scores) -> dict[tuple[str, str], float]:
    """Mean percentile by model and precision, over the same cohorts for every one; whoever lacks one has none.

    {} for fewer than LEAST benchmarks, and where a cohort does not rank or the kinds are mixed.
    """
    if len({each.benchmark for each in cohorts}) < LEAST or len({each.kind for each in cohorts}) > 1:
        return {}
    columns = [
        {(e.score.model, e.score.served): e.percentile for e in entries(c, scores.by_cohort[c.id])
         if e.percentile is not None}
        for c in cohorts
    ]  # fmt: skip
    having_all = set.intersection(*(set(each) for each in columns))
    return {each: sum(column[each] for column in columns) / len(columns) for each in having_all}


def missing(models: Collection[str], entries: Iterable[Entry]) -> int:
    """How many of the models have no score there."""
    return len(set(models) - {each.score.model for each in entries})


def is_served(score: Score, scheme: str) -> bool:
    """Whether a score is of the precision of this scheme: `BF16` of bf16, `FP8` of fp8 and fp8-block."""
    return bool(scheme) and scheme.partition("-")[0].upper() == score.served


class Floor(Struct, frozen=True, kw_only=True):
    """A value that a model has to reach in one cohort."""

    cohort: Cohort
    value: float

    def __str__(self) -> str:
        return f"{self.cohort.id} {'<=' if self.cohort.lower_is_better else '>='} {self.value:g}"

    def met(self, value: float) -> bool:
        return value <= self.value if self.cohort.lower_is_better else value >= self.value


def floor_of(text: str, scores: Scores) -> Floor:
    """`COHORT>=VALUE`, or `<=` where lower is better. Raises BadRequest and Unknown."""
    found = re.fullmatch(r"\s*([^<>=\s]+)\s*(>=|<=)\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*", text)
    if not found:
        raise BadRequest(f"floor {text[:200]!r} is none", hint="write COHORT>=VALUE; freehold scores shows the cohorts")
    cohort = scores.ranking(found[1])
    way = "<=" if cohort.lower_is_better else ">="
    if found[2] != way:
        which = "lower" if cohort.lower_is_better else "higher"
        raise BadRequest(f"in {cohort.id} {which} is better", hint=f"write {cohort.id}{way}{found[3]}")
    return Floor(cohort=cohort, value=float(found[3]))


def refusal(floor: Floor, model: str, scores: Scores, scheme: str = "", *, unscored: str) -> str:
    """Why a model is out, by this floor; "": it is not. The value, the floor and who measured are in it."""
    score = scores.of(floor.cohort.id, model, scheme)
    if score is None:
        return "" if unscored == "allow" else f"quality: no score in {floor.cohort.id}"
    if floor.met(score.value):
        return ""
    asked = f"at {'most' if floor.cohort.lower_is_better else 'least'} {floor.value:g} is asked"
    served = f", served in {score.served}" if score.served else ""
    by = f"{floor.cohort.measured_by}{served}"
    return f"quality: {figure(floor.cohort, score)} in {floor.cohort.id} by {by}, {asked}"


def figure(cohort: Cohort, score: Score) -> str:
    return printed(score.value, error(cohort, score))


def printed(value: float, half: float | None) -> str:
    return f"{value:g}" + (f" ± {half:.1f}" if half is not None else "")


def caveat(score: Score, precisions: tuple[str, str], pairs: Iterable[Pair] = ()) -> str:
    """What a score does not say of a deployment. `precisions`: the deployment's, and the publisher's; "": it is of it.

    A score of another precision is never given without what is known of the loss: matched pairs say it, or nobody.
    """
    scheme, shipped = precisions
    if is_served(score, scheme) or (not score.served and scheme == shipped):
        return ""
    from_16_bits = score.served == "BF16" or (not score.served and shipped in UNQUANTIZED)
    found = loss(pairs, score.model, scheme) if from_16_bits else None
    lost = f"{scheme} {words(found)}" if found else f"loss of {scheme} not measured"
    return f"scored {f'in {score.served}' if score.served else 'as shipped'}; {lost}"


def standing(
    cohort: Cohort, scores: Scores, model: str, precisions: tuple[str, str], pairs: Iterable[Pair] = ()
) -> str:
    """What is known of a model in a cohort, for a deployment in the first of these `precisions`."""
    score = scores.of(cohort.id, model, precisions[0])
    if score is None:
        return f"no score in {cohort.id}"
    said = f"{figure(cohort, score)} in {cohort.id} by {cohort.measured_by}"
    but = caveat(score, precisions, pairs)
    return f"{said} ({but})" if but else said
