"""The pages of `freehold scores`: each view for programs, and for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from textwrap import wrap
from typing import Any

from msgspec.structs import asdict

from freehold.catalogue import Catalogue, match
from freehold.cli.tables import table
from freehold.facts import Cohort
from freehold.plan.panels import Key, Panel, of_language, of_task, panels
from freehold.plan.scores import Entry, Scores, entries, figure, interval_basis, missing

_WIDTH = 80
_COLUMNS = 4  # of a panel that fit beside each other; --cohort and --json have all
_HEAD = 13  # characters over a column; its whole name stands below the table
_MODE = "mode not stated"
Page = tuple[dict[str, Any], str]


class Board:
    """What is known, and the models that ranks and gaps are counted over."""

    def __init__(self, scores: Scores, catalogue: Catalogue, *, publisher: bool, sources: bool) -> None:
        self.scores, self.catalogue, self.publisher, self.sources = scores, catalogue, publisher, sources
        self.models = [each.id for each in catalogue.models]

    def page(self, view: str, value: str) -> Page:
        """Raises Unknown for names that nobody has."""
        if view == "model":
            return self._model(match(self.catalogue, value).model.id)
        if view == "cohort":
            return self._cohort(self.scores.cohort(value))
        return self._overview() if view == "overview" else self._panels(view, value)

    def _panels(self, view: str, value: str) -> Page:
        """Those of a task or a language. Publishers on their own models are never beside others."""
        found = panels(self.scores, (of_task if view == "task" else of_language)(self.scores, value))
        shown = [each for each in found if (each.kind == "publisher") == self.publisher]
        ranked = [p for p in shown if any(not c.informs for c in p.columns) and len(p.keys) > 1]
        whose = "publishers on their own models" if self.publisher else "measured by others than the publisher"
        parts = [f"{value}: {whose}", *("\n".join(self._panel(each)) for each in ranked)]
        why = Counter[str]()
        for panel in shown:
            for each in panel.columns:
                if each.informs or panel not in ranked:
                    why[each.informs or "one model alone in its cohort"] += len(panel.cells[each.id])
        if why:
            lines = [f"  {count:4} {reason}" for reason, count in why.most_common()]
            parts.append("\n".join(["Known but not ranked (freehold scores --model shows them):", *lines]))
        other = "measured by others: leave out --publisher" if self.publisher else "publishers' own: --publisher"
        if hidden := sum(len(p.cells[c.id]) for p in found if p not in shown for c in p.columns):
            parts.append(f"Not shown, and never ranked with these: {hidden:,} figures {other}.")
        built = [self._built(each) for each in shown]
        return {view: value, "publisher": self.publisher, "panels": built}, "\n\n".join(parts)

    def _panel(self, panel: Panel) -> Iterator[str]:
        columns = [each for each in panel.columns if not each.informs][:_COLUMNS]
        inside = [e for each in columns for e in panel.cells[each.id].values()]
        dates = sorted({e.score.date for e in inside})
        when = "" if dates == [panel.version] else f"measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"
        own = "your own figures" if panel.kind == "own" else ""
        said = (own, panel.measured_by, panel.version, when, panel.mode or _MODE, panel.setting)
        yield f"## {'; '.join(filter(None, said))}"
        mean = ["MEAN"] if panel.composite else []
        names = [_head(each, columns) for each in columns]
        short = [name if len(name) <= _HEAD else f"{name[: _HEAD - 1]}…" for name in names]
        yield table(["MODEL", *mean, *short], [_line(panel, key, columns) for key in panel.keys])
        if panel.composite:
            composed = ", ".join(each.benchmark for each in panel.composed)
            yield _folded(f"MEAN: mean percentile inside each of {composed}; the same for all, none for who lacks one.")
        for name, each in zip(names, columns, strict=True):
            more = "; ".join(word for word in each.setting.split("; ") if word and word not in panel.setting)
            counted = self._counted(each, panel.cells[each.id].values())
            yield _folded(f"{name}: {each.id}: {counted}{f'; {more}' if more else ''}.")
        yield _folded(f"In brackets the rank: {'; '.join(dict.fromkeys(map(self._basis, columns)))}.")
        if more := len(panel.columns) - len(columns):
            yield f"{more} more cohorts of this run: --json."
        if self.sources:
            yield "Sources:"
            yield from (
                f"  {source}, {date}" for source, date in sorted({(e.score.source, e.score.date) for e in inside})
            )

    def _counted(self, cohort: Cohort, found: Collection[Entry]) -> str:
        low = ", lower is better" if cohort.lower_is_better else ""
        return f"{sum(bool(e.rank) for e in found)} ranked{low}; {missing(self.models, found)} models have no score"

    def _basis(self, cohort: Cohort) -> str:
        return interval_basis(cohort, self.scores.by_cohort[cohort.id])

    def _built(self, panel: Panel) -> dict[str, Any]:
        means = [{"model": m, "served": s, "mean_percentile": v} for (m, s), v in sorted(panel.composite.items())]
        return {
            "measured_by": panel.measured_by, "kind": panel.kind, "version": panel.version, "mode": panel.mode or _MODE,
            "setting": panel.setting, "composite_of": [each.id for each in panel.composed], "composite": means,
            "cohorts": [self._content(each, panel.cells[each.id].values()) for each in panel.columns],
        }  # fmt: skip

    def _content(self, cohort: Cohort, found: Collection[Entry]) -> dict[str, Any]:
        return {
            **asdict(cohort), "interval": self._basis(cohort), "ranked": sum(bool(e.rank) for e in found),
            "without": missing(self.models, found),
            "entries": [
                asdict(e.score) | {"rank": e.rank, "half_interval": e.error, "percentile": e.percentile} for e in found
            ],
        }  # fmt: skip

    def _cohort(self, cohort: Cohort) -> Page:
        found = entries(cohort, self.scores.by_cohort[cohort.id])
        facts = (cohort.benchmark, _variant(cohort), cohort.measured_by, cohort.kind, cohort.version)
        heads = ["RANK", "MODEL", "VALUE", "SERVED", "MEASURED", *(["SOURCE"] if self.sources else [])]
        rows = [
            [str(e.rank or "-"), e.score.model, figure(cohort, e.score), e.score.served or "-", e.score.date]
            + ([f"{e.score.source} {e.score.note}".strip()] if self.sources else [])
            for e in found
        ]
        lines = [cohort.id, "; ".join(filter(None, (*facts, cohort.mode or _MODE, cohort.setting, cohort.unit)))]
        lines += [f"does not rank: {cohort.informs}"] if cohort.informs else []
        lines += [table(heads, rows), _folded(f"{self._counted(cohort, found)}; {self._basis(cohort)}.")]
        return self._content(cohort, found), "\n".join(lines)

    def _model(self, model: str) -> Page:
        kinds: dict[str, list[tuple[Cohort, Entry, int]]] = {"own": [], "independent": [], "publisher": []}
        for name, cohort in sorted(self.scores.cohorts.items()):
            if any(each.model == model for each in self.scores.by_cohort[name]):
                found = entries(cohort, self.scores.by_cohort[name])
                count = sum(bool(e.rank) for e in found)
                kinds[cohort.kind] += [(cohort, e, count) for e in found if e.score.model == model]
        names = {"own": "your own figures", "independent": "measured by others", "publisher": "by its publisher"}
        more = ["COHORT", "SOURCE"] if self.sources else []
        heads = ["BENCHMARK", "MODE", "VALUE", "RANK", "BY", "MEASURED", *more]
        parts = [f"{model}: {sum(map(len, kinds.values())):,} figures"]
        for kind, those in kinds.items():
            rows = [
                [
                    " ".join(filter(None, (c.benchmark, _variant(c)[:40], c.setting[:24], e.score.served))),
                    c.mode or _MODE,
                    figure(c, e.score), f"{e.rank} of {count}" if e.rank else c.informs or "-",
                    c.measured_by.partition("(")[0].strip(), e.score.date,
                    *((c.id, e.score.source) if self.sources else ()),
                ]
                for c, e, count in those
            ]  # fmt: skip
            if rows:
                parts.append(f"## {names[kind]}\n{table(heads, rows)}")
            elif kind != "own":
                parts.append(f"{names[kind]}: no source")
        content = {
            kind: [
                {"cohort": c, "of": of, "rank": e.rank, "percentile": e.percentile, "score": e.score}
                for c, e, of in those
            ]
            for kind, those in kinds.items()
        }  # fmt: skip
        return {"model": model, **content}, "\n\n".join(parts)

    def _overview(self) -> Page:
        groups: dict[tuple[str, str], list[Cohort]] = {}
        for each in self.scores.cohorts.values():
            groups.setdefault((each.kind, each.measured_by), []).append(each)
        rows = []
        for (kind, by), cohorts in sorted(groups.items(), key=lambda g: (g[0][0], -len(g[1]))):
            those = [s for c in cohorts for s in self.scores.by_cohort[c.id]]
            rows.append({
                "kind": kind, "measured_by": by, "scores": len(those), "models": len({s.model for s in those}),
                "cohorts": len(cohorts), "ranking": sum(not c.informs for c in cohorts),
                "newest": max(s.date for s in those),
            })  # fmt: skip
        scored = {s.model for those in self.scores.by_cohort.values() for s in those}
        total, without = sum(row["scores"] for row in rows), len(set(self.models) - scored)
        heads = ("KIND", "MEASURED BY", "SCORES", "MODELS", "RANKED COHORTS", "NEWEST")
        cells = [
            [r["kind"], r["measured_by"][:40], *(f"{r[k]:,}" for k in ("scores", "models", "ranking")), r["newest"]]
            for r in rows
        ]
        counted = f"{len(self.scores.cohorts):,} cohorts; {without} of {len(self.models)} models have none"
        shown = "freehold scores --task coding, --lang german, --model NAME, --cohort ID show them."
        text = f"{total:,} scores in {counted}.\n\n{table(heads, cells)}\n\n{shown}"
        return {"scores": total, "models_without": without, "measurers": rows}, text


def _line(panel: Panel, key: Key, columns: Sequence[Cohort]) -> list[str]:
    model, served = key
    line = [f"{model} {served}".strip()]
    if panel.composite:
        line.append(f"{panel.composite[key]:.0f}" if key in panel.composite else "-")
    for each in columns:
        entry = panel.cells[each.id].get(key)
        if entry is None:
            line.append("no source")
            continue
        value = entry.score.value  # narrow: one digit behind the point where there is an interval
        said = f"{value:g}" if entry.error is None else f"{value:.1f}±{entry.error:.1f}"
        line.append(said + (f" ({entry.rank})" if entry.rank else ""))
    return line


def _variant(cohort: Cohort) -> str:
    """Without what the benchmark says already."""
    same = cohort.variant.lower().replace(" ", "-") == cohort.benchmark.lower().replace(" ", "-")
    return "" if same else cohort.variant


def _head(cohort: Cohort, beside: Sequence[Cohort]) -> str:
    name = cohort.benchmark.removeprefix("EuroEval ").upper()
    twins = sum(each.benchmark == cohort.benchmark for each in beside) > 1
    return _variant(cohort).upper() or name if twins else name


def _folded(text: str) -> str:
    return "\n".join(wrap(text, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
