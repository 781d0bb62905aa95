"""`freehold plan --pareto`: the front of quality against cost as a table, as JSON and as a plot."""

from __future__ import annotations

from html import escape
from math import log10

import msgspec

from freehold.catalogue import Catalogue, pairs
from freehold.catalogue.decide import Decision
from freehold.cli.tables import printable, table
from freehold.facts import Cohort, Score
from freehold.plan.deployment import Deployment
from freehold.plan.pareto import Front, Point, front
from freehold.plan.scores import Scores, caveat, error

_WIDE, _HIGH, _EDGE = 900, 560, 70  # pixels
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
        self._pairs = pairs()
        self._shipped = {each.id: each.checkpoint for each in (*catalogue.known, *catalogue.models)}
        best: dict[str, tuple[tuple[bool, float], Point]] = {}
        self.unknown: dict[str, str] = {}  # model: why it is not in the plot
        for plan in decision.choice.plans:
            score, cost = scores.of(cohort.id, plan.model, plan.scheme), self._cost(plan)
            if score is None or cost is None:
                self.unknown.setdefault(plan.model, "no score" if score is None else "no cost")
                continue
            point = self._point(plan, score, cost)
            place = bool(point.scored), cost
            if plan.model not in best or place < best[plan.model][0]:
                best[plan.model] = place, point
        self.unknown = {name: why for name, why in self.unknown.items() if name not in best}
        points = [point for _, point in best.values()]
        self.front: Front = front(points, lower_is_better=cohort.lower_is_better)

    def _cost(self, plan: Deployment) -> float | None:
        return plan.per_million if self.need.rate else plan.month

    def _point(self, plan: Deployment, score: Score, cost: float) -> Point:
        mark = caveat(score, (plan.scheme, self._shipped.get(plan.model, "")), self._pairs)
        where = f"{plan.cards} x {plan.card}, {plan.place}" if plan.card else plan.place
        half = error(self.cohort, score)
        return Point(
            model=plan.model, scheme=plan.scheme, where=where, value=score.value, error=half, cost=cost, scored=mark
        )

    @property
    def _unit(self) -> str:
        return f"{self.need.currency} a {'million tokens' if self.need.rate else 'month'}"

    def render(self) -> str:
        """For a person."""
        rows = [
            (
                p.model, f"{p.value:g}" + (f" ± {p.error:.1f}" if p.error is not None else ""),
                f"{p.cost:,.{2 if self.need.rate else 0}f}", p.scheme + (" +" if p.scored else ""), p.where,
            )
            for p in self.front.members
        ]  # fmt: skip
        cohort = self.cohort
        less = ", lower is better" if cohort.lower_is_better else ""
        parts = [f"Nothing is both better and cheaper: {cohort.id}, measured by {cohort.measured_by}{less}"]
        if cohort.informs:
            parts.append(f"This cohort does not rank: {cohort.informs}.")
        parts.append(table(("MODEL", "VALUE", self._unit.upper(), "PRECISION", "WHERE"), rows))
        marked = [f"{p.model}: {p.scored}" for p in self.front.members if p.scored]
        parts += [f"+ {'; '.join(marked)}."] if marked else []
        parts.append(f"{len(self.front.dominated)} models are dominated (--json says by whom).")
        for why in ("no score", "no cost"):
            if those := sorted(name for name, said in self.unknown.items() if said == why):
                parts.append(f"Not compared, {why}: {', '.join(those)}.")
        return printable("\n\n".join(parts))

    def json(self) -> str:
        """For programs."""
        built = {
            "cohort": self.cohort, "cost": self._unit, "members": self.front.members,
            "dominated": self.front.dominated, "unknown": self.unknown,
        }  # fmt: skip
        return msgspec.json.format(msgspec.json.encode(built)).decode()

    def svg(self) -> str:
        """A plot that is readable on light and dark ground. Cost is on a logarithmic scale where it spans much."""
        others = [each.point for each in self.front.dominated]
        points = [*self.front.members, *others]
        if not points:
            points = [Point(model="", scheme="", where="", value=0.0, cost=1.0)]
        steep = max(p.cost for p in points) > 8 * max(1e-9, min(p.cost for p in points))

        def flat(cost: float) -> float:
            return log10(max(cost, 1e-9)) if steep else cost

        xs = _scale([flat(p.cost) for p in points], _EDGE, _WIDE - 2 * _EDGE)
        ends = (_EDGE, _HIGH - _EDGE) if self.cohort.lower_is_better else (_HIGH - _EDGE, _EDGE)  # the better is above
        ys = _scale([p.value + s * (p.error or 0) for p in points for s in (-1, 1)], *ends)
        title = f"{self.cohort.id} ({self.cohort.measured_by}) against cost"
        dark = [f'<rect class="paper" width="{_WIDE}" height="{_HIGH}"/>', _text(_EDGE, 24, title)]
        dark.append(f'<path class="axis" d="M{_EDGE} {_EDGE // 2}V{_HIGH - _EDGE}H{_WIDE - _EDGE}" fill="none"/>')
        said = f"{self._unit}{', logarithmic' if steep else ''}"
        dark.append(_text(_WIDE // 2, _HIGH - 20, said, soft=True))
        members = self.front.members
        costs, values = sorted({p.cost for p in members}), sorted({p.value for p in members})
        dark += [_text(xs(flat(c)), _HIGH - _EDGE + 18, f"{c:,.{2 if c < 100 else 0}f}", soft=True) for c in costs]
        dark += [_text(_EDGE - 48, ys(value) + 4, f"{value:g}", soft=True) for value in values]
        steps = "".join(
            f"{'M' if i == 0 else f'H{xs(flat(p.cost)):.1f} L'}{xs(flat(p.cost)):.1f} {ys(p.value):.1f}"
            for i, p in enumerate(members)
        )
        dark.append(f'<path class="front" d="{steps}"/>' if steps else "")
        for each in points if members else ():
            x, y, half = xs(flat(each.cost)), ys(each.value), each.error or 0.0
            if half:
                low, high = ys(each.value - half), ys(each.value + half)
                dark.append(f'<path class="error" d="M{x:.1f} {low:.1f}V{high:.1f}"/>')
            kind = "other" if each in others else "member"
            hover = escape(f"{each.model}, {each.scheme}, {each.where}: {each.value:g}, {each.cost:,.2f}")
            dark.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{hover}</title></circle>')
            if kind == "member":
                dark.append(_text(x + 7, y - 7, each.model + (" +" if each.scored else "")))
        body = "\n".join(filter(None, dark))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {_HIGH}" role="img">\n'
            f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n{body}\n</svg>\n"
        )


def _scale(values: list[float], start: float, end: float):  # noqa: ANN202  a function of a value, in pixels
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _text(x: float, y: float, words: str, *, soft: bool = False) -> str:
    kind = ' class="soft"' if soft else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'
