"""Which model a name means: its own name, or the name of a copy, a fine-tune or a folder that has its dimensions.

A name is cut into words, numbers and sizes; what says nothing of the dimensions is left out. A model is meant where all
of its own pieces stand together in the name and nothing else there speaks of another model: careful rather than
clever, because a wrong model gives wrong memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import lru_cache

from msgspec import Struct

from freehold.errors import Unknown
from freehold.facts import Model

Pieces = tuple[str, ...]

_HUB_FOLDER = re.compile(r"models--[^/]+?--([^/]+)")
_NOISE = re.compile(  # formats and precisions, wherever they stand
    r"(?<![a-z0-9])(?:i?q\d(?:_[0-9k](?:_[msl]|_xl)?)?|w\d+a\d+|(?:int|fp|nvfp|mxfp|mxint|bf|float)\d+|\d+-?bits?|g\d{2,3}|\d+bpw"
    r"|\d\.\d+bpw|\d{2,3}g|awq|gptq|gguf|exl[23]|mlx|bnb|hqq|marlin|qat|autoround|dynamic|static|quantized|unquantized"
    r"|quant|block|e4m3|per|tensor|hf|it|instruct|chat|base|merged|abliterated|uncensored|heretic|unsloth|meta|nvidia|ai"
    r"|weights|vllm|dual|final|safetensors)(?![a-z0-9])"
)
_PIECE = re.compile(r"\d+x\d+(?:\.\d+)?b|[a-z]?\d+(?:\.\d+)*[bmtke]?(?![a-z0-9])|[a-z]+|\d+(?:\.\d+)*")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([bt])|\d+x[\d.]+b|[ae]\d+(?:\.\d+)?b|\d+e|\d{3}m")
_OTHER_THINGS = {  # with one of these it is no longer the same network
    "vl", "vision", "vlm", "llava", "internvl", "pixtral", "paligemma", "vila", "ocr", "omni", "audio", "asr", "tts",
    "embedding", "embed", "e5", "gte", "reranker", "rerank", "rm", "prm", "reward", "classifier", "eagle", "eagle3",
    "medusa", "speculator", "draft", "dspark", "lora", "adapter", "qlora", "reap", "pruned", "minitron", "slim",
    "multimodal", "guard", "linear"
}  # fmt: skip
_VARIANTS = {  # beside the name they make another model of it
    "mini", "nano", "micro", "tiny", "small", "medium", "large", "huge", "flash", "lite", "air", "max", "pro",
    "plus", "turbo", "ultra", "super", "next", "moe", "coder", "code", "math", "n", "v", "h", "sparse"
}  # fmt: skip


class Match(Struct, frozen=True, kw_only=True):
    """A model, and why it is the one that was meant."""

    model: Model
    how: str  # in words
    exact: bool  # named itself, not by its dimensions


def find(models: Sequence[Model], name: str) -> Match:
    """The model of this name, or the one whose dimensions a model of this name has; earlier ones first.

    Raises Unknown with the nearest names.
    """
    whole, last = name.strip().casefold(), _last(name)
    own = [(model, {each.casefold() for each in (model.id, model.repo, model.name) if each}) for model in models]
    for model, names in own:
        if whole in names:
            return Match(model=model, how="its own name", exact=True)
    for model, names in own:
        if last in names:  # of another owner, or of a folder
            return Match(model=model, how=f"called like {model.id}, perhaps another's copy of it", exact=False)
    for model in models:
        if not {whole, last}.isdisjoint(each.casefold() for each in (*model.also, *model.quantized)):
            return Match(model=model, how=f"known to have the dimensions of {model.id}", exact=False)
    asked = pieces(name)
    if found := _inside(models, asked) or _abbreviated(models, asked):
        return Match(model=found, how=f"read as {found.id} under another name: {name}", exact=False)
    raise Unknown(
        f"no model is called {name!r}",
        hint=nearest(_last(name), [model.id for model in models], "freehold models lists those that are known"),
    )


@lru_cache(maxsize=4096)  # each look-up asks for all names of the catalogue
def pieces(name: str) -> Pieces:
    """Words, numbers and sizes of the last part of a name or path that says anything about a model."""
    text = _NOISE.sub(" ", re.sub(r"\.(gguf|safetensors)$", "", _last(name)))
    text = re.sub(r"(?<=\d)_(?=\d)", ".", text)
    return tuple(_plain(piece) for piece in _PIECE.findall(text))


def _last(name: str) -> str:
    """The last part of a path, or the repository a folder of the hub's cache is of."""
    path = name.strip().casefold()
    hub = _HUB_FOLDER.search(path)
    return hub.group(1) if hub else path.rstrip("/").rsplit("/", 1)[-1]


def _plain(piece: str) -> str:
    """v3.1, 3.1 and 31 are written the same; a size stays as it is."""
    if _SIZE.fullmatch(piece):
        return piece
    return re.sub(r"^v(?=\d)", "", piece).replace(".", "")


def _named(model: Model) -> Iterable[Pieces]:
    return {pieces(each) for each in (model.id, model.repo, model.name, *model.also)} - {()}


def _inside(models: Sequence[Model], asked: Pieces) -> Model | None:
    """The model whose own pieces stand together in what was asked; the longest such."""
    found: dict[int, list[Model]] = {}
    for model in models:
        for own in _named(model):
            if len(own) > 1 and any(_fits(model, own, asked, at) for at in range(len(asked) - len(own) + 1)):
                found.setdefault(len(own), []).append(model)
    return _agreed(found[max(found)]) if found else None


def _fits(model: Model, own: Pieces, asked: Pieces, at: int) -> bool:
    end = at + len(own)
    if asked[at:end] != own:
        return False
    others, after = asked[:at] + asked[end:], asked[end : end + 1]
    if _OTHER_THINGS & set(others) or _VARIANTS & {*asked[max(0, at - 1) : at], *after}:
        return False
    if after and re.fullmatch(r"\d{1,3}|distill", after[0]) and not _SIZE.fullmatch(own[-1]):
        return False  # GLM-5-2 is not GLM-5, nor is R1-Distill R1
    return all(_is_its_size(model, piece) for piece in others if _SIZE.fullmatch(piece))


def _is_its_size(model: Model, piece: str) -> bool:
    """Whether a size that is not part of its name is nevertheless its own."""
    plain = re.fullmatch(r"(a?)(\d+(?:\.\d+)?)([bt])", piece)
    if not plain:
        return False
    stated = float(plain.group(2)) * (1e12 if plain.group(3) == "t" else 1e9)
    counts = model.parameters
    of = (counts.active, counts.published_active) if plain.group(1) else (counts.text, counts.published, counts.total)
    return any(each and abs(stated / each - 1) < 0.06 for each in of)


def _abbreviated(models: Sequence[Model], asked: Pieces) -> Model | None:
    """The model of whose name only sizes, dates and plain words are left out."""
    if len(asked) < 2 or not any(re.search(r"\d", piece) for piece in asked):
        return None
    found = []
    for model in models:
        for own in _named(model):
            missing = set(own) - set(asked)
            tells_apart = missing & (_OTHER_THINGS | _VARIANTS) or any(re.fullmatch(r"\d{1,3}", e) for e in missing)
            if own[0] == asked[0] and set(asked) <= set(own) and not tells_apart:
                found.append(model)
    return _agreed(found)


def _agreed(found: Sequence[Model]) -> Model | None:
    """The first of them, if all have the same dimensions."""
    shapes = {
        (m.layers, m.hidden_size, m.dense_layers and m.intermediate_size, m.vocab_size, m.attention, m.moe)
        for m in found
    }
    return found[0] if len(shapes) == 1 else None


def nearest(name: str, names: Iterable[str], otherwise: str = "") -> str:
    """A hint: the names nearest to one that is unknown, or `otherwise`, or all of them."""
    by_lower = {each.casefold(): each for each in names}
    near = [by_lower[each] for each in get_close_matches(name.casefold(), by_lower, n=3, cutoff=0.4)]
    all_of_them = otherwise or f"one of: {', '.join(by_lower.values())}"
    return f"the nearest names: {', '.join(near)}" if near else all_of_them
