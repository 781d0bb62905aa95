"""Whether an adapter was made for the weights it is to be put on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from freehold.types import Finding
from freehold.weights import gguf, safetensors
from freehold.weights.files import File, list_files
from freehold.weights.gate.adapters import fits
from freehold.weights.hashing import hash_files, manifest_digest
from freehold.weights.reading import Malformed

Shapes = dict[str, tuple[int, ...]]
_OTHER = "an adapter for these weights; or the weights that it was made for"
_PARTS = {".lora_a": 0, ".lora_b": 1}  # of a GGUF adapter, and which of its sides is the base matrix's too


def fitting(adapter: Path, base: Path) -> list[Finding]:
    """Why an adapter does not fit the base; both are safetensors, or both GGUF. Raises Unknown when one is missing."""
    files, below = list_files(adapter)[0], list_files(base)[0]
    own, formats = {each.suffix for each in files}, {each.suffix for each in below}
    both = next((suffix for suffix in (".gguf", ".safetensors") if suffix in own & formats), "")
    try:
        if both:
            compare = _misfits if both == ".gguf" else fits
            why = compare(_shapes(files, both), _shapes(below, both))
        else:
            why = [f"the adapter and {base.name} have no weights of one format, and cannot be compared"]
    except (Malformed, OSError) as error:
        why = [str(error)]
    return [Finding(path=adapter.name, rule="adapter-base-differs", why=each, fix=_OTHER) for each in why]


def digest_of(path: Path) -> str:
    """The digest that a verdict of these weights would give."""
    return manifest_digest(hash_files(list_files(path)[0])[0])


def _misfits(adapter: Shapes, base: Shapes) -> list[str]:
    """llama.cpp names an adapter's tensors after the base's; GGUF writes the inner side of a matrix first."""
    why = []
    for name, shape in adapter.items():
        module, dot, part = name.rpartition(".")
        weight, side = base.get(module), _PARTS.get(dot + part)
        if side is None or weight is None:
            why.append(f"{name}: the base has no such tensor")
        elif len(shape) != 2 or len(weight) < 2:
            why.append(f"{name}: of the shape {shape}, and the base has {weight}: no two matrices")
        elif shape[side] != weight[side]:
            why.append(f"{name}: made for {shape[side]:,}, the base has {weight[side]:,}")
    return why


def _shapes(files: Sequence[File], suffix: str) -> Shapes:
    read = gguf.read_header if suffix == ".gguf" else safetensors.read_header
    shapes: Shapes = {}
    for file in files:
        if file.suffix == suffix:
            with file.open() as stream:
                shapes |= {each.name: each.shape for each in read(stream, file.size_bytes).tensors}
    return shapes
