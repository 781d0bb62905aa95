"""An adapter on its way to an engine: copied, examined against its base, and put as the engine reads it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from freehold.errors import DoesNotFit, Refused, Unknown
from freehold.plan.units import size
from freehold.types import Finding, Verdict
from freehold.weights import describe, gguf, verify
from freehold.weights.files import list_files
from freehold.weights.finite import not_finite
from freehold.weights.lora_gguf import CONFIG, convert
from freehold.weights.reading import MAX_JSON_BYTES, parse_json, quoted
from freehold.weights.tokens import words

MAX_BYTES = 16 << 30  # of what is copied: no LoRA is larger, but a folder named by mistake is
_AGAIN = "train it on these weights, or serve it on those that it was trained on"


class Accepted(Struct, frozen=True, kw_only=True):
    """What the gate let through."""

    served: Path  # a folder as PEFT writes it, or a GGUF file
    digest: str  # of that
    rank: int
    source: Verdict  # on what was given
    converted: bool


def accept(path: Path, base: Path, folder: Path, formats: Sequence[str]) -> Accepted:
    """Take a copy into `folder`, which nobody else writes to, and say what of it may be served on the weights `base`.

    `formats`: of weights that the engine reads. Raises Refused with the findings, Unknown when there is nothing.
    """
    given = _copy(path, folder / "given")
    is_gguf = any(each.suffix == ".gguf" for each in list_files(given)[0])
    if is_gguf and "gguf" not in formats:
        raise Refused("the adapter is in GGUF, which this engine does not read", hint="give it as PEFT saved it")
    converts = "gguf" in formats and not is_gguf
    source = _verified(given, None if converts else base)
    rank = _rank_of_gguf(given, base) if is_gguf else _rank_of_peft(given)
    _check_tokenizer(given, base)
    if odd := not_finite(list_files(given)[0]):
        what = f"{len(odd)} tensors, {odd[0]} the first, have values that are no finite numbers"
        raise Refused(f"the adapter was refused: {what}", hint="its training went wrong: take an earlier checkpoint")
    if not converts:
        return Accepted(served=_only_file(given) if is_gguf else given, digest=source.digest, rank=rank, source=source,
                        converted=False)  # fmt: skip
    served = folder / "adapter.gguf"
    convert(given, base, served)
    made = _verified(served, base)
    return Accepted(served=served, digest=made.digest, rank=rank, source=source, converted=True)


def _verified(path: Path, base: Path | None) -> Verdict:
    verdict = verify(path, base=base)
    _refuse(verdict.findings)
    return verdict


def _refuse(findings: Iterable[Finding]) -> None:
    if refusing := [each for each in findings if not each.review]:
        why = "; ".join(f"{each.path}: {each.why} [{each.rule}]" for each in refusing)
        raise Refused(f"the adapter was refused: {why}", hint="; ".join(dict.fromkeys(each.fix for each in refusing)))


def _copy(path: Path, folder: Path) -> Path:
    """Of regular files only, as they are now."""
    files, findings = list_files(path)
    _refuse(findings)
    if not files:
        raise Unknown(f"{path} is empty", hint="name the folder that PEFT's save_pretrained made, or a GGUF adapter")
    total = sum(file.size_bytes for file in files)
    if total > min(MAX_BYTES, shutil.disk_usage(folder.parent).free // 3):  # twice as much when it is converted
        raise DoesNotFit(
            f"{path} has {size(total)}; {size(MAX_BYTES)} are taken, where the disk has three times as much",
            hint="name the folder of the adapter alone; or make room where state_dir is",
        )
    for file in files:
        target = folder / (path.name if path.is_file() else file.name)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with file.open() as stream, target.open("wb") as copy:
                shutil.copyfileobj(stream, copy, 1 << 20)
        except OSError as error:
            why = f"{file.name} cannot be read: {error.strerror or error}"
            raise Refused(why, hint="check it, and try again") from None
    return folder


def _only_file(folder: Path) -> Path:
    models = [each for each in list_files(folder)[0] if each.suffix == ".gguf"]
    if len(models) != 1:
        raise Unknown(f"there are {len(models)} GGUF files", hint="name one adapter")
    return folder / models[0].name


def _rank_of_peft(folder: Path) -> int:
    """The largest of its modules; 0: it does not say. The gate has read the file by now."""
    try:
        with (folder / CONFIG).open("rb") as file:
            config = parse_json(file.read(MAX_JSON_BYTES))
    except FileNotFoundError:
        raise Refused(f"the adapter has no {CONFIG}", hint="name the folder that PEFT's save_pretrained made") from None
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    return max((each for each in ranks if isinstance(each, int)), default=0)


def _rank_of_gguf(folder: Path, base: Path) -> int:
    """Raises Refused when it is of another family than its base: llama.cpp would not start with it."""
    path = _only_file(folder)
    with path.open("rb") as stream:
        header = gguf.read_header(stream, path.stat().st_size)
    family, own = describe(base).architecture, header.metadata.get("general.architecture")
    if own != family:
        raise Refused(f"the adapter is for the family {quoted(str(own))}, the base is {family}", hint=_AGAIN)
    return max((each.shape[0] for each in header.tensors if each.name.endswith(".lora_b") and each.shape), default=0)


def _check_tokenizer(adapter: Path, base: Path) -> None:
    """One that came with the adapter numbers its words as the base does: else it was trained on other ones."""
    own = words(adapter)
    if not own:
        return
    theirs = words(base)
    if theirs:
        differ = sum(theirs.get(word, number) != number for word, number in own.items())
        if differ:
            raise Refused(f"the adapter's tokenizer numbers {differ:,} words otherwise than the base's", hint=_AGAIN)
    vocabulary = describe(base).vocabulary
    if max(own.values()) >= vocabulary:
        raise Refused(
            f"the adapter's tokenizer has {max(own.values()) + 1:,} words, the base {vocabulary:,}", hint=_AGAIN
        )
