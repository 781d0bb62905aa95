"""`freehold show`: everything that is known of one model, and where it was read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from freehold.catalogue import Match
    from freehold.facts import Attention, Licence, Model


@click.command
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def command(config: Path, model: str, as_json: bool) -> None:
    """Show what is known of a model.

    MODEL is a name, a repository at the hub, or the name of a copy: quantized, fine-tuned or in a folder.
    """
    import msgspec

    from freehold.catalogue import match
    from freehold.cli.known import known
    from freehold.cli.tables import printable

    catalogue, _ = known(config)
    found = match(catalogue, model)
    licence = next(each for each in catalogue.licences if each.id == found.model.licence.id)
    if as_json:
        whole = {"matched": found.how, "model": found.model, "licence": licence, "kv_cache": _kv(found.model)}
        click.echo(msgspec.json.format(msgspec.json.encode(whole), indent=2).decode())
        return
    click.echo(printable("\n".join(_lines(found, licence))))


def _lines(found: Match, licence: Licence) -> list[str]:
    from freehold.cli.models import billions

    model, counts = found.model, found.model.parameters
    lines = [f"{model.name}   {model.repo}" + ("" if found.exact else f"   ({found.how})"), ""]
    home = f" ({model.publisher_country})" if model.publisher_country else ""
    lines += _field("publisher", model.publisher + home)
    lines += _field("released", f"{model.released or 'unknown'}   {model.released_basis}".rstrip())
    lines += _field("architecture", *_architecture(model))
    counted = (
        f"{billions(counts.total)} counted from the dimensions, {billions(counts.active)} of them touched by a token"
        if counts.total
        else "not counted: outside the formulas"
    )
    exact = ", equal to the count to the last one" if counts.exact else ""
    stated = f"{billions(counts.published)} published, {billions(counts.checkpoint)} in the checkpoint{exact}"
    lines += _field("parameters", counted, stated)
    stored = f"{model.checkpoint}{'' if model.checkpoint_confirmed else ', not confirmed'}"
    lines += _field("checkpoint", f"{stored}   {model.checkpoint_note}".rstrip())
    further = (
        f", {model.context.extended:,} by {model.context.extension or 'extension'}" if model.context.extended else ""
    )
    lines += _field("context", f"{model.context.native:,} tokens{further}", *filter(None, [model.context.note]))
    lines += _field("kv cache", *_kv_words(model))
    lines += _licence(model, licence)
    for head, texts in (
        ("notes", model.notes),
        ("unknown", model.unknown),
        ("disagreements", model.disagreements),
        ("sources", [f"{key}: {each}" for key, cited in model.sources.items() for each in cited]),
    ):
        lines += _field(head, *texts) if texts else []
    return lines


def _licence(model: Model, licence: Licence) -> list[str]:
    """Each term in plain words, then its clause and where it was read."""
    told = [f"{licence.name}   commercial use: {licence.commercial_use}", licence.url]
    if not model.licence.read:
        told.append(f"by its tag at the hub ({model.licence.tag or 'none'}): nobody read what comes with the weights")
    lines = _field("licence", *filter(None, told))
    for term in licence.terms:
        limit = f" (above {term.limit:,} {term.unit})".replace(" )", ")") if term.limit else ""
        lines += _field("", f"[{term.kind}] {term.says}{limit}", f"    {term.clause}   ({term.source})")
    return lines + (_field("conditions", *model.licence.conditions) if model.licence.conditions else [])


def _architecture(model: Model) -> list[str]:
    words = [f"{model.architecture}: {model.layers} layers, hidden size {model.hidden_size:,}"]
    words += [_attention(group) for group in model.attention]
    words += [model.attention_note] if model.attention_note else []
    if moe := model.moe:
        shared = f", {moe.shared_experts} shared" if moe.shared_experts else ""
        words.append(
            f"{moe.layers} layers of {moe.experts} experts {moe.intermediate_size:,} wide,"
            f" {moe.experts_per_token} a token{shared}"
        )
    if model.mtp:
        words.append(f"{model.mtp.layers} layer{'s' if model.mtp.layers > 1 else ''} to predict further tokens")
    return words


def _attention(group: Attention) -> str:
    window = f" {group.window:,}" if group.window else ""
    if group.kv_lora_rank:
        shape = f"{group.heads} heads, latent {group.kv_lora_rank} + {group.qk_rope_head_dim}"
    elif group.kind == "gated_deltanet":
        shape = f"{group.value_heads} value heads of {group.value_head_dim}, a state for each sequence"
    elif group.kv_heads:
        shape = f"{group.heads} heads of {group.head_dim}, {group.kv_heads} for keys and values"
    else:
        shape = f"{group.heads} heads of {group.head_dim}, a state for each sequence"
    return f"{group.layers} x {group.kind}{window}: {shape}"


def _kv(model: Model) -> dict[str, int] | None:
    """Bytes in BF16: of a token for good, of one within the windows, and of a sequence."""
    from freehold.plan.kv import kv_bytes_per_token, state_bytes

    if not model.attention:
        return None
    return {
        "bytes_per_token": kv_bytes_per_token(model),
        "windowed_bytes_per_token": kv_bytes_per_token(model, windowed=True),
        "state_bytes_per_sequence": sum(group.layers * state_bytes(group) for group in model.attention),
    }


def _kv_words(model: Model) -> list[str]:
    if (kept := _kv(model)) is None:
        return ["unknown: its attention is outside the formulas"]
    words = [f"{kept['bytes_per_token']:,} bytes a token in BF16"]
    if windowed := kept["windowed_bytes_per_token"]:
        windows = " and ".join(f"{w:,}" for w in sorted({group.window for group in model.attention if group.window}))
        words.append(f"{windowed:,} bytes a token more, for the last {windows} tokens only")
    if state := kept["state_bytes_per_sequence"]:
        words.append(f"{state:,} bytes a sequence, however long")
    return words


def _field(name: str, *texts: str) -> list[str]:
    return [f"{'' if i else name:15}{text}" for i, text in enumerate(texts)]
