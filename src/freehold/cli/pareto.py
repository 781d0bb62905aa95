"""`freehold plan --pareto`: the front of quality against cost as a table, as JSON and as a plot."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from math import log10
from textwrap import wrap

import msgspec

from freehold.catalogue import Catalogue, pairs
from freehold.catalogue.decide import Decision
from freehold.cli.tables import printable, table
from freehold.errors import DoesNotFit
from freehold.facts import Cohort
from freehold.plan.pareto import Point, front
from freehold.plan.scores import Scores, caveat, error, printed

_WIDE, _HIGH, _EDGE = 900, 560, 70  # pixels
_LINE = 14  # from one line of text to the next
_TICKS = 5  # an axis
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --dot: #0969da; --paper: #fff }
@media (prefers-color-scheme: dark) {
  :root { --ink: #f0f6fc; --soft: #9198a1; --line: #3d444d; --dot: #4493f8; --paper: #0d1117 }
}
text { font: 12px system-ui, sans-serif; fill: var(--ink) } .soft { fill: var(--soft) }
.paper { fill: var(--paper) } .axis { stroke: var(--line) } .member { fill: var(--dot) }
.other { fill: none; stroke: var(--soft) } .front { fill: none; stroke: var(--dot) } .error { stroke: var(--soft) }
"""


class Plot:
    """One point a model: the cheapest deployment in the precision that was scored, else in any."""

    def __init__(self, decision: Decision, catalogue: Catalogue, scores: Scores, cohort: Cohort) -> None:
        self.cohort, self.need = cohort, decision.need
        measured = pairs()
        shipped = {each.id: each.checkpoint for each in (*catalogue.known, *catalogue.models)}
        best: dict[str, tuple[tuple[bool, float], Point]] = {}
        unknown: dict[str, str] = {}
        for plan in decision.choice.plans:
            score = scores.of(cohort.id, plan.model, plan.scheme)
            cost = plan.per_million if self.need.rate else plan.month
            if score is None or cost is None:
                unknown.setdefault(plan.model, "no score" if score is None else "no cost")
                continue
            mark = caveat(score, (plan.scheme, shipped.get(plan.model, "")), measured)
            where = f"{plan.cards} x {plan.card}, {plan.place}" if plan.card else plan.place
            point = Point(
                model=plan.model, scheme=plan.scheme, where=where, value=score.value, error=error(cohort, score),
                cost=cost, undated=plan.undated, scored=mark,
            )  # fmt: skip
            place = bool(mark), cost
            best[plan.model] = min(best.get(plan.model, (place, point)), (place, point), key=lambda each: each[0])
        self.unknown = {name: why for name, why in unknown.items() if name not in best}  # why it is not in the plot
        self.front = front((point for _, point in best.values()), lower_is_better=cohort.lower_is_better)

    @property
    def _unit(self) -> str:
        return f"{self.need.currency} a {'million tokens' if self.need.rate else 'month'}"

    def _cost(self, cost: float) -> str:
        return f"{cost:,.{2 if self.need.rate else 0}f}"

    def render(self) -> str:
        """For a person. Raises DoesNotFit where nothing has both a score and a cost."""
        cohort, members = self.cohort, self.front.members
        if not members:
            why = ", ".join(sorted(set(self.unknown.values()), reverse=True))
            hint = "--offer on-demand, [hosts] or [machine] hourly_price say what machines cost"
            raise DoesNotFit(f"nothing to compare in {cohort.id}: {why}", hint=hint)
        rows = [
            (
                p.model,
                printed(p.value, p.error),
                self._cost(p.cost) + "*" * p.undated,
                p.scheme + (" +" if p.scored else ""),
                p.where,
            )
            for p in members
        ]
        less = ", lower is better" if cohort.lower_is_better else ""
        parts = [f"Nothing is both better and cheaper: {cohort.id}, measured by {cohort.measured_by}{less}"]
        parts.append(table(("MODEL", "VALUE", self._unit.upper(), "PRECISION", "WHERE"), rows))
        if marked := [f"{p.model}: {p.scored}" for p in members if p.scored]:
            parts.append(f"+ {'; '.join(marked)}.")
        if any(p.undated for p in members):
            parts.append("* the price has no date: treat it as old.")
        parts.append(f"{len(self.front.dominated)} models are dominated (--json says by whom).")
        for why in sorted(set(self.unknown.values()), reverse=True):
            those = sorted(name for name in self.unknown if self.unknown[name] == why)
            parts += ["\n".join(wrap(f"Not compared, {why}: {', '.join(those)}.", 116, subsequent_indent="    "))]
        return printable("\n\n".join(parts))

    def json(self) -> str:
        """For programs."""
        built = {
            "cohort": self.cohort, "cost": self._unit, "members": self.front.members,
            "dominated": self.front.dominated, "unknown": self.unknown,
        }  # fmt: skip
        return msgspec.json.format(msgspec.json.encode(built)).decode()

    def svg(self) -> str:
        """A plot that is readable on light and dark ground."""
        title = escape(f"{self.cohort.id} ({self.cohort.measured_by}) against cost")
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {_HIGH}" role="img">\n'
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n"
            f'<rect class="paper" width="{_WIDE}" height="{_HIGH}"/>\n{_text(_EDGE, 24, title)}\n'
            f'<path class="axis" d="M{_EDGE} {_EDGE // 2}V{_HIGH - _EDGE}H{_WIDE - _EDGE}" fill="none"/>\n'
            + "".join(f"{each}\n" for each in self._drawn())
            + "</svg>\n"
        )

    def _drawn(self) -> Iterator[str]:
        """Scales, the line of the front, and all points. Cost is logarithmic where it spans much."""
        members, others = self.front.members, [each.point for each in self.front.dominated]
        points = [*members, *others]
        if not points:
            return
        costs = [p.cost for p in points]
        values = [p.value + sign * (p.error or 0) for p in points for sign in (-1, 1)]
        steep = max(costs) > 8 * min(costs) > 0
        x = _Scale(costs, _EDGE, _WIDE - 2 * _EDGE, steep=steep)
        ends = _HIGH - _EDGE, _EDGE  # the better is above
        y = _Scale(values, *(reversed(ends) if self.cohort.lower_is_better else ends))
        yield _text(_WIDE / 2, _HIGH - 20, f"{self._unit}{', logarithmic' if steep else ''}", "soft")
        yield from (_text(x(tick), _HIGH - _EDGE + 18, _tick(tick), "soft", "middle") for tick in x.ticks)
        yield from (_text(_EDGE - 8, y(tick) + 4, _tick(tick), "soft", "end") for tick in y.ticks)
        line = " ".join(
            f"{'H' if i else 'M'}{x(p.cost):.1f} {'V' if i else ''}{y(p.value):.1f}" for i, p in enumerate(members)
        )
        yield f'<path class="front" d="{line}"/>'
        highest = float(_HIGH)
        for p in points:
            at, level, half = x(p.cost), y(p.value), p.error or 0.0
            yield f'<path class="error" d="M{at:.1f} {y(p.value - half):.1f}V{y(p.value + half):.1f}"/>'
            hover = escape(printable(f"{p.model}, {p.scheme}, {p.where}: {p.value:g}, {self._cost(p.cost)}"))
            kind = "member" if p in members else "other"
            yield f'<circle class="{kind}" cx="{at:.1f}" cy="{level:.1f}" r="4"><title>{hover}</title></circle>'
            if kind == "member":  # the front rises, so each name stands above the one before
                highest = min(level - 7, highest - _LINE)
                name = escape(p.model + (" +" if p.scored else ""))
                left = at < _WIDE / 3
                yield _text(at + (7 if left else -7), highest, name, "member-name", "start" if left else "end")


class _Scale:
    """From a value to pixels, logarithmic or not."""

    def __init__(self, values: list[float], start: float, end: float, *, steep: bool = False) -> None:
        self._flat = log10 if steep else float
        self._low, self._start = self._flat(min(values)), start
        span = self._flat(max(values)) - self._low
        self._pixels = (end - start) / (span or 1.0)
        spots = (self._low + span * i / (_TICKS - 1) for i in range(_TICKS))
        self.ticks = list(dict.fromkeys(float(f"{10**spot if steep else spot:.3g}") for spot in spots))

    def __call__(self, value: float) -> float:
        return self._start + (self._flat(value) - self._low) * self._pixels


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _text(x: float, y: float, words: str, kind: str = "", end: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{end}">{words}</text>'
