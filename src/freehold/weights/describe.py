"""What a set of weights is, read from its headers: a Build, and the dimensions of its model where they are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from freehold.errors import Refused, Unknown
from freehold.facts import Model
from freehold.types import Build
from freehold.weights import gguf, safetensors
from freehold.weights.dimensions import dimensions, merged
from freehold.weights.files import BESIDE, File, list_files, root_of, split_of
from freehold.weights.layers import Facts, Unfamiliar
from freehold.weights.metadata import dimensions_of, facts_of, vocabulary
from freehold.weights.precision import Precision, precision_of, precision_of_file
from freehold.weights.reading import MAX_JSON_BYTES, Malformed, parse_json, quoted

_ENCODERS = (
    *("vision", "visual", "audio", "image", "embed_vision", "embed_audio"),
    *("mm_projector", "multi_modal_projector", "patch_merge"),
)


class Checkpoint(Build, frozen=True, kw_only=True):
    """A build and its model's dimensions. Without them the sizes of the build are an upper bound."""

    model: Model | None = None
    model_note: str = ""  # why there is none, in words
    kv_dtype: str = ""  # of the KV cache, where the publisher says so: a key of plan.kv.BYTES
    pools: bool = False  # it says how the vectors of a text's tokens become one
    entry: str = ""  # the GGUF file an engine is given, with no link on the way; of a split model the first part


def describe(path: Path) -> Checkpoint:
    """The checkpoint at `path`: a GGUF file (or the first of a split one), or a folder with one model.

    Raises Unknown when there is no model, Refused when its headers are malformed or leave something out.
    """
    files, _ = list_files(path)
    name = _name(path)
    try:
        if ggufs := [file for file in files if file.suffix == ".gguf" and not BESIDE.fullmatch(file.name)]:
            return _describe_gguf(name, ggufs)
        return _describe_safetensors(name, files)
    except Malformed as error:
        hint = f"freehold verify {path} lists every finding"
        raise Refused(f"{path} is malformed ({error.rule}): {error.why}", hint=hint) from None
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror or error}", hint="check its permissions") from None


def _name(path: Path) -> str:
    root = root_of(path)
    repository = root.parent.parent.name
    if root.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return root.stem if root.suffix == ".gguf" else root.name


def _describe_gguf(name: str, files: Sequence[File]) -> Checkpoint:
    models = {split_of(file.name) or (file.name, 1) for file in files}
    if len(models) > 1:
        raise Unknown(f"{name} holds {len(models)} GGUF models", hint=f"name one, for example {files[0].name}")
    _, parts = models.pop()
    if parts != len(files):
        raise Refused(f"{name} has {len(files)} of {parts} parts", hint="fetch the missing parts")
    headers = []
    for file in files:
        with file.open() as stream:
            headers.append(gguf.read_header(stream, file.size_bytes))
    facts = facts_of(headers[0].metadata)
    if facts.values.get("general.type", "model") != "model":
        raise Refused(
            f"{name} is of type {quoted(str(facts.values['general.type']))}, not a model", hint="name the base model"
        )
    heads = facts.size("attention.head_count")
    hidden = facts.size("embedding_length")
    types = Counter[str]()
    tensors = [tensor for header in headers for tensor in header.tensors]
    for tensor in tensors:
        types[tensor.type] += tensor.size_bytes
    model, note = _known(partial(dimensions_of, facts, tensors, name))
    if model:
        model = _stored(model, precision_of_file(facts.values.get("general.file_type")))
    return Checkpoint(
        name=name,
        format="gguf",
        architecture=facts.prefix[:-1],
        precision=_most_bytes(types),
        weight_bytes=sum(file.size_bytes for file in files),
        layers=facts.size("block_count"),
        kv_heads=facts.size("attention.head_count_kv", heads),
        key_dim=facts.size("attention.key_length", hidden // heads),
        value_dim=facts.size("attention.value_length", hidden // heads),
        hidden_size=hidden,
        vocabulary=vocabulary(facts),
        context=facts.size("context_length"),
        weights_source=_source("size", len(files), "GGUF"),
        pools=bool(facts.count("pooling_type")),
        entry=str(files[0].real),
        model=model,
        model_note=note,
    )


def _describe_safetensors(name: str, files: Sequence[File]) -> Checkpoint:
    shards = [file for file in files if file.suffix == ".safetensors" and "/" not in file.name]
    config = _object(files, "config.json")
    if config is None or not shards:
        raise Unknown(f"{name} holds no model", hint="a model is a GGUF file, or config.json with safetensors files")
    facts = Facts(merged(config))
    bytes_by_dtype, elements = Counter[str](), Counter[bool]()
    for file in shards:
        with file.open() as stream:
            for tensor in safetensors.read_header(stream, file.size_bytes).tensors:
                bytes_by_dtype[tensor.dtype] += tensor.end - tensor.start
                elements[_encodes(tensor.name)] += prod(tensor.shape)
    architecture = facts.text("model_type")
    quantization = facts.get("quantization_config") or (_object(files, "hf_quant_config.json") or {}).get(
        "quantization"
    )
    model, note = _known(partial(dimensions, config, name))
    precision = precision_of(quantization, moe=bool(model and model.moe))
    if model:
        model = _stored(_measured(model, elements[False], elements[True]), precision)
    heads, hidden = facts.size("num_attention_heads"), facts.size("hidden_size")
    head_dim = facts.size("head_dim", hidden // heads)
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return Checkpoint(
        name=name,
        format="safetensors",
        architecture=architecture,
        precision=quoted(method, 40) if isinstance(method, str) else _most_bytes(bytes_by_dtype),
        weight_bytes=bytes_by_dtype.total(),
        layers=model.layers if model else facts.size("num_hidden_layers"),
        kv_heads=facts.size("num_key_value_heads", heads),
        key_dim=head_dim,
        value_dim=head_dim,
        hidden_size=hidden,
        vocabulary=facts.size("vocab_size"),
        context=facts.size("max_position_embeddings"),
        weights_source=_source("tensor bytes", len(shards), "safetensors"),
        model=model,
        model_note=note,
        kv_dtype=precision.kv_dtype,
    )


def _object(files: Sequence[File], name: str) -> dict[str, Any] | None:
    file = next((file for file in files if file.name == name), None)
    if file is None:
        return None
    if file.size_bytes > MAX_JSON_BYTES:
        raise Malformed("too-big", f"{name} has {file.size_bytes:,} bytes; at most {MAX_JSON_BYTES:,} are read")
    with file.open() as stream:
        content = parse_json(stream.read(MAX_JSON_BYTES))
    if not isinstance(content, dict):
        raise Malformed("bad-config", f"{name} is not an object")
    return content


def _known(read: Callable[[], Model]) -> tuple[Model | None, str]:
    try:
        return read(), ""
    except Unfamiliar as error:
        return None, error.why


def _stored(model: Model, precision: Precision) -> Model:
    """With the precision of its files. What is not counted from dimensions stays bf16, an upper bound, and says so."""
    return replace(
        model,
        checkpoint=precision.scheme or model.checkpoint,
        checkpoint_note=precision.note,
        checkpoint_confirmed=bool(precision.scheme),
    )


def _encodes(tensor: str) -> bool:
    """Whether a tensor belongs to an encoder of images or sound, by its name."""
    return any(part.startswith(_ENCODERS) for part in tensor.split("."))


def _measured(model: Model, decoder: int, encoders: int) -> Model:
    """With what the files hold: encoders, which no formula counts, and whether the formulas agree."""
    counted = model.parameters
    total = counted.total + encoders if counted.total else None
    parameters = replace(counted, total=total, checkpoint=decoder + encoders, exact=total == decoder + encoders)
    return replace(model, encoder_params=encoders, parameters=parameters)


def _most_bytes(sizes: Counter[str]) -> str:
    """The type most of the weights have: what the files are, whatever their name says."""
    return sizes.most_common(1)[0][0] if sizes else "none"


def _source(what: str, count: int, form: str) -> str:
    return f"{what} of the {form} file" if count == 1 else f"{what} of {count} {form} files"
