"""`freehold quantization`: what models lose in fewer bits, where somebody measured it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from freehold.facts import Pair
    from freehold.plan.quantization import Loss

_HEADS = ("LEAST", "MEDIAN", "MOST", "PAIRS", "MEASURED BY")
_RULE = (
    "In percent of the model's own scores in 16 bits, recomputed from pairs that one party measured in one harness.\n"
    "! more than half of them by whoever made the quantized files."
)


@click.command
@click.argument("model", required=False)
@click.option("--scheme", metavar="SCHEME", help="One precision: int4-awq, fp8, gguf-q4_k_m ...")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--sources", is_flag=True, help="Where each pair was read.")
@click.pass_obj
def command(config: Path, model: str | None, scheme: str | None, as_json: bool, sources: bool) -> None:
    """Show what quantization loses, measured: of all precisions, of one, or of MODEL.

    Nothing is carried over from another model or another precision: without a matched pair it is not measured.
    """
    import msgspec

    from freehold.catalogue import pairs
    from freehold.catalogue.names import nearest
    from freehold.cli.tables import printable
    from freehold.errors import Unknown
    from freehold.plan import quantization
    from freehold.plan.weights import SCHEMES

    if scheme is not None and scheme not in SCHEMES:
        raise Unknown(f"no precision is called {scheme!r}", hint=nearest(scheme, SCHEMES))
    everything = pairs()
    name, sizes = _known(config, everything, model)
    said = ""
    if name and scheme:
        said = quantization.answer(everything, name, scheme, sizes)
        found = tuple(filter(None, [quantization.loss(everything, name, scheme)]))
    elif name:
        found = quantization.of_model(everything, name)
    elif scheme:
        found = quantization.of_scheme(everything, scheme, sizes)
    else:
        found = tuple(filter(None, (quantization.pooled(everything, each) for each in SCHEMES)))
    rows = [_row(p) for p in everything if (not name or p.model == name) and (not scheme or p.scheme == scheme)]
    if as_json:
        whole = {"answer": said, "losses": found, "pairs": rows}
        click.echo(msgspec.json.format(msgspec.json.encode(whole)).decode())
        return
    if said or not found:
        lines = [f"{' in '.join(filter(None, (name, scheme)))}: {said or 'not measured'}"]
    else:
        lines = [_losses(found, sizes, by_model=bool(scheme)), "", _RULE]
    if rows and (name or sources):
        lines += ["", _pairs(rows, sources=sources)]
    click.echo(printable("\n".join(lines)))


def _known(config: Path, pairs: Sequence[Pair], name: str | None) -> tuple[str, dict[str, int]]:
    """The name under which a model is measured, and the parameters of all.

    A copy or a fine-tune keeps its own name: what its model lost says nothing of it. Raises Unknown.
    """
    from freehold.catalogue import match
    from freehold.cli.known import known
    from freehold.cli.models import total

    catalogue, _ = known(config)
    sizes = {each.id: size for each in (*catalogue.known, *catalogue.models) if (size := total(each))}
    if not name:
        return "", sizes
    if measured := next((pair.model for pair in pairs if pair.model.casefold() == name.casefold()), ""):
        return measured, sizes
    found = match(catalogue, name)
    if not found.exact:
        sizes[name] = sizes.get(found.model.id, 0)
    return (found.model.id if found.exact else name), sizes


def _losses(found: Sequence[Loss], sizes: dict[str, int], *, by_model: bool) -> str:
    from freehold.cli.models import billions
    from freehold.cli.tables import table

    rows = []
    for each in found:
        first = (each.model, billions(sizes.get(each.model))) if by_model else (each.scheme,)
        made = " !" if 2 * each.by_maker > each.pairs else ""
        figures = (f"{each.least:.1f}", f"{each.median:.1f}", f"{each.most:.1f}", f"{each.pairs}")
        rows.append((*first, *figures, ", ".join(each.measured_by) + made))
    return table((*(("MODEL", "TOTAL") if by_model else ("PRECISION",)), *_HEADS), rows)


def _row(pair: Pair) -> dict[str, Any]:
    """A pair with the share that is kept, or why it is no share."""
    import msgspec

    from freehold.plan.quantization import contradicts, recovery_pct, why_not

    why = why_not(pair)
    kept = None if why else recovery_pct(pair)
    return msgspec.structs.asdict(pair) | {"recovery_pct": kept, "why_not": why, "contradicts": contradicts(pair)}


def _pairs(rows: Sequence[dict[str, Any]], *, sources: bool) -> str:
    from freehold.cli.tables import table

    def figure(value: float | None, form: str = "g") -> str:
        return "-" if value is None else f"{value:{form}}"

    lines = []
    for each in rows:
        wrong = f"printed as {each['printed']:g}, which its own row contradicts" if each["contradicts"] else ""
        line = [each["model"], each["label"], each["benchmark"], figure(each["base_value"]), figure(each["value"])]
        line += [figure(each["recovery_pct"], ".1f"), "; ".join(filter(None, [each["why_not"] or wrong, each["note"]]))]
        lines.append([*line, f"{each['measured_by']}, {each['date']}: {each['source']}"] if sources else line)
    heads = ["MODEL", "AS NAMED", "BENCHMARK", "BASE", "VALUE", "KEEPS %", "REMARK", *(["SOURCE"] if sources else [])]
    return table(heads, lines)
