"""Configurations: keys that make a loader import code, and values that lead out of the folder or out of reason.

What loads what was read in transformers, PEFT, sentence-transformers, Keras, Hydra and diffusers; each rule names it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from freehold.types import Finding
from freehold.weights.files import File
from freehold.weights.gate.finding import refuse, review
from freehold.weights.reading import quoted

MAX_TEXT = 200_000  # characters

# Keys whose value names the object that a reader makes: Hydra's and jsonpickle's, in YAML and JSON lines too.
OBJECT_KEYS = {"_target_", "py/object", "py/reduce", "py/function", "py/type"}
# Keys that make a loader import or fetch code, whatever their value, unless it says no.
CODE_KEYS = {
    *OBJECT_KEYS,
    "auto_map", "trust_remote_code", "custom_generate", "custom_pipelines", "custom_objects", "custom_code",
    "custom_modeling", "remote_code", "_partial_", "_args_", "external_data", "megatron_config", "use_kernels",
    "hub_kernels", "kernel_mapping", "module_path",
    "class_path", "import_path", "entry_point", "entrypoint", "post_init_script", "init_script",
}  # fmt: skip
_DUNDER = re.compile(r"__(?!(?:version|metadata|comment|doc|name|note|author|date|float)__)\w+__")  # float: Infinity
_NOTHING = (None, False, "", [], {}, "false", "False")

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
# A key with one of these values at most. PEFT imports parent_library, transformers fetches a kernel named owner/name,
# takes a dtype from torch by its name and code from owner/name--module.Class; sentence-transformers imports by name.
_PLAIN = {
    "parent_library": re.compile(r"transformers\.models\.\w+\.modeling_\w+"),
    "base_model_class": _IDENTIFIER,
    "megatron_core": re.compile(r"megatron\.core"),
    "torch_dtype": re.compile(r"(?:torch\.)?\w+"),
    "dtype": re.compile(r"(?:torch\.)?\w+"),
    "quant_method": re.compile(r"[\w-]*"),
    "model_type": re.compile(r"[\w.-]*"),
    **dict.fromkeys(
        ("architectures", "tokenizer_class", "processor_class", "image_processor_type", "feature_extractor_type",
         "video_processor_type", "video_processor_class", "image_processor_class", "feature_extractor_class",
         "slow_tokenizer_class", "fast_tokenizer_class", "tokenizer_type", "audio_processor_class"),
        _IDENTIFIER,
    ),
    **dict.fromkeys(
        ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation",
         "_experts_implementation", "_experts_implementation_internal"),
        re.compile(r"(?:paged\|)?(?:eager|sdpa|sdpa_paged|eager_paged|flex_attention|flash_attention_[234]|grouped_mm"
                   r"|batched_mm|auto)|flash_attn|flash_attention"),
    ),
    **dict.fromkeys(
        ("activation_fn", "activation_function", "sbert_ce_default_activation_function", "similarity_fn_name"),
        re.compile(r"torch\.nn(?:\.modules\.\w+)?\.\w+|[\w-]+"),
    ),
}  # fmt: skip
_KERAS_CODE = {"Lambda", "__lambda__", "function", "PyDataset", "TFSMLayer"}
# What loads a part of the model, by the file that says so: sentence-transformers, diffusers (its pipelines by name).
_MODULES = {
    "modules.json": re.compile(r"(?:sentence_transformers|pylate)\.[\w.]+"),
    "model_index.json": re.compile(
        r"(?:diffusers|transformers)(?:\.\w+)*|(?:stable_(?:diffusion|cascade)|latent_diffusion|audioldm2|kandinsky|flux"
        r"|deepfloyd_if|paint_by_example|unidiffuser|wuerstchen)(?:_\w+)?"
    ),
}  # fmt: skip
# Keys whose value a loader opens or fetches: neither paths nor repositories of others.
_FETCHED = {
    "backbone", "repo_id", "code_repo", "tokenizer_repo", "pretrained_model_name_or_path",
    "speculative_model", "draft_model", "assistant_model", "tokenizer_name_or_path", "processor_name_or_path",
    "tokenizer_name", "kernel", "kernel_repo", "task_repos",
    *(f"{prefix}{part}_tower" for prefix in ("", "mm_") for part in ("vision", "image", "video", "audio", "speech")),
    *(f"{part}_model_id" for part in ("text", "vision", "image", "video", "audio", "speech")),
}  # fmt: skip
# Notes of whoever made the model: where it lay. No loader follows them.
_NOTED_PATHS = {"_name_or_path", "name_or_path", "base_model_name_or_path", "special_tokens_map_file"}
LOGS = re.compile(r"trainer_state\.json|\w+_results\.json")
_TRAINING = re.compile(
    rf"{LOGS.pattern}|(?:training_args|(?:train|training|finetune)_config|recipe|dataset_info)\.json"
)
_NOTED_URLS = {
    "uri", "license_link", "license_url", "license", "homepage", "$schema", "documentation", "citation", "paper",
    "model_card", "source", "dataset", "datasets", "datasets_used", "demo", "website", "base_model", "quantizer",
}  # fmt: skip
_SKIPPED = {"chat_template", "added_tokens_decoder", "weight_map"}  # others check them

_URL = re.compile(
    r"(?i)(?:\b[a-z][a-z0-9+.-]{1,15}://|^\s*(?:data|javascript|mailto|file|https?):\S|^git@|^\s*//[\w-]+\.)"
)
_WEB = re.compile(r"https?://[^\s\\@]+", re.IGNORECASE)
_PATH = re.compile(r"\s*(?:/[^/\s]+/|/(?:etc|root|home|usr|tmp|proc|dev|var|mnt|opt|data|sys|bin)\b|~[\w.-]*[/\\]"
                   r"|[A-Za-z]:[\\/]|\\\\\w|\$\{?\w+\}?[/\\]|%\w+%\\)")  # fmt: skip
_UPWARDS = re.compile(r"(?i)(?:^|[/\\]|%2f|%5c)(?:\.|%2e){2}(?:[/\\]|%2f|%5c|$)")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w.-]+)?")
CODE = re.compile(
    r"__import__|\b(?:os\.(?:system|popen|exec\w*|spawn\w*)|subprocess\.\w+|importlib\.\w+|pickle\.loads?|torch\.load"
    r"|builtins\.\w+|marshal\.loads)\b|\b(?:eval|exec)\s*\(|!!python/|^\s*lambda\b[^\n]*:|\bpowershell\s+-"
    r"|\b(?:curl|wget)\s+\S*(?:https?:|-)|/bin/(?:ba)?sh\b|\$\(\w+"
)

_ROOMY = re.compile(r"(?:^|_)max_(?:len|length|position)|model_max_length|max_len")  # transformers writes 10^30 there
_LIMITS = {
    "vocab_size": 10**7, "hidden_size": 10**6, "num_hidden_layers": 10**4, "num_attention_heads": 10**5,
    "num_key_value_heads": 10**5, "intermediate_size": 10**7, "head_dim": 10**5, "max_position_embeddings": 10**9,
    "num_experts": 10**5, "num_local_experts": 10**5, "n_layer": 10**4, "n_embd": 10**6, "n_head": 10**5, "bits": 64,
    "num_beams": 10**4, "num_return_sequences": 10**4, "height": 10**5, "width": 10**5, "shortest_edge": 10**9,
    "longest_edge": 10**9, "image_size": 10**5,
}  # fmt: skip
_OPTIONAL = {  # 0: there are none
    "head_dim", "num_experts", "num_local_experts", "intermediate_size", "bits", "height", "width", "shortest_edge",
    "longest_edge", "image_size",
}  # fmt: skip
_TOKEN_ID = re.compile(r".+_token_ids?|(?:begin_)?suppress_tokens|bad_words_ids")

_NO_CODE = "use a build that needs no remote code, or remove the key once you know that it is not needed"
_INSIDE = "name a file of this folder, or remove the key"
_MEND = "take the file that the model's publisher ships"


def check(file: File, content: Any) -> list[Finding]:
    """Every reason to refuse a parsed configuration, or to have a person look."""
    own = PurePosixPath(file.name).name.lower()
    found: dict[tuple[str, str], Finding] = {}
    for key, value, owner in _pairs(content):
        findings = [*_code(file, own, key, value, owner)]
        if isinstance(value, str):
            findings += _text(file, own, key, value)
        elif type(value) in {int, float}:
            findings += _number(file, key, value, owner)
        for finding in findings:
            found.setdefault((finding.rule, key), finding)
    return list(found.values())


def _pairs(content: Any) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Every key with its value and the object it is in, at any depth; each item of a list under the list's key."""
    waiting: list[tuple[str, Any, dict[str, Any]]] = [("", content, {})]
    while waiting:
        key, value, owner = waiting.pop()
        if key in _SKIPPED:
            continue
        if key:
            yield key, value, owner
        if isinstance(value, dict):
            waiting.extend((inner, each, value) for inner, each in value.items())
        elif isinstance(value, list):
            waiting.extend((key, each, owner) for each in value if isinstance(each, str | dict | list | int | float))


def _code(file: File, own: str, key: str, value: Any, owner: dict[str, Any]) -> Iterator[Finding]:
    if value in _NOTHING:
        return
    if key in CODE_KEYS or _DUNDER.fullmatch(key):
        yield refuse(file, "remote-code", f"the key {quoted(key)} makes loaders run or fetch code", _NO_CODE)
    plain = _PLAIN.get(key)
    values = value.values() if isinstance(value, dict) and key.endswith("implementation") else [value]
    if plain and any(isinstance(each, str) and not plain.fullmatch(each[:1000]) for each in values):
        why = f"{quoted(key)} is {quoted(str(value))}: a loader would import or fetch what it names"
        yield refuse(file, "foreign-class", why, _NO_CODE)
    module = value[0] if isinstance(value, list) and len(value) == 2 else value if key == "type" else None
    if own in _MODULES and isinstance(module, str) and not _MODULES[own].fullmatch(module):
        why = f"the module {quoted(module)} is not one of the loader's own"
        yield refuse(file, "foreign-class", why, _NO_CODE)
    if key == "class_name" and "config" in owner:  # as Keras writes an object
        module = str(owner.get("module") or "keras")
        if str(value) in _KERAS_CODE or module.partition(".")[0] != "keras":
            why = f"Keras would make a {quoted(str(value))} of {quoted(module)}, which can run code"
            yield refuse(file, "foreign-class", why, _NO_CODE)


def _text(file: File, own: str, key: str, value: str) -> Iterator[Finding]:
    if len(value) > MAX_TEXT:
        why = f"{quoted(key)} has {len(value):,} characters; at most {MAX_TEXT:,} are read"
        yield refuse(file, "long-value", why, _MEND)
        return
    if CODE.search(value):
        yield refuse(file, "code-in-value", f"{quoted(key)} holds code: {quoted(value)}", _MEND)
    if _TRAINING.fullmatch(own):
        return
    shown = f"{quoted(key)} is {quoted(value)}"
    address = _URL.search(value)
    prose = address and address.start() > 0 and len(value.split()) > 3  # nobody fetches a sentence
    if address and not prose and not (key in _NOTED_URLS and _WEB.search(value)):
        yield refuse(file, "address-in-config", f"{shown}: an address outside the folder", _INSIDE)
    elif key not in _NOTED_PATHS and (_UPWARDS.search(value) or _PATH.match(value)):
        yield refuse(file, "path-in-config", f"{shown}: a path outside the folder", _INSIDE)
    elif key in _FETCHED and _REPOSITORY.fullmatch(value):
        yield refuse(file, "foreign-repository", f"{shown}: a loader would fetch it", _INSIDE)


def _number(file: File, key: str, value: float, owner: dict[str, Any]) -> Iterator[Finding]:
    if isinstance(value, float) and not math.isfinite(value):
        return  # parse_json lets it in only where genuine models have it
    high = _LIMITS.get(key) or (10**31 if _ROOMY.search(key) else 2**64 if type(value) is int else 4e38)
    low = int(key not in _OPTIONAL) if key in _LIMITS else -high
    if not low <= value <= high:
        why = f"{quoted(key)} is {quoted(str(value))}; it lies between {low:.6g} and {high:.6g}"
        yield refuse(file, "absurd-number", why, _MEND)
    elif _TOKEN_ID.fullmatch(key):
        size = owner.get("vocab_size")
        if not -1 <= value < _LIMITS["vocab_size"] or value != int(value):
            yield refuse(file, "token-id", f"{quoted(key)} is {value}, which is no token's id", _MEND)
        elif isinstance(size, int) and value >= size:
            why = f"{quoted(key)} is {value:,}, and the vocabulary has {size:,} tokens"
            yield review(file, "token-id", why, "ask the publisher: the engine may fail when this token is needed")
