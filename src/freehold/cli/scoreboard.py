"""The pages of `freehold scores`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from textwrap import wrap
from typing import Any

import msgspec
from msgspec import Struct

from freehold.catalogue import Catalogue, match
from freehold.cli.tables import table
from freehold.facts import Cohort
from freehold.plan.panels import Key, Panel, of_language, of_task, panels
from freehold.plan.scores import Entry, Scores, entries, figure, interval_basis, missing

_WIDTH = 80
_COLUMNS = 4  # of a panel that fit beside each other; --cohort and --json have all
_HEAD = 13  # characters over a column; its whole name stands below the table
_MODE = "mode not stated"


class Page(Struct, frozen=True, kw_only=True):
    """One view, for a person and for programs."""

    content: dict[str, Any]
    render: Callable[..., str]

    def json(self) -> str:
        return msgspec.json.format(msgspec.json.encode(self.content)).decode()


def views(scores: Scores, catalogue: Catalogue, view: str, value: str, *, publisher: bool) -> Page:
    """The page that was asked for. Raises Unknown for names that nobody has."""
    models = [each.id for each in catalogue.models]
    if view == "model":
        return _of_model(scores, match(catalogue, value).model.id)
    if view == "cohort":
        return _of_cohort(scores, scores.cohort(value), models)
    if view == "overview":
        return _overview(scores, models)
    cohorts = of_task(scores, value) if view == "task" else of_language(scores, value)
    found = panels(scores, cohorts)
    shown = [each for each in found if (each.kind == "publisher") == publisher]
    hidden = sum(len(p.cells[c.id]) for p in found if p not in shown for c in p.columns)

    def render(*, sources: bool) -> str:
        ranked = [p for p in shown if any(not c.informs for c in p.columns) and len(p.keys) > 1]
        parts = [
            f"{value}: {'publishers on their own models' if publisher else 'measured by others than the publisher'}"
        ]
        parts += ["\n".join(_panel(each, scores, models, sources=sources)) for each in ranked]
        parts += ["\n".join(_rest(shown, ranked))]
        other = "measured by others: leave out --publisher" if publisher else "publishers' own: --publisher"
        parts += [f"Not shown, and never ranked with these: {hidden:,} figures {other}."] if hidden else []
        return "\n\n".join(filter(None, parts))

    content = {view: value, "publisher": publisher, "panels": [_built(each, scores, models) for each in shown]}
    return Page(content=content, render=render)


def _panel(panel: Panel, scores: Scores, models: Sequence[str], *, sources: bool) -> Iterator[str]:
    columns = [each for each in panel.columns if not each.informs][:_COLUMNS]
    yield _title(panel)
    heads = ["MODEL", *(["MEAN"] if panel.composite else []), *(_cut(_head(each, columns)) for each in columns)]
    yield table(heads, [_line(panel, key, columns) for key in panel.keys])
    if panel.composite:
        names = ", ".join(each.benchmark for each in panel.composed)
        yield _folded(f"MEAN: mean percentile inside each of {names}; the same for all, none for who lacks one.")
    for each in columns:
        ranked = [e for e in panel.cells[each.id].values() if e.rank]
        low = ", lower is better" if each.lower_is_better else ""
        without = missing(models, panel.cells[each.id].values())
        more = "; ".join(word for word in each.setting.split("; ") if word and word not in panel.setting)
        said = f"{len(ranked)} ranked{low}; {without} models have no score{f'; {more}' if more else ''}"
        yield _folded(f"{_head(each, columns)}: {each.id}: {said}.")
    yield _folded(f"In brackets the rank: {'; '.join(dict.fromkeys(_basis(each, scores) for each in columns))}.")
    if more := len(panel.columns) - len(columns):
        yield f"{more} more cohorts of this run: --json."
    if sources:
        yield from _sources(e for each in columns for e in panel.cells[each.id].values())


def _line(panel: Panel, key: Key, columns: Sequence[Cohort]) -> list[str]:
    model, served = key
    mean = [f"{panel.composite[key]:.0f}" if key in panel.composite else "-"] if panel.composite else []
    cells = (panel.cells[each.id].get(key) for each in columns)
    return [
        model + (f" {served}" if served else ""), *mean,
        *(_cell(entry) if entry else "no source" for entry in cells),
    ]  # fmt: skip


def _cell(entry: Entry) -> str:
    """Narrow: one digit behind the point where there is an interval."""
    said = f"{entry.score.value:g}" if entry.error is None else f"{entry.score.value:.1f}±{entry.error:.1f}"
    return said + (f" ({entry.rank})" if entry.rank else "")


def _title(panel: Panel) -> str:
    own = "your own figures" if panel.kind == "own" else ""
    said = (own, panel.measured_by, panel.version, panel.mode or _MODE, panel.setting)
    return f"## {'; '.join(filter(None, said))}"


def _variant(cohort: Cohort) -> str:
    """Without what the benchmark says already."""
    same = cohort.variant.lower().replace(" ", "-") == cohort.benchmark.lower().replace(" ", "-")
    return "" if same else cohort.variant


def _head(cohort: Cohort, beside: Sequence[Cohort]) -> str:
    name = cohort.benchmark.removeprefix("EuroEval ").upper()
    twins = sum(each.benchmark == cohort.benchmark for each in beside) > 1
    return _variant(cohort).upper() or name if twins else name


def _cut(head: str) -> str:
    return head if len(head) <= _HEAD else f"{head[: _HEAD - 1]}…"


def _basis(cohort: Cohort, scores: Scores) -> str:
    return interval_basis(cohort, scores.by_cohort[cohort.id])


def _rest(shown: Sequence[Panel], ranked: Sequence[Panel]) -> Iterator[str]:
    """What does not rank, and what has nobody to be compared with."""
    why: dict[str, int] = {}
    for panel in shown:
        for each in panel.columns:
            if each.informs or panel not in ranked:
                reason = each.informs or "one model alone in its cohort"
                why[reason] = why.get(reason, 0) + len(panel.cells[each.id])
    if why:
        yield "Known but not ranked (freehold scores --model shows them):"
        yield from (f"  {count:4} {reason}" for reason, count in sorted(why.items(), key=lambda each: -each[1]))


def _sources(found: Any) -> Iterator[str]:
    those = dict.fromkeys((e.score.source, e.score.date) for e in found)
    yield "Sources:"
    yield from (f"  {source}, {date}" for source, date in sorted(those))


def _folded(text: str) -> str:
    return "\n".join(wrap(text, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))


def _built(panel: Panel, scores: Scores, models: Sequence[str]) -> dict[str, Any]:
    return {
        "measured_by": panel.measured_by, "kind": panel.kind, "version": panel.version, "mode": panel.mode or _MODE,
        "setting": panel.setting, "composite_of": [each.id for each in panel.composed],
        "composite": [{"model": m, "served": s, "mean_percentile": v} for (m, s), v in sorted(panel.composite.items())],
        "cohorts": [_cohort(each, [*panel.cells[each.id].values()], scores, models) for each in panel.columns],
    }  # fmt: skip


def _cohort(cohort: Cohort, found: Sequence[Entry], scores: Scores, models: Sequence[str]) -> dict[str, Any]:
    return {
        **msgspec.structs.asdict(cohort), "interval": _basis(cohort, scores),
        "ranked": sum(bool(e.rank) for e in found),
        "without": missing(models, found),
        "entries": [
            msgspec.structs.asdict(e.score) | {"rank": e.rank, "half_interval": e.error, "percentile": e.percentile}
            for e in found
        ],
    }  # fmt: skip


def _of_cohort(scores: Scores, cohort: Cohort, models: Sequence[str]) -> Page:
    found = entries(cohort, scores.by_cohort[cohort.id])

    def render(*, sources: bool) -> str:
        facts = (cohort.benchmark, _variant(cohort), cohort.measured_by, cohort.kind, cohort.version)
        lines = [cohort.id, "; ".join(filter(None, (*facts, cohort.mode or _MODE, cohort.setting, cohort.unit)))]
        if cohort.informs:
            lines.append(f"does not rank: {cohort.informs}")
        heads = ("RANK", "MODEL", "VALUE", "SERVED", "MEASURED", *(("SOURCE",) if sources else ()))
        lines.append(
            table(heads, [
                (
                    str(e.rank or "-"), e.score.model, figure(cohort, e.score), e.score.served or "-", e.score.date,
                    *((" ".join(filter(None, (e.score.source, e.score.note))),) if sources else ()),
                )
                for e in found
            ])
        )  # fmt: skip
        ranked = sum(bool(e.rank) for e in found)
        lines.append(
            _folded(f"{ranked} ranked; {missing(models, found)} models have no score; {_basis(cohort, scores)}.")
        )
        return "\n".join(lines)

    return Page(content=_cohort(cohort, found, scores, models), render=render)


def _of_model(scores: Scores, model: str) -> Page:
    kinds: dict[str, list[tuple[Cohort, Entry, int]]] = {"own": [], "independent": [], "publisher": []}
    for cohort in scores.cohorts.values():
        if any(each.model == model for each in scores.by_cohort[cohort.id]):
            found = entries(cohort, scores.by_cohort[cohort.id])
            count = sum(bool(e.rank) for e in found)
            kinds[cohort.kind] += [(cohort, e, count) for e in found if e.score.model == model]
    names = {"own": "your own figures", "independent": "measured by others", "publisher": "by its publisher"}

    def render(*, sources: bool) -> str:
        parts = [f"{model}: {sum(map(len, kinds.values())):,} figures"]
        for kind, found in kinds.items():
            if not found:
                parts += [f"{names[kind]}: no source"] if kind != "own" else []
                continue
            heads = ("BENCHMARK", "MODE", "VALUE", "RANK", "BY", *(("COHORT", "SOURCE") if sources else ()))
            rows = [
                (
                    " ".join(filter(None, (c.benchmark, _variant(c)[:40], e.score.served))), c.mode or _MODE,
                    figure(c, e.score), f"{e.rank} of {count}" if e.rank else c.informs or "-",
                    f"{c.measured_by.partition('(')[0].strip()} {c.version}",
                    *((c.id, e.score.source) if sources else ()),
                )
                for c, e, count in sorted(found, key=lambda each: each[0].id)
            ]  # fmt: skip
            parts.append(f"## {names[kind]}\n{table(heads, rows)}")
        return "\n\n".join(parts)

    content = {
        "model": model,
        **{
            kind: [
                {"cohort": c, "of": count, "rank": e.rank, "percentile": e.percentile, "score": e.score}
                for c, e, count in found
            ]
            for kind, found in kinds.items()
        },
    }
    return Page(content=content, render=render)


def _overview(scores: Scores, models: Sequence[str]) -> Page:
    groups: dict[tuple[str, str], list[Cohort]] = {}
    for each in scores.cohorts.values():
        groups.setdefault((each.kind, each.measured_by), []).append(each)
    rows = []
    for (kind, by), cohorts in sorted(groups.items(), key=lambda g: (g[0][0], -len(g[1]))):
        those = [s for c in cohorts for s in scores.by_cohort[c.id]]
        dates = sorted({s.date for s in those})
        rows.append({
            "kind": kind, "measured_by": by, "scores": len(those), "models": len({s.model for s in those}),
            "cohorts": len(cohorts), "ranking": sum(not c.informs for c in cohorts), "newest": dates[-1],
        })  # fmt: skip
    scored = {s.model for those in scores.by_cohort.values() for s in those}
    total, without = sum(row["scores"] for row in rows), len(set(models) - scored)

    def render(*, sources: bool) -> str:  # noqa: ARG001  nothing here is a figure of a model
        cells = [
            [r["kind"], r["measured_by"][:40], *(f"{r[k]:,}" for k in ("scores", "models", "ranking"))] for r in rows
        ]
        parts = [f"{total:,} scores in {len(scores.cohorts):,} cohorts; {without} of {len(models)} models have none."]
        parts.append(table(("KIND", "MEASURED BY", "SCORES", "MODELS", "RANKED COHORTS"), cells))
        parts.append("freehold scores --task coding, --lang german, --model NAME, --cohort ID show them.")
        return "\n\n".join(parts)

    return Page(content={"scores": total, "models_without": without, "measurers": rows}, render=render)
