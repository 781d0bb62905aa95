"""Which files of a repository are pulled: weights of one format, and what belongs to them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from msgspec import Struct

from freehold.errors import BadRequest, Refused
from freehold.sources.hub import Listed, Listing
from freehold.weights.files import MAX_FILES, split_of
from freehold.weights.reading import quoted

FORMATS = ("gguf", "safetensors")
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.+=@ ,()\[\]~-]{0,200}"
_NAME = re.compile(rf"{_PART}(/{_PART}){{0,7}}")
_BESIDE = re.compile(  # tokenizer.model.v3 is a genuine name
    r".+\.(json|txt|md|jinja|model|tiktoken)|tokenizer\.model\.v\d+|(licen[cs]e|notice|readme|copying|use_policy)[\w.-]*",
    re.IGNORECASE,
)
_COMPANION = re.compile(r"(mmproj|.*imatrix|mtp-|draft)[^/]*", re.IGNORECASE)  # beside a GGUF model, not one
_INDEX = ".safetensors.index.json"
_LISTED = 40  # choices shown


class Choice(Struct, frozen=True, kw_only=True):
    """What is pulled of a listing."""

    format: str
    files: tuple[Listed, ...]
    left_out: tuple[str, ...]  # names

    @property
    def size_bytes(self) -> int:
        return sum(each.size_bytes or 0 for each in self.files)


def choose(listing: Listing, formats: Sequence[str], include: Sequence[str] = ()) -> Choice:
    """Weights of the one of `formats` that is there, as far as their names match `include`, and what belongs to them.

    Raises Refused for a listing that no honest hub makes or that has no such weights; BadRequest where somebody must
    choose.
    """
    _believe(listing)
    usable = [each for each in listing.files if _NAME.fullmatch(each.name)]
    there = {each: [file for file in usable if file.name.endswith(f".{each}")] for each in formats}
    there = {each: files for each, files in there.items() if files}
    if not there:
        held = ", ".join(each.name for each in listing.files)
        hint = f"it holds {quoted(held, 200)}; [policy] formats and --format say what may be pulled"
        raise Refused(f"{listing.repo} has no weights in {' or '.join(formats)}", hint=hint)
    if len(there) > 1:
        raise BadRequest(f"{listing.repo} has weights in {' and in '.join(there)}", hint="say --format")
    ((file_format, weights),) = there.items()
    weights = _included(listing, weights, include) if include else _usual(weights)
    if file_format == "gguf":
        _require_one(listing, weights)
    home = {"", *(_folder(each.name) for each in weights)}
    other = {_folder(each.name) for each in usable if not _is_beside(each.name)} - home  # another format's, say
    beside = [
        each
        for each in usable
        if _is_beside(each.name) and _folder(each.name) not in other and _indexed(each.name, weights)
    ]
    files = tuple(sorted({*weights, *beside}, key=lambda each: each.name))
    _require_sound(files)
    kept = {each.name for each in files}
    left_out = tuple(sorted(each.name for each in listing.files if each.name not in kept))
    return Choice(format=file_format, files=files, left_out=left_out)


def _believe(listing: Listing) -> None:
    """Git has no such names, commits or repeated files: then it is no hub that answers, or one that lies."""
    if not re.fullmatch(r"[0-9a-f]{40}", listing.commit):
        raise Refused(f"the hub names no commit of {listing.repo}: {quoted(listing.commit)}", hint="[hub] url")
    if len(listing.files) > MAX_FILES:
        raise Refused(f"{listing.repo} has {len(listing.files):,} files, and {MAX_FILES:,} are read", hint="no model")
    seen = set()
    for name in (each.name for each in listing.files):
        if {"", ".", ".."} & set(name.split("/")) or "\\" in name or "\0" in name or name in seen:
            raise Refused(
                f"the hub lists a file that no repository can have: {quoted(name)}",
                hint="do not use this hub or mirror until its owner has explained it",
            )
        seen.add(name)


def _included(listing: Listing, weights: Sequence[Listed], include: Sequence[str]) -> list[Listed]:
    found = [each for each in weights if any(fnmatchcase(each.name, glob) for glob in include)]
    if not found:
        raise BadRequest(f"no weights of {listing.repo} match {' or '.join(include)}", hint=_menu(weights))
    return found


def _usual(weights: Sequence[Listed]) -> list[Listed]:
    """Without projectors and drafts, and without a second copy of the model in its publisher's own layout."""
    names = [PurePosixPath(each.name).name for each in weights]
    twice = any(name.startswith("model") for name in names)
    spare = [twice and name.startswith("consolidated") for name in names]
    return [
        each
        for each, name, is_spare in zip(weights, names, spare, strict=True)
        if not is_spare and not (name.endswith(".gguf") and _COMPANION.fullmatch(name))
    ] or list(weights)


def _require_one(listing: Listing, weights: Sequence[Listed]) -> None:
    """A repository of GGUF files has the same model at many precisions: a folder here has one."""
    if len({split_of(each.name) or (each.name, 1) for each in weights if not _is_companion(each)}) > 1:
        raise BadRequest(f"{listing.repo} has several GGUF models: choose one with --include", hint=_menu(weights))


def _is_companion(file: Listed) -> bool:
    return bool(_COMPANION.fullmatch(PurePosixPath(file.name).name))


def _menu(weights: Iterable[Listed]) -> str:
    sizes: dict[str, int] = {}
    for each in weights:
        split = split_of(each.name)
        name = f"{split[0]}-*-of-{split[1]:05}.gguf" if split else each.name
        sizes[name] = sizes.get(name, 0) + (each.size_bytes or 0)
    lines = [f"--include '{name}'  ({size / 1e9:.1f} GB)" for name, size in list(sizes.items())[:_LISTED]]
    return "\n       ".join([f"there are {len(sizes)}:", *lines])


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _is_beside(name: str) -> bool:
    return bool(_BESIDE.fullmatch(PurePosixPath(name).name))


def _indexed(name: str, weights: Sequence[Listed]) -> bool:
    """Of the indices only those of weights that are pulled: what an index names must be there."""
    stem = name.removesuffix(_INDEX)
    return not name.endswith(".index.json") or (
        stem != name and any(each.name.startswith(stem) and each.name.endswith(".safetensors") for each in weights)
    )


def _require_sound(files: Sequence[Listed]) -> None:
    """Each with a size and a digest, and none that would fall on another's place."""
    places = {each.name.casefold() for each in files}
    above = {str(parent).casefold() for each in files for parent in PurePosixPath(each.name).parents}
    if len(places) < len(files) or places & above:
        raise Refused("the hub lists files that differ only in case, or a file that is also a folder")
    for each in files:
        digest = each.sha256 or each.blob
        sound = re.fullmatch(r"[0-9a-f]{64}" if each.sha256 else r"[0-9a-f]{40}", digest)
        if not sound or each.size_bytes is None or each.size_bytes < 0:
            raise Refused(f"the hub gives no size and digest of {each.name}", hint="a mirror must pass them on")
