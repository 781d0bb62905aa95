"""A decision as a table, as JSON, as a paper, and as an endpoint in freehold.toml."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from shlex import quote
from textwrap import wrap
from typing import Any

import msgspec

from freehold.catalogue import Catalogue, pairs
from freehold.catalogue.decide import Decision
from freehold.cli.tables import beside, markdown, moment, printable, table
from freehold.errors import BadConfig
from freehold.facts import Model, Pair
from freehold.plan.choose import ORDER
from freehold.plan.deployment import Deployment
from freehold.plan.explain import assumptions, explain, quality
from freehold.plan.performance import Estimate
from freehold.plan.scores import NOTHING, Scores, floor_of, standing
from freehold.plan.units import size
from freehold.plan.weights import SCHEMES
from freehold.types import Measurement, Refusal

_HEADS = (
    *("MODEL", "PRECISION", "CARDS", "WHERE", "COUNTRY"),
    *("HOLDS", "LONGEST", "TOKENS/S", "A MONTH", "A MILLION"),
)
_UNASKED = re.compile(r"(size|context): .*?, (.*)")
_CUT = 170  # characters of a reason in a table; --json has all of it


class Page:
    """One decision with what is needed to show it. `start`: the newest one of a deployment, where the book has one."""

    def __init__(
        self,
        decision: Decision,
        catalogue: Catalogue,
        read: Model | None,
        start: Callable[[Deployment], Measurement | None] = lambda _: None,
        *,
        scores: Scores = NOTHING,
    ) -> None:
        self.floors, self.scores = [floor_of(each, scores).cohort for each in decision.need.floor], scores
        self.decision, self.need, self.start = decision, decision.need, start
        known = (*catalogue.known, *catalogue.models, *((read,) if read else ()))
        self.models = {each.id: each for each in known}
        self.places = {place.name: place for place in decision.places}

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """What quantization was measured to lose: read only for who wants the arithmetic."""
        return pairs()

    def render(self, top: int, *, paper: bool, full: bool) -> str:
        """For a person; `paper`: as Markdown. `full`: with the arithmetic of each deployment shown."""
        choice, draw, head = self.decision.choice, markdown if paper else table, "## {}" if paper else "{}"
        plans = choice.plans[:top]
        parts = [head.format(self._title())]
        if plans:
            parts += [draw(_HEADS, [self._row(plan) for plan in plans]), "\n".join(self._notes(plans))]
        parts += ["\n".join(self._detail(plan, full=full)) for plan in (plans if full else plans[:1])]
        if choice.refusals:
            parts.append(head.format(f"Models that are out: {len(choice.refusals)}"))
            grouped = _grouped(choice.refusals)
            parts.append(markdown(("REASON", "MODELS"), grouped) if paper else _listed(grouped))
        if refused := self.decision.places_refused:
            counted = Counter(_cut(each.reason) for each in refused)
            parts.append(head.format(f"Places that are out: {len(refused)}"))
            parts.append(draw(("PLACES", "REASON"), [(str(n), reason) for reason, n in counted.most_common()]))
        return printable("\n\n".join(parts))

    def json(self, *, full: bool) -> str:
        """Everything, for programs; `full`: with the steps of every figure."""
        built: dict[str, Any] = msgspec.to_builtins(self.decision)
        del built["places"]
        built["order"] = ORDER
        for row, plan in zip(built["choice"]["plans"], self.decision.choice.plans, strict=True):
            model, place = self.models[plan.model], self.places[plan.place]
            row |= {"cards": plan.cards, "country": place.country, "start": flags(plan, model, self.need.kv_dtype)}
            row["assumptions"] = assumptions(plan, place, self.need)
            row["measured"] = self.start(plan)
            row["scored"] = self._scored(plan)
            if full:
                row["steps"] = explain(plan, model, place, self.need)
                row["quality"] = self._quality(plan)
        return msgspec.json.format(msgspec.json.encode(built)).decode()

    def _quality(self, plan: Deployment) -> tuple[str, ...]:
        sizes = {name: size for name, each in self.models.items() if (size := each.parameters.total)}
        return quality(plan, self.pairs, sizes)

    def _scored(self, plan: Deployment) -> list[str]:
        """What it reached in the cohorts that a floor is asked in."""
        shipped = self.models[plan.model].checkpoint
        precisions = plan.scheme, shipped
        return [standing(each, self.scores, plan.model, precisions, self.pairs) for each in self.floors]

    def _title(self) -> str:
        need, choice = self.need, self.decision.choice
        asked = [need.model, need.task, f"{need.users} at once"]
        asked += [f"{need.context:,} tokens each", f"{need.speed:g} tokens/s each" if need.speed else ""]
        asked += [f"{need.budget:,.0f} {need.currency} a month" if need.budget else ""]
        found = f"{len(choice.plans)} deployment{'s' * (len(choice.plans) > 1)}" if choice.plans else "NOTHING"
        return f"{found} for: {', '.join(filter(None, asked))} ({choice.considered:,} combinations)"

    def _row(self, plan: Deployment) -> tuple[str, ...]:
        ways = ((plan.tp, "tp"), (plan.pp, "pp"), (plan.ep, "ep"), (plan.replicas, "replicas"))
        split = ", ".join(f"{n} {word}" for n, word in ways if n > 1)
        cards = f"{plan.cards} x {plan.card}" + (f" ({split})" if split else "") if plan.card else "CPU"
        if plan.gpu_layers:
            cards += f", {plan.gpu_layers} of {self.models[plan.model].layers} layers"
        cards += " #" if self.start(plan) else ""
        money = f"{plan.month:,.0f} {plan.currency}" if plan.month is not None else "unknown"
        return (
            plan.model,
            SCHEMES[plan.scheme].name + ("" if plan.native else " +"),
            cards,
            plan.place,
            self.places[plan.place].country or "unknown",
            f"{plan.requests:,}",
            f"{plan.longest:,}",
            _speed(plan),
            money + ("*" if plan.undated else ""),
            f"{plan.per_million:.2f}" if plan.per_million is not None else "unknown",
        )

    def _notes(self, plans: Sequence[Deployment]) -> Iterator[str]:
        yield f"Order: {ORDER}."
        yield from (f"Note: {note}." for note in self.decision.notes)
        if any(not plan.native for plan in plans):
            yield "+ not what the publisher ships, but quantized from it: what that loses is not part of this table."
        for each in self.floors:
            if unscored := [p.model for p in plans if self.scores.of(each.id, p.model) is None]:
                yield f"Allowed without a score in {each.id}: {', '.join(dict.fromkeys(unscored))}."
        if any(map(self.start, plans)):
            yield "# started here before: --explain says what it took then, beside what was predicted."
        if any(plan.undated for plan in plans):
            yield "* the price has no date: treat it as old."
        yield from self._of_speed(plans)
        if any(plan.month is None for plan in plans):
            yield "A month: unknown where nobody said what a machine costs ([machine] hourly_price, [hosts], --offer)."

    def _of_speed(self, plans: Sequence[Deployment]) -> Iterator[str]:
        """What the figures on speed and the cost of tokens are."""
        if any(plan.performance for plan in plans):
            yield "Tokens/s: of one request, with its band (`speed` below says what it rests on); = measured here."
        if why := {plan.unpredicted: None for plan in plans if plan.unpredicted}:
            load = " Whether it carries the load is unknown, too." if self.need.requests_a_day else ""
            yield f"Tokens/s after <=: at most, what is likely is unknown: {'; '.join(why)}.{load}"
        if self.need.rate:
            source = self.need.rate_source or "as stated"
            yield f"A million tokens: at {self.need.rate:g} a second of each replica, {source}, the same for every row."
        if not self.need.rate and any(plan.performance is None for plan in plans):
            yield "A million tokens: unknown where the speed is, without a measured or published rate (--rate)."

    def _detail(self, plan: Deployment, *, full: bool) -> Iterator[str]:
        """One deployment: what it holds, what it obliges to, how it is started, what was assumed."""
        model, place = self.models[plan.model], self.places[plan.place]
        yield f"{plan.model} on {plan.place}"
        where = " on the fullest card" if plan.engine == "vllm" else ""
        yield f"  memory   {size(plan.weight_bytes)} of weights{where}, {size(plan.pool_bytes)} left for the KV cache"
        tokens, longest = f"{plan.kv_tokens:,} tokens in all", f"{plan.longest:,} for {plan.users} at once"
        yield f"  context  {tokens}; {plan.requests:,} requests of {plan.context:,}; the longest is {longest}"
        yield f"  speed    {_told(plan)}"
        yield from (f"  scored   {each}" for each in self._scored(plan))
        yield from (f"  duty     {duty}" for duty in plan.duties)
        if plan.accepted:
            yield f"  accepted {plan.accepted}"
        yield f"  start    {flags(plan, model, self.need.kv_dtype)}"
        yield from (f"  assumed  {each}" for each in assumptions(plan, place, self.need))
        if full:
            yield from (f"  {line}" for line in self._quality(plan))
            yield from (f"  {line}" for line in _measured(self.start(plan)))
            yield from (f"  {line}" for line in explain(plan, model, place, self.need))
            for field in ("dims", "licence"):
                yield f"  source   {field}: {'; '.join(model.sources.get(field, ('its files',)))}"


def _speed(plan: Deployment) -> str:
    """Tokens a second of one request, with its band; or the ceiling."""
    if found := plan.performance:
        tpot, mark = found.tpot_s, "=" if found.basis == "measured" else ""
        return f"{mark}{_digits(1 / tpot.value)} ({_digits(1 / tpot.high)}-{_digits(1 / tpot.low)})"
    return f"<= {_digits(plan.ceiling)}" if plan.ceiling is not None else "unknown"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _told(plan: Deployment) -> str:
    """The whole of what is known of its speed."""
    if plan.performance is None:
        most = f"; at most {_digits(plan.ceiling)} tokens/s of one request" if plan.ceiling is not None else ""
        return f"unknown: {plan.unpredicted}{most}"
    found = plan.performance

    def span(value: Estimate, scale: float, unit: str) -> str:
        return f"{_digits(value.value * scale)} {unit} ({_digits(value.low * scale)} to {_digits(value.high * scale)})"

    return (
        f"{span(found.tpot_s, 1000, 'ms')} a token, {span(found.ttft_s, 1000, 'ms')} to the first, "
        f"{span(found.tokens_per_s, 1, 'tokens/s')} in each replica, {found.concurrency} at once; {found.basis}: "
        f"{found.source}"
    )


def _measured(start: Measurement | None) -> Iterator[str]:
    """What a start took, each beside what was predicted of it then: no figure above is changed by it."""
    if start is None:
        return
    now, then = start.stated, start.predicted
    how = f"{start.engine} {start.engine_version}".strip() + (f" with {start.options}" if start.options else "")
    yield f"measured here: {moment(start.at_ns)} on {start.host}, {how}; predicted / real:"
    yield f"  weights {beside(then.weight_bytes, now.weight_bytes)}"
    yield f"  KV cache {beside(then.kv_bytes, now.kv_bytes)}, {start.context:,} tokens for {start.parallel} at once"
    yield f"  total {beside(then.total_bytes, now.total_bytes)}"


def flags(plan: Deployment, model: Model, kv_dtype: str) -> str:
    """The engine's own command line for this deployment."""
    if plan.engine == "llamacpp":
        layers = f" -ngl {plan.gpu_layers}" if plan.gpu_layers else ""
        return f"llama-server -m {quote(f'{model.id}.gguf')} -c {plan.context * plan.users} -np {plan.users}{layers}"
    words = ["vllm serve", quote(model.repo or model.id)]
    words += [f"--max-model-len {plan.context}", f"--max-num-seqs {plan.sequences}"]
    words += [f"--tensor-parallel-size {plan.tp}"] if plan.tp > 1 else []
    words += [f"--pipeline-parallel-size {plan.pp}"] if plan.pp > 1 else []
    words += [f"--data-parallel-size {plan.ep} --enable-expert-parallel"] if plan.ep > 1 else []
    words += ["--quantization fp8"] if plan.scheme == "fp8" and not plan.native else []
    words += [f"--kv-cache-dtype {kv_dtype}"] if kv_dtype not in ("bf16", "fp16") else []
    made = "" if plan.native or plan.scheme == "fp8" else f"   (a copy of the model in {SCHEMES[plan.scheme].name})"
    return " ".join(words) + made


def _grouped(refusals: Sequence[Refusal]) -> list[tuple[str, str]]:
    """One row a reason; of what somebody merely did not ask for, one row in all."""
    rows: dict[str, list[str]] = {}
    for each in refusals:
        found = _UNASKED.match(each.reason) if len(refusals) > 1 else None
        reason = each.reason if len(refusals) == 1 else _cut(each.reason)
        rows.setdefault(f"{found[1]}: {found[2]}" if found else reason, []).append(each.subject)
    return [(reason, ", ".join(models)) for reason, models in rows.items()]


def _listed(rows: Sequence[tuple[str, str]]) -> str:
    """Each reason, and under it the models: their names would make a table too wide."""
    indent = " " * 4
    return "\n".join(
        "\n".join([reason, *wrap(names, 116, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)])
        for reason, names in rows
    )


def _cut(text: str) -> str:
    return text if len(text) <= _CUT else text[: _CUT - 1].rstrip() + "…"


def write(path: Path, name: str, page: Page, weights: Path | None) -> str:
    """Append the first deployment to freehold.toml as an endpoint. Raises BadConfig when there is one of that name.

    `weights` are the files that were planned for. A file that would become invalid stays as it was.
    """
    from freehold.fleet.config import load

    plan, before = page.decision.choice.plans[0], path.read_text() if path.exists() else None
    if name in tomllib.loads(before or "").get("endpoints", {}):
        raise BadConfig(f"{path} has an endpoint {name!r} already", hint="choose another name, or take that one out")
    table = f"endpoints.{name if re.fullmatch('[A-Za-z0-9_-]+', name) else _quoted(name)}"
    text = "\n".join([f"[{table}]  # written by freehold plan", *_endpoint(page, plan, path.parent, weights)]) + "\n"
    path.write_text(f"{before}\n{text}" if before else text)
    try:
        load(path)
    except BadConfig:
        if before is None:
            path.unlink()
        else:
            path.write_text(before)
        raise
    then = f"freehold up {name} starts it"
    if plan.engine == "llamacpp" and weights and weights.suffix != ".gguf":
        then = f"first convert {weights} to {_planned_file(plan)} (llama.cpp's convert_hf_to_gguf.py); then: {then}"
    if plan.engine == "vllm" and _ours(page, plan):
        then = f"freehold engine install vllm, and freehold pull, bring what is not here yet; then: freehold up {name}"
    elif plan.engine != "llamacpp":
        then = f"start the engine, then: freehold up {name}"
    return f"written to {path}: [{table}]; {then}"


def _endpoint(page: Page, plan: Deployment, folder: Path, weights: Path | None) -> Iterator[str]:
    """Its lines; `folder` is what paths in the file are seen from."""
    model = page.models[plan.model]
    if weights is None:
        yield f"model = {_quoted(plan.model)}"
    if plan.engine == "llamacpp":
        file = _planned_file(plan)
        if weights and weights.suffix == ".gguf":
            file = weights.resolve().as_posix()
            file = file.removeprefix(f"{folder.resolve().as_posix()}/")
        yield f"weights = {_quoted(file)}"
        yield from (f"context = {plan.context}", f"parallel = {plan.users}")
    elif _ours(page, plan):
        where = weights.resolve().as_posix().removeprefix(f"{folder.resolve().as_posix()}/") if weights else ""
        copy = "" if plan.native or plan.scheme == "fp8" else f": a copy of the model in {SCHEMES[plan.scheme].name}"
        yield f"# as planned on {plan.place}{copy}"
        yield from ('engine = "vllm"', f"weights = {_quoted(where or f'models/{model.repo or model.id}')}")
        yield from (f"context = {plan.context}", f"parallel = {plan.sequences}")
        yield from (f"{key} = {value}" for key, value in _sizes(plan, page.need.kv_dtype).items() if value)
    else:
        start = f"start it on {plan.place}: {flags(plan, model, page.need.kv_dtype)}"
        yield f"# {printable(' '.join(start.split()))}"
        yield from ('engine = "external"', 'url = "http://127.0.0.1:8000"')
        yield f"served_model = {_quoted(model.repo or model.id)}"
        place = page.places[plan.place]
        if re.fullmatch("[A-Z]{2}", place.country):
            yield f"country = {_quoted(place.country)}"
        if place.offer and place.offer.provider != "own":
            yield f"operator = {_quoted(place.offer.provider)}"


def _planned_file(plan: Deployment) -> str:
    return f"models/{plan.model}-{plan.scheme.removeprefix('gguf-')}.gguf"


def _ours(page: Page, plan: Deployment) -> bool:
    """On cards that the team has, Freehold starts it; on rented ones somebody else does."""
    offer = page.places[plan.place].offer
    return plan.engine == "vllm" and plan.ep == 1 and (offer is None or offer.provider == "own")


def _sizes(plan: Deployment, kv_dtype: str) -> dict[str, object]:
    """What is not the default of an endpoint."""
    return {
        "replicas": plan.replicas if plan.replicas > 1 else None,
        "tensor_parallel": plan.tp if plan.tp > 1 else None,
        "pipeline_parallel": plan.pp if plan.pp > 1 else None,
        "kv_dtype": _quoted(kv_dtype) if kv_dtype not in ("bf16", "fp16") else None,
        "arguments": '["--quantization", "fp8"]' if plan.scheme == "fp8" and not plan.native else None,
    }


def _quoted(text: str) -> str:
    """A TOML string: JSON's, with nothing but ASCII escaped. Raises BadConfig for a path that is no text."""
    try:
        return msgspec.json.encode(text).decode()
    except UnicodeEncodeError:
        raise BadConfig(f"{text!r} cannot stand in freehold.toml", hint="give the file a name in UTF-8") from None
