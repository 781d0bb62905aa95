"""Fit the constants of plan/roofline.py on published speeds, and say what they are worth on rows that were not fitted.

python bench/fit_speed.py [FILE...] [--write] [--keep]

FILE: tables as of bench/throughput.py, those in bench/data by default. Every engine and generation of cards gets
constants of its own, except that TensorRT-LLM's offline tables share them between the generations before Blackwell. Of
servers these are for models that were fitted; one of which no row was is met better by constants of all servers and
cards together. A pattern search lowers the mean absolute logarithm of predicted over measured, with a weak pull to
PRIOR, so that what no row tells stays plausible. Three times rows are left out and predicted by what was fitted on the
others: half of the rows (twice), each model, each card. --write puts the constants, their bands and their date into
src/freehold/plan/fitted.py, --keep the errors of what was left out into bench/results/speed_fit.json.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from math import exp, log
from pathlib import Path
from textwrap import fill, wrap
from typing import NamedTuple

from figures import keep
from msgspec.structs import asdict
from speed_accuracy import FILES
from throughput import OFFLINE, Case, read

from freehold import catalogue
from freehold.facts import Model
from freehold.plan.performance import Band, Bands
from freehold.plan.roofline import Constants, Fitted, Machine, generation_of
from freehold.plan.serving import Timing, loop

PRIOR = Constants(
    memory=0.8, cache=0.85, compute=0.55, prefill=0.65, attention=0.4, link=0.5, weight_only=0.3,
    layer_us=35.0, expert_us=25.0, hop_us=6.0, step_us=300.0, sequence_ns=300.0,
)  # fmt: skip
FIRST = (40.0, 0.05)  # first_ms, queue
FAR = 5.0  # times its prior that a constant may be away from it
MOST = {"memory": 1.0, "cache": 1.0, "compute": 1.0, "prefill": 1.0, "attention": 1.0, "weight_only": 1.0, "link": 2.0}
PULL = 0.1  # of a constant that is e times its prior, in the mean error: more helps models left out, and costs others
STEPS = (0.4, 0.2, 0.1, 0.05, 0.02)  # of the logarithm
INSIDE = (0.08, 0.92)  # quantiles of what was left out, that become a band
LEAST = 10  # rows of a model that is left out
OUT = Path(__file__).resolve().parents[1] / "src/freehold/plan/fitted.py"
QUANTITIES = ("ttft_s", "tpot_s", "tokens_per_s")


class Miss(NamedTuple):
    """How far off one figure of one row is."""

    case: Case
    quantity: str
    log: float  # of predicted over measured


class Group(NamedTuple):
    """What is fitted together."""

    engine: str
    generations: tuple[str, ...]
    cases: tuple[Case, ...]

    @property
    def name(self) -> str:
        return f"{self.engine} on {', '.join(self.generations)}"


def groups(cases: Iterable[Case]) -> list[Group]:
    found: dict[tuple[str, tuple[str, ...]], list[Case]] = {}
    for case in cases:
        if case.engine == OFFLINE and case.version not in ("0.17", "0.20", "1.x"):
            continue  # older ones are answered, and shown apart
        generation = generation_of(case.card)
        together = (generation,)
        if case.engine == OFFLINE:
            new = generation.startswith("Blackwell")
            together = ("Blackwell", "Blackwell RTX") if new else ("Ampere", "Ada", "Hopper")
        found.setdefault((case.engine, together), []).append(case)
    return [Group(*key, tuple(those)) for key, those in sorted(found.items())]


def answer(case: Case, constants: Constants, first: tuple[float, float]) -> Timing:
    return loop(Machine(case.card, constants, case.work), first, case.traffic, case.slots)


def error(case: Case, constants: Constants) -> float | None:
    """Logarithm of predicted over measured: of a token's time, or of tokens a second."""
    if case.tpot_s is None and case.tokens_per_s is None:
        return None
    timing = answer(case, constants, FIRST)
    return log(timing.tpot_s / case.tpot_s) if case.tpot_s else log(timing.tokens_per_s / (case.tokens_per_s or 1))


def fit(cases: Sequence[Case], start: Constants = PRIOR) -> Constants:
    def loss(values: dict[str, float]) -> float:
        constants = Constants(**values)
        errors = [abs(e) for case in cases if (e := error(case, constants)) is not None]
        pull = sum((log(values[name] / prior)) ** 2 for name, prior in asdict(PRIOR).items())
        return statistics.fmean(errors) + PULL * pull / len(values)

    prior: dict[str, float] = asdict(PRIOR)
    ends = {name: (value / FAR, MOST.get(name, value * FAR)) for name, value in prior.items()}
    return Constants(**_search(loss, asdict(start), ends))


def fit_first(cases: Sequence[Case], constants: Constants) -> tuple[float, float]:
    """Of the time to the first token, where no request waits for a slot: first_ms and queue."""
    those = [case for case in cases if case.ttft_s and case.traffic.concurrency < 0.9 * case.slots]
    if not those:
        return 0.0, 0.0

    def loss(values: dict[str, float]) -> float:
        first = values["first_ms"], values["queue"]
        return statistics.fmean(abs(log(answer(c, constants, first).ttft_s / (c.ttft_s or 1))) for c in those)

    ends = {"first_ms": (1.0, 1000.0), "queue": (0.001, 1.0)}
    found = _search(loss, {"first_ms": FIRST[0], "queue": FIRST[1]}, ends)
    return found["first_ms"], found["queue"]


def _search(
    loss: Callable[[dict[str, float]], float], values: dict[str, float], ends: dict[str, tuple[float, float]]
) -> dict[str, float]:
    """Move one value after the other by a factor as long as that helps, then by a smaller one."""
    best = loss(values)
    for step in STEPS:
        moved = True
        while moved:
            moved = False
            for name in list(values):
                for factor in (exp(step), exp(-step)):
                    tried = values | {name: min(max(values[name] * factor, ends[name][0]), ends[name][1])}
                    if (now := loss(tried)) < best - 1e-5:
                        values, best, moved = tried, now, True
                        break
    return values


def shared(cases: Sequence[Case], model: str) -> Constants:
    """Of all servers and cards, without one model."""
    return fit([case for case in cases if case.model != model])


def left_out(
    group: Group,
    key: Callable[[Case], str],
    whole: Constants,
    least: int = 1,
    instead: Mapping[str, Constants] | None = None,
) -> dict[str, list[Miss]]:
    """By what is left out: how far off it is with what was fitted on the others, or with what is taken instead."""
    found = {}
    for name in sorted({key(case) for case in group.cases}):
        those = [case for case in group.cases if key(case) == name]
        others = [case for case in group.cases if key(case) != name]
        if len(those) >= least and others:
            constants = fit(others, start=_between(whole))
            first = fit_first(others, constants)  # the way in and out is the engine's own, whatever is taken instead
            found[name] = misses(those, (instead or {}).get(name, constants), first)
    return found


def _between(whole: Constants) -> Constants:
    """Half-way to the prior: the search from there is short, and has room to go elsewhere."""
    return Constants(**{name: (value * getattr(PRIOR, name)) ** 0.5 for name, value in asdict(whole).items()})


def misses(cases: Iterable[Case], constants: Constants, first: tuple[float, float]) -> list[Miss]:
    timed = ((case, answer(case, constants, first)) for case in cases)
    return [
        Miss(case, quantity, log(getattr(timing, quantity) / measured))
        for case, timing in timed
        for quantity in QUANTITIES
        if (measured := getattr(case, quantity))
    ]


def bands(found: Iterable[Miss]) -> Bands:
    """Measured over predicted, from the quantiles; tokens a second by a token's time where only that was measured."""
    logs = {quantity: [each.log for each in found if each.quantity == quantity] for quantity in QUANTITIES}
    tpot = logs["tpot_s"] or [-each for each in logs["tokens_per_s"]]
    rate = logs["tokens_per_s"] or [-each for each in logs["tpot_s"]]
    return Bands(
        ttft=_band(logs["ttft_s"] or tpot), tpot=_band(tpot), tokens_per_s=_band(rate),
        tpot_error_pct=round(percent(tpot), 1),
    )  # fmt: skip


def _band(logs: Sequence[float]) -> Band:
    ordered = sorted(logs)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in INSIDE)
    return Band(low=round(min(1.0, exp(-high)), 3), high=round(max(1.0, exp(-low)), 3))


def percent(logs: Iterable[float]) -> float:
    """Mean absolute error in per cent of what was measured."""
    return 100 * statistics.fmean(abs(exp(e) - 1) for e in logs)


def _median(logs: Iterable[float]) -> float:
    return 100 * statistics.median(abs(exp(e) - 1) for e in logs)


def half(case: Case) -> str:
    return str(hashlib.sha256("|".join(case.row.values()).encode()).digest()[0] % 2)


class Study(NamedTuple):
    """The constants of one group, and what was left out."""

    fitted: Fitted
    lines: list[str]
    rows: dict[str, list[Miss]]
    models: dict[str, list[Miss]]


def study(group: Group, common: Mapping[str, Constants], served: int) -> Study:
    """`common`: what servers share without each model, and without "", none; of so many rows."""
    constants = fit(group.cases)
    first = fit_first(group.cases, constants)
    rows = left_out(group, half, constants)
    instead = {} if group.engine == OFFLINE else common
    models = left_out(group, lambda case: case.model, constants, LEAST, instead)
    cards = left_out(group, lambda case: case.card.id, constants)
    classes: dict[tuple[bool, bool], list[Miss]] = {}
    for known, found in ((True, rows), (False, models)):
        for each in (each for those in found.values() for each in those):
            classes.setdefault((known, each.case.work.touched > 0), []).append(each)
    lines = [f"{group.name}: {len(group.cases)} rows", *_lines("fitted", {"": misses(group.cases, constants, first)})]
    for what, found in (("half of the rows", rows), ("model", models), ("card", cards)):
        lines += _lines(f"left out: {what}", found)
        for version in ("0.", "1.x") if group.engine == OFFLINE else ():
            those = [each for some in found.values() for each in some if each.case.version.startswith(version)]
            lines += _lines(f"left out: {what}, {version}", {"": those} if those else {})
    lines.append(_said(constants))
    lines.append(f"  first_ms {first[0]:.3g}, queue {first[1]:.3g}")
    fitted = Fitted(
        engine=group.engine, generations=group.generations, constants=_rounded(constants),
        shared=_rounded(instead[""]) if instead else None, shared_rows=served if instead else 0,
        first_ms=round(first[0], 1), queue=round(first[1], 4), schemes=frozenset(case.scheme for case in group.cases),
        models=_same(case.work.model for case in group.cases),
        attention=frozenset(kind.kind for case in group.cases for kind in case.work.model.attention),
        versions=tuple(sorted({case.version for case in group.cases if case.version})),
        date=datetime.now(UTC).date().isoformat(), rows=len(group.cases),
        bands={which: bands(found) for which, found in sorted(classes.items())},
    )  # fmt: skip
    return Study(fitted, lines, rows, models)


def _same(models: Iterable[Model]) -> frozenset[str]:
    """These and all that have their dimensions: to a card they are the same."""

    def dimensions(model: Model) -> tuple[object, ...]:
        return model.layers, model.hidden_size, model.intermediate_size, model.vocab_size, model.attention, model.moe

    known, fitted = catalogue.load(), {dimensions(model) for model in models}
    return frozenset(each.id for each in (*known.models, *known.known) if dimensions(each) in fitted)


def _rounded(constants: Constants) -> Constants:
    return Constants(**{name: float(f"{value:.4g}") for name, value in asdict(constants).items()})


def _said(constants: Constants) -> str:
    return "  " + ", ".join(f"{name} {value:.3g}" for name, value in asdict(constants).items())


def _lines(what: str, found: dict[str, list[Miss]]) -> list[str]:
    def line(name: str, those: Sequence[Miss]) -> str:
        logs = {quantity: [each.log for each in those if each.quantity == quantity] for quantity in QUANTITIES}
        said = [f"{key} {percent(v):5.1f} ({_median(v):5.1f}) % of {len(v):4}" for key, v in logs.items() if v]
        return f"  {what:28} {name:28} {'; '.join(said)}"

    whole = [each for those in found.values() for each in those]
    return [*(line(name, those) for name, those in found.items() if name), line("all together", whole)] if found else []


def write(found: Iterable[Fitted]) -> None:
    """As Python, sets in order, so that the file is the same each time."""
    found = tuple(found)
    common = next((each.shared for each in found if each.shared), None)
    entries = "".join(f"    Fitted(\n{_fields(fitted)}    ),\n" for fitted in found)
    OUT.write_text(
        '"""Constants of the roofline, written by bench/fit_speed.py: not to be edited by hand."""\n\n'
        "from freehold.plan.performance import Band, Bands\nfrom freehold.plan.roofline import Constants, Fitted\n\n"
        f"# fmt: off\n{fill(f'_SHARED = {common!r}', 118)}\n_ALL = (\n{entries})\n# fmt: on\n"
        "FITTED = {(each.engine, generation): each for each in _ALL for generation in each.generations}\n"
    )


def _fields(fitted: Fitted) -> str:
    values = {name: getattr(fitted, name) for name in Fitted.__struct_fields__}
    said = {name: repr(value) for name, value in values.items()}
    said |= {name: f"frozenset({sorted(v)!r})" for name, v in values.items() if isinstance(v, frozenset)}
    said["shared"] = "_SHARED" if fitted.shared else "None"
    each = (f"{name}={value},".replace("'", '"') for name, value in said.items())
    lines = (line for field in each for line in wrap(field, 110, break_long_words=False, break_on_hyphens=False))
    return "".join(f"        {line}\n" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=FILES)
    parser.add_argument("--write", action="store_true", help="into src/freehold/plan/fitted.py")
    parser.add_argument("--keep", action="store_true", help="what was left out, in bench/results/speed_fit.json")
    options = parser.parse_args()
    cases = [case for path in options.files for case in read(path)[0]]
    those = sorted(groups(cases), key=lambda group: -len(group.cases))
    served = [case for group in those if group.engine != OFFLINE for case in group.cases]
    names = ["", *sorted({case.model for case in served})]
    names = [name for name in names if any(case.model != name for case in served)]
    with ProcessPoolExecutor(2) as pool:
        common = dict(zip(names, pool.map(partial(shared, served), names), strict=True))
        studied = list(pool.map(partial(study, common=common, served=len(served)), those))
    lines = [f"all servers: {len(served)} rows", _said(common[""])] if common else []
    for what in ("rows", "models"):
        found = [getattr(each, what) for each in studied if each.fitted.shared]
        missed = [miss for each in found for some in each.values() for miss in some]
        lines += _lines(f"left out: {what}", {"": missed} if missed else {})
    lines = [*lines, *(line for each in studied for line in each.lines)]
    print(*lines, sep="\n")
    if options.keep:
        keep("speed_fit", {"lines": lines})
    if options.write:
        write(sorted((each.fitted for each in studied), key=lambda each: (each.engine, each.generations)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
