"""Which files of a repository are pulled: the weights of one model, and what belongs to them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from freehold.errors import BadRequest, Refused
from freehold.sources.hub import Listed, Listing
from freehold.weights.files import BESIDE, MAX_FILES, split_of
from freehold.weights.reading import quoted

FORMATS = ("gguf", "safetensors")
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.+=@ ,()\[\]~-]{0,200}"
_NAME = re.compile(rf"{_PART}(/{_PART}){{0,7}}")
_BESIDE = re.compile(  # tokenizer.model.v3 is a genuine name
    r".+\.(json|txt|md|jinja|model|tiktoken)|tokenizer\.model\.v\d+|(licen[cs]e|notice|readme|copying|use_policy)[\w.-]*",
    re.IGNORECASE,
)
_OTHER_COPY = re.compile(r"(.*/|consolidated)[^/]*\.safetensors")  # in the publisher's own layout
_SHOWN = 40  # models to choose from


def choose(listing: Listing, formats: Sequence[str] = FORMATS, include: Sequence[str] = ()) -> tuple[Listed, ...]:
    """The weights of the one model that there is in `formats`, or that matches `include`, and what belongs to them.

    A name that is not plain is never chosen. Raises Refused where there are no such weights, or files that would fall
    on each other's place; BadRequest where somebody must choose.
    """
    usable = [each for each in listing.files if _NAME.fullmatch(each.name)]
    there = [each for each in usable if each.name.endswith(tuple(f".{name}" for name in formats))]
    if not there:
        held = quoted(", ".join(each.name for each in listing.files), 200)
        hint = f"it holds {held}; [policy] formats says what may be served"
        raise Refused(f"{listing.repo} has no weights in {' or '.join(formats)}", hint=hint)
    weights = [each for each in there if any(fnmatchcase(each.name, glob) for glob in include)]
    if not include:
        models = [each for each in there if not BESIDE.fullmatch(each.name)]
        weights = [each for each in models if not _OTHER_COPY.fullmatch(each.name)] or models
    if len(_by_model(weights)) != 1:
        menu = [f"--include '{glob}'  ({size / 1e9:.1f} GB)" for glob, size in _by_model(there).items()]
        hint = "\n       ".join([f"there are {len(menu)}:", *menu[:_SHOWN]])
        raise BadRequest(f"choose one model of {listing.repo} with --include", hint=hint)
    files = tuple(sorted({*weights, *_beside(usable, weights)}, key=lambda each: each.name))
    places = {each.name.casefold() for each in files}
    above = {str(parent) for place in places for parent in PurePosixPath(place).parents}
    if len(places) < len(files) or places & above:
        raise Refused(f"{listing.repo} has files that differ only in case, or a file that is also a folder")
    if len(files) > MAX_FILES:
        raise Refused(f"{listing.repo} has {len(files):,} files, and {MAX_FILES:,} are read", hint="no model has")
    return files


def _by_model(weights: Sequence[Listed]) -> dict[str, int]:
    """What to say after --include for each model, and its bytes. Every GGUF file, or split one, is a model."""
    found: dict[str, int] = {}
    for each in weights:
        split = split_of(each.name)
        glob = f"{split[0]}-*-of-{split[1]:05}.gguf" if split else each.name
        if each.name.endswith(".safetensors"):
            glob = "*.safetensors"
        if not BESIDE.fullmatch(each.name):
            found[glob] = found.get(glob, 0) + each.size_bytes
    return found


def _beside(usable: Sequence[Listed], weights: Sequence[Listed]) -> list[Listed]:
    """Configuration, tokenizer, licence; not those in folders of other things (onnx/, original/)."""
    texts = [each for each in usable if _BESIDE.fullmatch(each.name.rpartition("/")[2])]
    others = {_folder(each) for each in {*usable} - {*texts, *weights}} - {"", *map(_folder, weights)}
    return [each for each in texts if _folder(each) not in others and _is_of(each.name, weights)]


def _is_of(name: str, weights: Sequence[Listed]) -> bool:
    """Of the indices only those of weights that are pulled: what an index names must be there."""
    stem = name.removesuffix(".safetensors.index.json")
    return not name.endswith(".index.json") or any(each.name.startswith(stem) for each in weights)


def _folder(file: Listed) -> str:
    return file.name.rpartition("/")[0]
