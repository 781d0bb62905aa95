"""Views: what one party measured in one way, side by side. Each column is a cohort, and each ranks by itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from msgspec import Struct

from freehold.errors import Unknown
from freehold.facts import Cohort
from freehold.plan.cohorts import LANGUAGES
from freehold.plan.scores import Entry, Scores, composite, entries

_OF_A_COLUMN = re.compile(r"(scaffold|internal|judged by|on a corrected|no tools|text-only)")
_WHOLE = re.compile(r"overall|average|\bavg\b", re.IGNORECASE)
Key = tuple[str, str]  # of an entry: model and the precision it was served in


class Panel(Struct, frozen=True, kw_only=True):
    """Cohorts of one measurer, version and mode."""

    measured_by: str
    kind: str
    version: str
    mode: str
    setting: str
    columns: tuple[Cohort, ...]  # that with the most entries first
    composed: tuple[Cohort, ...] = ()  # those that the composite is made of; (): there is none
    cells: dict[str, dict[Key, Entry]] = {}  # by cohort
    composite: dict[Key, float] = {}

    @property
    def keys(self) -> list[Key]:
        """The lines: by composite where there is one, then by rank in the first column that has them, then by name."""

        def place(key: Key) -> tuple[float, list[float], Key]:
            ranks = [(self.cells[c.id][key].rank if key in self.cells[c.id] else None) or 1e9 for c in self.columns]
            return -self.composite.get(key, -1.0), ranks, key

        return sorted({key for cells in self.cells.values() for key in cells}, key=place)


def panels(scores: Scores, cohorts: Iterable[Cohort]) -> list[Panel]:
    """These cohorts by who measured them and how; the panel with the most models first. Kinds are never in one."""
    groups: dict[tuple[str, ...], list[Cohort]] = {}
    for each in cohorts:
        common = "; ".join(w for w in each.setting.split("; ") if w and not _OF_A_COLUMN.match(w))
        groups.setdefault((each.measured_by, each.kind, each.version, each.mode, common), []).append(each)
    found = [_panel(key, group, scores) for key, group in groups.items()]
    kinds = ("own", "independent", "publisher")
    return sorted(found, key=lambda p: (kinds.index(p.kind), -len(p.keys), p.measured_by, p.version, p.mode, p.setting))


def _panel(key: tuple[str, ...], group: Sequence[Cohort], scores: Scores) -> Panel:
    cells = {
        each.id: {(e.score.model, e.score.served): e for e in entries(each, scores.by_cohort[each.id])}
        for each in group
    }  # fmt: skip
    columns = sorted(group, key=lambda c: (-len(cells[c.id]), not _WHOLE.search(c.variant), c.benchmark, c.id))
    composed = _composed(columns, cells, scores)
    names = ("measured_by", "kind", "version", "mode", "setting")
    return Panel(
        **dict(zip(names, key, strict=True)), columns=tuple(columns), cells=cells,
        composed=composed, composite=composite(composed, scores),
    )  # fmt: skip


def _composed(columns: Sequence[Cohort], cells: dict[str, dict[Key, Entry]], scores: Scores) -> tuple[Cohort, ...]:
    """One cohort a benchmark, of those that rank and have at least half as many entries as the largest."""
    most = max((len(cells[each.id]) for each in columns), default=0)
    chosen: dict[str, Cohort] = {}
    for each in columns:
        known = scores.benchmarks.get(each.benchmark)
        if not each.informs and 2 * len(cells[each.id]) >= most > 1 and not (known and known.summary):
            chosen.setdefault(each.benchmark, each)
    composed = tuple(chosen.values())
    return composed if composite(composed, scores) else ()


def of_task(scores: Scores, task: str) -> list[Cohort]:
    return [each for each in scores.cohorts.values() if task in each.tasks]


def of_language(scores: Scores, name: str) -> list[Cohort]:
    """By ISO code or English name. Raises Unknown with the languages there are."""
    code = LANGUAGES.get(name.lower(), name.lower())
    found = [each for each in scores.cohorts.values() if code and each.language == code]
    if not found:
        there = {each.language for each in scores.cohorts.values()}
        known = ", ".join(f"{word} ({iso})" for word, iso in LANGUAGES.items() if iso in there)
        raise Unknown(f"no scores for the language {name[:40]!r}", hint=f"there are: {known}")
    return found
