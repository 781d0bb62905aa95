"""`freehold plan`: which model, on what, at what cost, and may we?"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from freehold.catalogue import Catalogue
    from freehold.catalogue.decide import Decision, Situation
    from freehold.errors import FreeholdError
    from freehold.facts import Model
    from freehold.fleet.config import Config
    from freehold.plan.cpu_speed import Memory
    from freehold.plan.deployment import Deployment
    from freehold.plan.need import Need
    from freehold.plan.performance import Pace
    from freehold.types import Host, Measurement

_SHOWN = 12  # deployments, unless more are asked for
_FLAGS = {  # where they are not called as the field
    "kinds": "--offer", "min_size": "--size", "max_size": "--size", "requests_a_day": "--requests",
}  # fmt: skip
_READABLE = 5.0  # tokens a second below which nobody waits for an answer: asked of this machine where nothing is said


def tokens(_: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """`32K` or 32768. Thousands are 1,024 here, as context lengths are."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,12})\s*([kKmM]?)", value.replace(",", "").replace("_", ""))
    if not found:
        raise click.BadParameter("a number of tokens, for example 32K or 32768", param=parameter)
    return int(found[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20}[found[2].lower()]


def _lower(_context: click.Context, _option: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.lower() for name in names)


@click.command
@click.argument("model", required=False)
@click.option("--task", type=click.Choice(["chat", "coding", "vision", "audio"]), help="What it is for.")
@click.option("--size", metavar="B", help="Billions of parameters: 70 is 56 to 84; or 60-80.")
@click.option("--context", metavar="TOKENS", callback=tokens, help="Tokens of a request, prompt and answer: 32K.")
@click.option("--users", type=int, metavar="N", help="Requests at the same moment, each with the whole context.")
@click.option("--speed", type=float, metavar="TPS", help="Tokens a second that each of them gets at least.")
@click.option("--budget", type=float, metavar="MONEY", help="A month, at most.")
@click.option("--currency", metavar="CODE", help="Of the budget and of all prices shown.")
@click.option("--use", type=click.Choice(["commercial", "internal", "research"]), help="Of the output.")
@click.option("--residency", multiple=True, metavar="COUNTRY", help="Where machines may stand: DE, EU, EEA.")
@click.option("--jurisdiction-not", multiple=True, metavar="COUNTRY", help="Home law that must not reach them.")
@click.option("--no-cloud-act", is_flag=True, help="The same as --jurisdiction-not US.")
@click.option("--cards", metavar="NxCARD", help="Cards at hand, for example 2xH100; with --offer, to be rented.")
@click.option(
    "--offer",
    "kinds",
    multiple=True,
    type=click.Choice(["on-demand", "spot", "reserved", "dedicated", "owned"]),
    help="Only offers of this kind.",
)
@click.option("--hours", "hours_a_day", type=float, metavar="H", help="A day on which machines are paid.")
@click.option("--floor", multiple=True, metavar="COHORT>=VALUE", help="Of quality: see freehold scores.")
@click.option("--unscored", type=click.Choice(["refuse", "allow"]), help="Models without a score in such a cohort.")
@click.option("--pareto", metavar="COHORT", help="Quality against cost: who is best at its price.")
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), help="With --pareto, a plot into this file.")
@click.option(
    "--quantization",
    multiple=True,
    metavar="SCHEME",
    callback=_lower,
    help="Only these: fp8, int4-awq, gguf-q4_k_m ...",
)
@click.option("--vllm", metavar="VERSION", help="The vLLM that is sized: 0.26, 0.19 ...")
@click.option("--kv-dtype", metavar="TYPE", help="Of the KV cache: bf16, fp8, nvfp4.")
@click.option("--requests", "requests_a_day", type=float, metavar="N", help="A day, for the cost of tokens.")
@click.option("--prompt", "prompt_tokens", type=float, metavar="TOKENS", help="Of a request, on average.")
@click.option("--completion", "completion_tokens", type=float, metavar="TOKENS", help="Of a request, on average.")
@click.option("--prefix-hit", type=float, metavar="SHARE", help="Of each prompt, that is in the cache already.")
@click.option("--draft-tokens", type=int, metavar="N", help="Guessed a step by speculative decoding.")
@click.option("--acceptance", type=float, metavar="SHARE", help="Of the guesses, that turn out right.")
@click.option("--rate", type=float, metavar="TPS", help="Completion tokens a second of one replica, instead of ours.")
@click.option("--rate-source", metavar="TEXT", help="Who measured it.")
@click.option("--here", is_flag=True, help="Only this machine.")
@click.option("--every", is_flag=True, help="Every way to serve each model, not only the best.")
@click.option("--top", type=click.IntRange(1), default=_SHOWN, show_default=True, help="Deployments shown.")
@click.option("--explain", is_flag=True, help="The arithmetic of every figure, with sources.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--md", "as_markdown", is_flag=True, help="For a paper.")
@click.option("--write", metavar="ENDPOINT", help="Put the first one into freehold.toml under this name.")
@click.pass_obj
def command(config_path: Path, model: str | None, here: bool, every: bool, top: int, **flags: Any) -> None:
    """Decide: which model, on which cards, at what cost, and may we?

    MODEL is a name of the catalogue, a folder with config.json and safetensors, or a GGUF file; without it all
    models compete. What is not said comes from [need] in freehold.toml. Without any bound: what this machine can do.
    Exit status 3: policy refuses the model, 4: nothing meets the need.
    """
    from msgspec.structs import replace

    from freehold.catalogue.decide import decide
    from freehold.cli.decision import Page, write
    from freehold.cli.known import known
    from freehold.plan.need import Need

    explain, as_json, as_markdown = (flags.pop(key) for key in ("explain", "as_json", "as_markdown"))
    endpoint, pareto, svg = flags.pop("write"), flags.pop("pareto"), flags.pop("svg")
    if svg and not pareto:
        raise click.UsageError("--svg draws what --pareto COHORT compares")
    if pareto and (endpoint or explain or as_markdown):
        raise click.UsageError("--pareto answers with models beside each other: leave out --write, --explain and --md")
    if here and (flags["cards"] or flags["kinds"]):
        raise click.UsageError("--here and --cards or --offer contradict each other: leave one of them out")
    catalogue, config = known(config_path)
    need, read = _need(config.need if config else Need(), catalogue, model, flags)
    need, situation = _situation(config, catalogue, need, here=here)
    book = _book(config, Path(model) if read and model else None)
    situation = replace(situation, paces=tuple(book.paces), digest=book.digest)
    if need.floor or pareto:
        from freehold.cli.scores import everything

        situation = replace(situation, scores=everything(config))
    cohort = situation.scores.ranking(pareto) if pareto else None
    decision = decide(catalogue, need, situation, model=read, every=every or bool(pareto))
    if cohort and decision.choice.plans:
        from freehold.cli.pareto import Plot

        plot = Plot(decision, catalogue, situation.scores, cohort)
        click.echo(plot.json() if as_json else plot.render())
        if svg:
            _save(svg, plot.svg())
        return
    decision = replace(decision, notes=(*decision.notes, *book.why_not))
    page = Page(decision, catalogue, read, book.start, scores=situation.scores)
    click.echo(page.json(full=explain) if as_json else page.render(top, paper=as_markdown, full=explain))
    if not decision.choice.plans:
        raise _nothing(decision)
    if endpoint:
        click.echo(write(config_path, endpoint, page, Path(model) if read and model else None), err=as_json)
        _record(config_path, endpoint, decision, (need, situation, catalogue))


def _record(config_path: Path, endpoint: str, decision: Decision, inputs: tuple[Need, Situation, Catalogue]) -> None:
    """The trail begins with why: what was asked, what was chosen, and a hash of all that it was decided from."""
    import hashlib

    import msgspec

    from freehold import __version__
    from freehold.cli.daemon import project, report

    def digest(what: object) -> str:
        return hashlib.sha256(msgspec.json.encode(what, order="deterministic")).hexdigest()

    chosen, (need, situation, catalogue) = decision.choice.plans[0], inputs
    detail: dict[str, Any] = {
        "model": chosen.model, "precision": chosen.scheme, "place": chosen.place, "users": chosen.users,
        "context": chosen.context, "need": msgspec.json.encode(need).decode(), "day": situation.today,
        "ways": len(decision.choice.plans), "refused_models": len(decision.choice.refusals),
        "refused_places": len(decision.places_refused), "freehold": __version__,
        "catalogue": digest(catalogue), "inputs": digest((__version__, *inputs)), "answer": digest(decision.choice),
    }  # fmt: skip
    report(project(config_path)[0], "decision.made", endpoint, detail)


def _nothing(decision: Decision) -> FreeholdError:
    """What stands in the way, and the smallest changes that would clear it. Of one model the law speaks first."""
    from freehold.errors import DoesNotFit, Refused

    refusals = decision.choice.refusals
    if len(refusals) == 1 and refusals[0].hint:
        return Refused(f"policy refuses {refusals[0].subject}: {refusals[0].reason}", hint=refusals[0].hint)
    bounds = " and ".join(_FLAGS.get(each.bound, f"--{each.bound.replace('_', '-')}") for each in decision.changes[:2])
    said = f"{bounds} contradict each other" if len(decision.changes) > 1 else bounds and f"{bounds} is too strict"
    if not said and len(refusals) == 1:
        said = refusals[0].reason
    ways = "; or ".join(each.change for each in decision.changes)
    hint = f"one of these is enough: {ways}" if ways else "no single bound is to blame: see the reasons"
    return DoesNotFit(f"nothing meets this need{said and ': '}{said}", hint=hint)


def _need(stated: Need, catalogue: Catalogue, model: str | None, flags: dict[str, Any]) -> tuple[Need, Model | None]:
    """What was said on the command line, over [need]; and the model, where it is files.

    Where nobody said how long a context, one model's own limit is long enough.
    """
    from msgspec.structs import replace

    from freehold.catalogue import match
    from freehold.errors import BadRequest
    from freehold.plan.need import Need

    size, no_cloud_act = flags.pop("size"), flags.pop("no_cloud_act")
    said = {key: value for key, value in flags.items() if value not in (None, (), [])}
    if size:
        said |= _sizes(size)
    if no_cloud_act:
        said["jurisdiction_not"] = (*said.get("jurisdiction_not", ()), "US")
    read = _read(Path(model)) if model and os.path.exists(model) else None  # noqa: PTH110  False for any odd name
    if model and not read and re.match(r"[./~]|.*\.(gguf|safetensors)$", model):
        raise BadRequest(f"there is no {model}", hint="give a GGUF file, a folder with config.json, or a model's name")
    need = replace(stated, **said, **({"model": "" if read else model} if model else {}))
    one = read or (match(catalogue, need.model).model if need.model else None)
    if one and "context" not in said and stated.context == Need().context:
        limit = one.context.extended or one.context.native
        need = replace(need, context=min(need.context, limit))
    return need, read


class _Book(NamedTuple):
    """What was measured here, and why it is not known, where there is a book.

    Files are known by the digest that they are pinned to: others would not be started from there.
    """

    starts: list[Measurement]
    paces: list[Pace]
    digest: str = ""
    why_not: tuple[str, ...] = ()

    def start(self, plan: Deployment) -> Measurement | None:
        """The newest start of a deployment like this one."""
        from freehold.ledger import measured

        return measured.find(self.starts, plan, self.digest)


def _book(config: Config | None, path: Path | None) -> _Book:
    from freehold.cli.verify import subject
    from freehold.errors import FreeholdError, Unknown
    from freehold.ledger import measured, report
    from freehold.ledger.paces import paces

    nothing = _Book([], [])
    if config is None:
        return nothing
    try:
        with report.reading(Path(config.state_dir)) as db:
            digest = (path and report.pin(db, subject(path))) or ""
            if path and not digest:
                return nothing
            return _Book(measured.measurements(db), paces(db), digest)
    except (Unknown, UnicodeEncodeError):
        return nothing  # nothing was started yet; or no book can have a path of such bytes
    except FreeholdError as error:
        return nothing._replace(why_not=(f"what starts took here is not known: {error}",))


def _save(path: Path, text: str) -> None:
    """In place of a file of that name; never through a link that somebody else may have put there."""
    from freehold.errors import BadRequest

    def opened(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)

    try:
        with open(path, "w", encoding="utf-8", opener=opened) as file:
            file.write(text)
    except OSError as error:
        raise BadRequest(f"{path} cannot be written: {error.strerror}", hint="name another file") from None


def _memory(config: Config | None, host: Host) -> Memory | None:
    """How fast this machine's is, by `freehold doctor`; None where it was not asked, or the book is not readable."""
    from freehold.errors import FreeholdError
    from freehold.ledger import measured, report

    if config:
        with suppress(FreeholdError), report.reading(Path(config.state_dir)) as db:
            return measured.memory(db, host)
    return None


def _sizes(text: str) -> dict[str, float]:
    found = re.fullmatch(r"(\d+\.?\d*)(?:\s*-\s*(\d+\.?\d*))?[bB]?", text)
    if not found:
        raise click.BadParameter("write --size 70 or --size 60-80")
    low = float(found[1])
    return (
        {"min_size": low, "max_size": float(found[2])} if found[2] else {"min_size": 0.8 * low, "max_size": 1.2 * low}
    )


def _read(path: Path) -> Model:
    """A model from its files; an architecture that is not known is said to be so."""
    from msgspec.structs import replace

    from freehold.cli.tables import printable
    from freehold.errors import Unknown
    from freehold.weights import describe

    build = describe(path)
    if build.model is None:
        raise Unknown(
            f"{path}: {build.model_note}",
            hint="freehold verify says whether the files are sound; sizes need its layers",
        )
    name = " ".join(printable(build.model.id).split())  # a file may be called anything
    return replace(build.model, id=name, name=name, file_bytes=build.weight_bytes)


def _situation(config: Config | None, catalogue: Catalogue, need: Need, *, here: bool) -> tuple[Need, Situation]:
    """The house's rules and machines. Where no place is asked about, and one user, it is about this machine."""
    from datetime import UTC, datetime

    from msgspec.structs import replace

    from freehold.catalogue.decide import Situation
    from freehold.policy.law import Rules

    rules, hosts = (config.policy, config.hosts) if config else (Rules(), {})
    today = datetime.now(UTC).date().isoformat()
    elsewhere = need.cards or need.kinds or need.residency or need.jurisdiction_not
    elsewhere = elsewhere or need.budget is not None or need.users > 1
    if not here and (elsewhere or hosts):
        return need, Situation(rules=rules, hosts=hosts, today=today)
    from freehold.catalogue import places
    from freehold.fleet.host import probe

    price, currency = (config.machine.hourly_price, config.machine.currency) if config else (0.0, need.currency)
    host = probe()
    found = places.here(catalogue, host, price, need, currency, memory=_memory(config, host))
    if not need.speed and all(place.card is None or place.card.bandwidth_gb_s for place in found):
        need = replace(need, speed=_READABLE)
    country, runs = (config.machine.country, config.machine.operator) if config else ("", "")
    return need, Situation(
        rules=rules, here=tuple(found), country=country, operator=places.operator(catalogue, runs), today=today
    )
