"""LoRA adapters: a base that is named, ranks and shapes that agree with each other and with the base.

Format: adapter_config.json and adapter_model.safetensors as PEFT writes them, https://huggingface.co/docs/peft/
developer_guides/checkpoint. Engines serve LoRA; of PEFT's other kinds a person is told, no engine can serve them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from freehold.types import Finding
from freehold.weights.files import File
from freehold.weights.gate.finding import refuse, review
from freehold.weights.gate.patterns import complaint
from freehold.weights.reading import quoted

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

MAX_RANK = 4_096
_BASE = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_REVISION = re.compile(r"[\w-][\w./-]*")
_MODULE = re.compile(r"[\w.*-]{1,256}")
_LORA = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.\w+)??(?P<end>\.weight|\.bias)?"
)
_SAVED = re.compile(r"(?:^|\.)(?:embed_tokens|lm_head|embed_in|embed_out|wte|word_embeddings)\.(?:[\w.]+\.)?weight$")
_LAYER = re.compile(r"\b(?:layers|h|blocks|layer)\.(\d{1,6})\..+")

# PEFT's own kinds whose files hold nothing but tensors; XLORA loads other adapters by path.
_KINDS = set(
    str.split(
        "LORA PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING ADAPTION_PROMPT IA3 LOHA LOKR ADALORA OFT "
        "BOFT POLY LN_TUNING VERA FOURIERFT HRA VBLORA CPT BONE RANDLORA TRAINABLE_TOKENS SHIRA C3A MISS ROAD"
    )
)
_NAMES = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "target_parameters")
_FIXES = {
    "adapter-type": "merge it into its base model, or train a LoRA",
    "adapter-base": "set it to the base's repository as owner/name, as its publisher writes it",
}
_AGAIN = "export the adapter again, or fetch it again from its publisher"

Complaint = tuple[str, str]  # rule, why


def check(file: File, content: Any, shapes: Shapes) -> list[Finding]:
    """Every reason to refuse the adapter that `content` configures and `shapes` (may be empty) are the tensors of."""
    if not isinstance(content, dict):
        return [refuse(file, "adapter-config", "no JSON object", _AGAIN)]
    found: dict[str, str] = {}
    for rule, why in _complaints(content, shapes):
        found.setdefault(rule, why)
    findings = [refuse(file, rule, why, _FIXES.get(rule, _AGAIN)) for rule, why in found.items()]
    if content.get("peft_type") != "LORA" and "adapter-type" not in found:
        why = f"an adapter of type {quoted(str(content['peft_type']))}; engines serve LORA"
        findings.append(review(file, "adapter-type", why, _FIXES["adapter-type"]))
    return findings


def check_gguf(file: File, shapes: Shapes) -> list[Finding]:
    """Every lora_a of a GGUF file has its lora_b of the same rank: llama.cpp multiplies them unasked.

    As there, a is (in, rank) and b is (rank, out); of the embedding a is (rank, in).
    """
    pairs: dict[str, dict[str, Shape]] = defaultdict(dict)
    for name, shape in shapes.items():
        module, _, part = name.rpartition(".")
        if part in {"lora_a", "lora_b"}:
            pairs[module][part] = (*shape, 1, 1)[:2]
    for module, parts in pairs.items():
        if len(parts) < 2:
            why = f"{quoted(module)} has only one of lora_a and lora_b"
            return [refuse(file, "adapter-tensor", why, _AGAIN)]
        one, other = parts["lora_a"], parts["lora_b"]
        if one[0 if module.startswith("token_embd") else 1] != other[0]:
            return [refuse(file, "adapter-shape", f"{quoted(module)} has the shapes {one} and {other}", _AGAIN)]
    return []


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
    depth = max((_layer(module) for module in there), default=-1)
    why, compared = [], 0
    for module, parts in _modules(shapes).items():
        one, other = parts.get("lora_A", ()), parts.get("lora_B", ())
        if len(one) < 2 or len(other) < 2:
            continue
        tail = _tail(module)
        if tail not in there:
            if _layer(tail) > depth:
                why.append(f"{quoted(module)}: the base has {depth + 1} layers")
            continue
        compared += 1
        weight = there[tail].get("weight", ())
        plain = len(weight) == 2 and set(there[tail]) <= {"weight", "bias"} and weight[1] > 1
        if plain and weight not in {(other[0], one[1]), (one[1], other[0])}:  # GPT-2 keeps them turned
            why.append(f"{quoted(module)}: made for {other[0]:,} x {one[1]:,}, the base has {weight}")
    if shapes and not compared and not why:
        why.append("none of the adapter's modules is in the base")
    return why if base else []


def _tail(module: str) -> str:
    """A module's name from its layer on: what stands before differs between the classes that wrap a model."""
    match = _LAYER.search(module)
    return match[0] if match else module.rpartition(".")[2]


def _layer(tail: str) -> int:
    match = _LAYER.match(tail)
    return int(match[1]) if match else -1


def _modules(shapes: Shapes) -> dict[str, dict[str, Shape]]:
    found: dict[str, dict[str, Shape]] = defaultdict(dict)
    for name, shape in shapes.items():
        match = _LORA.fullmatch(name)
        if match and match["end"] != ".bias":
            found[match["module"]][match["part"]] = shape
    return found


def _complaints(content: dict[str, Any], shapes: Shapes) -> Iterator[Complaint]:
    kind = str(content.get("peft_type"))
    if kind not in _KINDS:
        yield "adapter-type", f"an adapter of the unknown type {quoted(kind)}"
    if content.get("layer_replication"):
        yield "adapter-type", "it repeats layers of the base, which engines do not serve"
    if not base_of(content):
        base = quoted(str(content.get("base_model_name_or_path")))
        yield "adapter-base", f"base_model_name_or_path is {base}: not the name of a model"
    revision = str(content.get("revision") or "main")
    if len(revision) > 300 or not _REVISION.fullmatch(revision) or ".." in revision:
        yield "adapter-base", f"the revision {quoted(revision)} is not a branch, tag or commit"
    for key in _NAMES:
        value = content.get(key)
        if isinstance(value, str):
            yield from _pattern(key, value)
        elif value is not None and not (isinstance(value, list) and all(map(_is_module, value))):
            yield "adapter-config", f"{key} is {quoted(str(value))}, neither names of modules nor a pattern"
    if kind == "LORA":
        yield from _numbers(content)
        yield from _tensors(content, shapes)


def _is_module(value: Any) -> bool:
    return isinstance(value, str) and _MODULE.fullmatch(value) is not None


def _pattern(key: str, value: str) -> Iterator[Complaint]:
    if why := complaint(value):
        yield "adapter-config", f"{key} is a pattern that can run for ever: {why}"


def _numbers(content: dict[str, Any]) -> Iterator[Complaint]:
    ranks, alphas = content.get("rank_pattern") or {}, content.get("alpha_pattern") or {}
    if not isinstance(ranks, dict) or not isinstance(alphas, dict):
        yield "adapter-config", "rank_pattern and alpha_pattern map modules to numbers"
        return
    for rank in (content.get("r"), *ranks.values()):
        if type(rank) is not int or not 1 <= rank <= MAX_RANK:
            yield "adapter-rank", f"the rank {quoted(str(rank))}; it lies between 1 and {MAX_RANK:,}"
    for alpha in (content.get("lora_alpha", 8), *alphas.values()):
        if type(alpha) not in {int, float} or not 0 <= alpha <= 10**6:
            yield "adapter-config", f"lora_alpha is {quoted(str(alpha))}; it lies between 0 and a million"
    for key in (*ranks, *alphas):
        yield from _pattern("rank_pattern", key)


def _tensors(content: dict[str, Any], shapes: Shapes) -> Iterator[Complaint]:
    named = content.get("modules_to_save")
    saved = [each for each in named if isinstance(each, str)] if isinstance(named, list) else []
    for name in shapes:
        own = _LORA.fullmatch(name) or _SAVED.search(name) or ".token_adapter." in f".{name}"
        kept = any(f".{each}." in f".{name}" for each in saved)
        if not own and not kept and not (name.endswith(".bias") and content.get("bias") in ("all", "lora_only")):
            yield "adapter-tensor", f"the tensor {quoted(name)} is of no adapter"
    targets = content.get("target_modules")
    exact = set(map(str, targets)) if isinstance(targets, list) and not content.get("target_parameters") else None
    for module, parts in _modules(shapes).items():
        if exact and not _is_target(module, exact):
            yield "adapter-tensor", f"{quoted(module)} is none of the target_modules"
        for first, second in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
            if (first in parts) != (second in parts):
                yield "adapter-tensor", f"{quoted(module)} has only one of {first} and {second}"
            elif first in parts:
                yield from _pair(content, module, parts[first], parts[second])


def _is_target(module: str, targets: set[str]) -> bool:
    """Whether one of `targets`, which PEFT compares with the end of a module's name, is that of `module`."""
    parts = module[-256:].split(".")  # a target is no longer: see _MODULE
    return any(".".join(parts[at:]) in targets for at in range(len(parts)))


def _pair(content: dict[str, Any], module: str, one: Shape, other: Shape) -> Iterator[Complaint]:
    """A is (rank, in), B is (out, rank), of a convolution with its kernel behind; stacked experts multiply the rank."""
    if len(one) < 2 or len(one) != len(other) or 0 in one or 0 in other:
        yield "adapter-shape", f"{quoted(module)} has the shapes {one} and {other}"
        return
    rank = _rank(content, module)
    stacked = bool(content.get("target_parameters")) and rank and one[0] % rank == 0
    if one[0] != other[1] or (rank and one[0] != rank and not stacked):
        why = f"{quoted(module)} has the shapes {one} and {other}, and the configuration says rank {rank}"
        yield "adapter-shape", why


def _rank(content: dict[str, Any], module: str) -> int:
    """As configured, by the longest name that the module ends with; 0 when only a pattern could tell."""
    ranks = content.get("rank_pattern")
    ranks = ranks if isinstance(ranks, dict) else {}
    named = [key for key in ranks if f".{module}".endswith(f".{key.lstrip('^')}")]
    if not named and not all(_MODULE.fullmatch(key) and "*" not in key for key in ranks):
        return 0
    rank = ranks[max(named, key=len)] if named else content.get("r")
    return rank if type(rank) is int and rank > 0 else 0
