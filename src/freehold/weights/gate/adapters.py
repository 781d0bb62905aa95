"""LoRA adapters: a base that is named, ranks and shapes that agree with each other and with the base.

Format: adapter_config.json and adapter_model.safetensors as PEFT writes them, https://huggingface.co/docs/peft/
developer_guides/checkpoint. Engines serve LoRA; other kinds are refused.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from freehold.types import Finding
from freehold.weights.files import File
from freehold.weights.gate.finding import refuse
from freehold.weights.gate.patterns import complaint
from freehold.weights.reading import quoted

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

MAX_RANK = 4_096
MAX_NAMES = 10_000
_BASE = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_REVISION = re.compile(r"[\w-][\w./-]*")
_MODULE = re.compile(r"[\w.*-]{1,256}")
_LORA = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.\w+)??(?P<end>\.weight|\.bias)?"
)
_SAVED = re.compile(r"(?:^|\.)(?:embed_tokens|lm_head|embed_in|embed_out|wte|word_embeddings)\.(?:[\w.]+\.)?weight$")
_LAYER = re.compile(r"(.*?)((?:layers|h|blocks|layer)\.)(\d+)(\..*)")

Complaint = tuple[str, str, str]  # rule, why, fix
_AGAIN = "export the adapter again, or fetch it again from its publisher"


def check(file: File, content: Any, shapes: Shapes) -> list[Finding]:
    """Every reason to refuse the adapter that `content` configures and `shapes` (may be empty) are the tensors of."""
    if not isinstance(content, dict):
        return [refuse(file, "adapter-config", "no JSON object", _AGAIN)]
    found: dict[str, tuple[str, str]] = {}
    for rule, why, fix in _complaints(content, shapes):
        found.setdefault(rule, (why, fix))
    return [refuse(file, rule, why, fix) for rule, (why, fix) in found.items()]


def base_of(content: Any) -> str:
    """The model an adapter was made for, as owner/name or a plain name; "" when it does not say."""
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    return base if isinstance(base, str) and len(base) < 300 and _BASE.fullmatch(base) and ".." not in base else ""


def fits(shapes: Shapes, base: Shapes) -> list[str]:
    """What of an adapter's tensors does not fit a base model's; empty when all that can be compared does.

    Modules that the base keeps fused or quantized cannot be compared. Nothing found of either is a misfit too.
    """
    there: dict[str, dict[str, Shape]] = defaultdict(dict)
    for name, shape in base.items():
        module, _, end = name.rpartition(".")
        there[_tail(module)][end] = shape
    layers = {_layer(module) for module in there}
    depth = max((number for _, number in layers), default=-1)
    why, compared = [], 0
    for module, (inner, outer) in _sizes(shapes).items():
        tail = _tail(module)
        parts = there.get(tail)
        if parts is None:
            if _layer(tail)[1] > depth:
                why.append(f"{quoted(module)}: the base has {depth + 1} layers")
            continue
        compared += 1
        weight = parts.get("weight")
        plain = weight and len(weight) == 2 and set(parts) <= {"weight", "bias"} and weight[1] > 1
        if plain and weight not in {(outer, inner), (inner, outer)}:  # GPT-2 keeps them turned
            why.append(f"{quoted(module)}: made for {outer:,} x {inner:,}, the base has {weight}")
    if shapes and not compared and not why:
        why.append("none of the adapter's modules is in the base")
    return why if base else []


def _tail(module: str) -> str:
    """A module's name from its layer on: what stands before differs between the classes that wrap a model."""
    match = _LAYER.fullmatch(module)
    return match[2] + match[3] + match[4] if match else module.rpartition(".")[2]


def _layer(module: str) -> tuple[str, int]:
    match = _LAYER.fullmatch(module)
    return (match[4], int(match[3])) if match else ("", -1)


def _sizes(shapes: Shapes) -> dict[str, tuple[int, int]]:
    """For each module with both halves: what goes in, and what comes out."""
    sizes = {}
    for module, parts in _modules(shapes).items():
        one, other = parts.get("lora_A", ()), parts.get("lora_B", ())
        if len(one) > 1 and len(other) > 1:
            sizes[module] = (one[1], other[0])
    return sizes


def _modules(shapes: Shapes) -> dict[str, dict[str, Shape]]:
    found: dict[str, dict[str, Shape]] = defaultdict(dict)
    for name, shape in shapes.items():
        match = _LORA.fullmatch(name)
        if match and match["end"] != ".bias":
            found[match["module"]][match["part"]] = shape
    return found


def _complaints(content: dict[str, Any], shapes: Shapes) -> Iterator[Complaint]:
    if content.get("peft_type") != "LORA":
        why = f"an adapter of type {quoted(str(content.get('peft_type')))}; engines serve LORA"
        yield "adapter-type", why, "merge it into its base model, or train a LoRA"
        return
    if content.get("layer_replication"):
        yield "adapter-type", "it repeats layers of the base, which engines do not serve", "merge it into its base"
    base, revision = content.get("base_model_name_or_path"), content.get("revision")
    if not base_of(content):
        why = f"base_model_name_or_path is {quoted(str(base))}: not the name of a model"
        yield "adapter-base", why, "set it to the base's repository as owner/name, as its publisher writes it"
    if revision is not None and (
        len(str(revision)) > 300 or not _REVISION.fullmatch(str(revision)) or ".." in str(revision)
    ):
        yield "adapter-base", f"the revision {quoted(str(revision))} is not a branch, tag or commit", _AGAIN
    yield from _numbers(content)
    for key in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "target_parameters"):
        yield from _names(key, content.get(key))
    yield from _tensors(content, shapes)


def _numbers(content: dict[str, Any]) -> Iterator[Complaint]:
    patterns = {key: content.get(key) or {} for key in ("rank_pattern", "alpha_pattern")}
    if not all(isinstance(each, dict) and len(each) <= MAX_NAMES for each in patterns.values()):
        yield "adapter-config", "rank_pattern and alpha_pattern map modules to numbers", _AGAIN
        return
    for rank in (content.get("r"), *patterns["rank_pattern"].values()):
        if type(rank) is not int or not 1 <= rank <= MAX_RANK:
            yield "adapter-rank", f"the rank {quoted(str(rank))}; it lies between 1 and {MAX_RANK:,}", _AGAIN
    for alpha in (content.get("lora_alpha", 8), *patterns["alpha_pattern"].values()):
        if type(alpha) not in {int, float} or not 0 <= alpha <= 10**6:
            yield "adapter-config", f"lora_alpha is {quoted(str(alpha))}; it lies between 0 and a million", _AGAIN
    for key in (key for each in patterns.values() for key in each):
        yield from _pattern("rank_pattern", key)


def _names(key: str, value: Any) -> Iterator[Complaint]:
    if isinstance(value, str):
        yield from _pattern(key, value)
    elif isinstance(value, list):
        wrong = [each for each in value if not isinstance(each, str) or not _MODULE.fullmatch(each)]
        if wrong or len(value) > MAX_NAMES:
            yield "adapter-config", f"{key} names {quoted(str(wrong[:1]))}, which is no module", _AGAIN
    elif value is not None:
        yield "adapter-config", f"{key} is neither a list of names nor a pattern", _AGAIN


def _pattern(key: str, value: str) -> Iterator[Complaint]:
    if why := complaint(value):
        yield "adapter-config", f"{key} is a pattern that can run for ever: {why}", "list the modules by their names"


def _tensors(content: dict[str, Any], shapes: Shapes) -> Iterator[Complaint]:
    named = content.get("modules_to_save")
    saved = [each for each in named if isinstance(each, str)] if isinstance(named, list) else []
    for name in shapes:
        own = _LORA.fullmatch(name) or _SAVED.search(name) or ".token_adapter." in f".{name}"
        kept = any(f".{each}." in f".{name}" for each in saved)
        if not own and not kept and not (name.endswith(".bias") and content.get("bias") in {"all", "lora_only"}):
            yield "adapter-tensor", f"the tensor {quoted(name)} is of no adapter", _AGAIN
    for module, parts in _modules(shapes).items():
        for first, second in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
            if (first in parts) != (second in parts):
                yield "adapter-tensor", f"{quoted(module)} has only one of {first} and {second}", _AGAIN
            elif first in parts:
                yield from _pair(content, module, parts[first], parts[second])


def _pair(content: dict[str, Any], module: str, one: Shape, other: Shape) -> Iterator[Complaint]:
    """A is (rank, in), B is (out, rank), of a convolution with its kernel behind; stacked experts multiply the rank."""
    if len(one) < 2 or len(one) != len(other) or 0 in one or 0 in other:
        yield "adapter-shape", f"{quoted(module)} has the shapes {one} and {other}", _AGAIN
        return
    rank = _rank(content, module)
    stacked = bool(content.get("target_parameters")) and rank and one[0] % rank == 0
    if one[0] != other[1] or (rank and one[0] != rank and not stacked):
        why = f"{quoted(module)} has the shapes {one} and {other}, and the configuration says rank {rank}"
        yield "adapter-shape", why, _AGAIN


def _rank(content: dict[str, Any], module: str) -> int:
    """As configured, by the longest name that the module ends with; 0 when only a pattern could tell."""
    ranks = content.get("rank_pattern") or {}
    if isinstance(ranks, dict) and ranks:
        plain = [key for key in ranks if f".{module}".endswith(f".{key.lstrip('^')}")]
        if plain:
            return ranks[max(plain, key=len)] if type(ranks[max(plain, key=len)]) is int else 0
        if not all(_MODULE.fullmatch(key) and "*" not in key for key in ranks):
            return 0
    rank = content.get("r")
    return rank if type(rank) is int and rank > 0 else 0
