"""How exact the planner's speed is: what engines and cards reached in public tables, beside ours and its band."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from math import isclose
from pathlib import Path
from typing import NamedTuple

from throughput import OFFLINE, Case, Row, read

from freehold.plan.fitted import FITTED
from freehold.plan.performance import Estimate, Unpredicted
from freehold.plan.roofline import generation_of
from freehold.plan.serving import predict

DATA = Path(__file__).parent / "data"
FILES = (DATA / "throughput_trtllm.csv", DATA / "throughput_serving.csv")
_ROUNDED = 0.002  # as far as the same figure can be from itself in another copy of a table
NEWEST = ("0.17", "0.20", "1.x")
RIVAL = "aiconfigurator 0.12 is 26.3 % off on 580 rows of time per token, and takes 3.5 s an answer"


class Answer(NamedTuple):
    """One figure of ours beside what was measured."""

    case: Case
    quantity: str
    ours: Estimate
    measured: float
    fitted: bool  # the row is one of those that constants were fitted on

    @property
    def error_pct(self) -> float:
        return 100 * (self.ours.value / self.measured - 1)

    @property
    def inside(self) -> bool:
        return self.ours.low <= self.measured <= self.ours.high

    @property
    def width_pct(self) -> float:
        return 100 * (self.ours.high - self.ours.low) / self.ours.value


def report(path: Path | None, *, show: bool) -> dict[str, dict[str, float]]:
    """Print how far off the rows of a file are, or all that were fitted on, and return the same by class."""
    own: dict[tuple[object, ...], list[float]] = {}
    for case in (case for file in FILES for case in read(file)[0]):
        own.setdefault(_asked(case), []).append(_measured(case))
    cases, unanswered = [], dict[str, list[Row]]()
    for file in (path,) if path else FILES:
        found, reasons = read(file)
        cases += found
        for reason, rows in reasons.items():
            unanswered.setdefault(reason, []).extend(rows)
    shown: list[Answer] = []
    for case in cases:
        try:
            same = own.get(_asked(case), ())
            shown += answers(case, fitted=any(isclose(_measured(case), each, rel_tol=_ROUNDED) for each in same))
        except LookupError as why:
            unanswered.setdefault(str(why.args[0]), []).append(case.row)
    missed = sum(map(len, unanswered.values()))
    answered = len({id(each.case) for each in shown})
    print(f"{answered + missed} rows, {answered} answered, {missed} not:")
    for reason, rows in sorted(unanswered.items(), key=lambda each: -len(each[1])):
        print(f"  {len(rows):4} {reason}")
        if show:
            print("".join(f"         {row['model'] or '-'} {row['gpu']} {row['source_url']}\n" for row in rows), end="")
    if show:
        for each in shown:
            print(_line(each))
    table = {name: _summary(those) for name, those in _classes(shown)}
    print("\n" + render(table) + f"\n{RIVAL}")
    return table


def _asked(case: Case) -> tuple[object, ...]:
    asked = case.model, case.card.id, case.scheme, case.work.split, case.traffic
    return *asked, case.engine, case.version, case.row.get("metric")


def _measured(case: Case) -> float:
    return case.tpot_s or case.tokens_per_s or case.ttft_s or 0.0


def answers(case: Case, *, fitted: bool) -> Iterator[Answer]:
    found = predict(case.work, case.scheme, case.card, case.traffic, slots=case.slots, engine=case.engine)
    if isinstance(found, Unpredicted):
        raise LookupError(found.reason)  # noqa: TRY004  it is an answer, of another kind
    fitted = fitted and (case.engine != OFFLINE or case.version in NEWEST)
    if case.tpot_s:
        yield Answer(case, "time per token", found.tpot_s, case.tpot_s, fitted)
    if case.tokens_per_s:
        yield Answer(case, "tokens a second", found.tokens_per_s, case.tokens_per_s, fitted)
    if case.ttft_s:
        yield Answer(case, "time to first token", found.ttft_s, case.ttft_s, fitted)


def _classes(answers: Iterable[Answer]) -> Iterator[tuple[str, list[Answer]]]:
    """From coarse to fine; a row is in several."""
    found: dict[str, list[Answer]] = {}
    for each in answers:
        case, generation = each.case, generation_of(each.case.card)
        which = "fitted rows" if each.fitted else "new rows"
        known = "model fitted" if case.model in FITTED[case.engine, generation].models else "model never fitted"
        if case.engine == OFFLINE:
            kind = "with experts" if case.work.touched else "dense"
            version = {"0.17": "0.17 and 0.20", "0.20": "0.17 and 0.20"}.get(case.version, case.version)
            if case.version not in NEWEST:
                version, kind = "versions never fitted,", ""
            name = f"TensorRT-LLM {version} {each.quantity}"
            names = [f"{name}, {which}", *([f"{name}, {kind}, {which}"] if version == "1.x" else [])]
            if version == "0.17 and 0.20":
                names.append(f"{name}, {known}, {which}")
        else:
            name = f"serving: {each.quantity}"
            names = [f"{name}, {which}", f"{name}, {known}, {which}"]
            names.append(f"{name}, {case.engine} on {generation}, {which}")
        for each_name in names:
            found.setdefault(each_name, []).append(each)
    yield from sorted(found.items())


def _summary(answers: list[Answer]) -> dict[str, float]:
    sizes = sorted(abs(each.error_pct) for each in answers)
    return {
        "rows": len(sizes),
        "mean": round(statistics.fmean(sizes), 1),
        "median": round(statistics.median(sizes), 1),
        "p90": round(sizes[int(0.9 * (len(sizes) - 1))], 1),
        "bias": round(statistics.median(each.error_pct for each in answers), 1),
        "in_band": round(100 * statistics.fmean(each.inside for each in answers), 1),
        "band_width": round(statistics.fmean(each.width_pct for each in answers), 1),
    }


def render(table: dict[str, dict[str, float]]) -> str:
    heads = ("error in %", "rows", "mean", "median", "p90", "bias", "in band", "band width")
    lines = ["{:84}{:>6}{:>8}{:>8}{:>8}{:>8}{:>9}{:>12}".format(*heads)]
    return "\n".join(
        [*lines, *("{:84}{:>6}{:>8}{:>8}{:>8}{:>8}{:>9}{:>12}".format(n, *r.values()) for n, r in table.items())]
    )


def _line(each: Answer) -> str:
    case, asked = each.case, each.case.traffic
    split = "x".join(map(str, case.work.split))
    unit = 1 if each.quantity == "tokens a second" else 1e3
    return (
        f"{case.engine:12} {case.version[:8]:8} {case.model[:26]:26} {case.card.id[:14]:14} {case.scheme:13} {split:6} "
        f"{asked.prompt_tokens:6.0f} {asked.completion_tokens:6.0f} {asked.concurrency:6.0f} {each.quantity:20} "
        f"{each.measured * unit:10.2f} {each.ours.value * unit:10.2f} {each.error_pct:+7.1f} % "
        f"[{each.ours.low * unit:.2f}, {each.ours.high * unit:.2f}]"
    )
