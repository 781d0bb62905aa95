"""What a set of weights is, read from its headers into a Build."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freehold.errors import Refused, Unknown
from freehold.types import Build
from freehold.weights import gguf, safetensors
from freehold.weights.files import File, list_files, root_of, split_of
from freehold.weights.reading import Malformed, parse_json, quoted

MAX_SIZE = 1 << 40  # no layer count, width or context is larger; keeps nonsense out of the arithmetic


def describe(path: Path) -> Build:
    """The build at `path`: a GGUF file (or the first of a split one), or a folder with one model.

    Raises Unknown when there is no model, Refused when its headers are malformed or leave something out.
    """
    files, _ = list_files(path)
    name = _name(path)
    try:
        if ggufs := [file for file in files if file.suffix == ".gguf" and not file.name.startswith("mmproj")]:
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


def _describe_gguf(name: str, files: Sequence[File]) -> Build:
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
    facts = _Facts(headers[0].metadata)
    architecture = facts.text("general.architecture")
    if facts.values.get("general.type", "model") != "model":
        raise Refused(
            f"{name} is of type {quoted(facts.text('general.type'))}, not a model", hint="name the base model"
        )
    facts.prefix = architecture + "."
    heads = facts.size("attention.head_count")
    hidden = facts.size("embedding_length")
    tokens = facts.values.get("tokenizer.ggml.tokens")
    layers = facts.size("block_count")
    types = Counter[str]()
    for tensor in (tensor for header in headers for tensor in header.tensors):
        types[tensor.type] += tensor.size_bytes
    return Build(
        name=name,
        format="gguf",
        architecture=architecture,
        precision=_most_bytes(types),
        weight_bytes=sum(file.size_bytes for file in files),
        layers=layers,
        kv_heads=facts.size("attention.head_count_kv", heads),
        key_dim=facts.size("attention.key_length", hidden // heads),
        value_dim=facts.size("attention.value_length", hidden // heads),
        hidden_size=hidden,
        vocabulary=tokens.count if isinstance(tokens, gguf.Array) else facts.size("vocab_size"),
        context=facts.size("context_length"),
        weights_source=_source("size", len(files), "GGUF"),
    )


def _describe_safetensors(name: str, files: Sequence[File]) -> Build:
    config = next((file for file in files if file.name == "config.json"), None)
    shards = [file for file in files if file.suffix == ".safetensors" and "/" not in file.name]
    if config is None or not shards:
        raise Unknown(f"{name} holds no model", hint="a model is a GGUF file, or config.json with safetensors files")
    with config.open() as stream:
        content = parse_json(stream.read())
    if not isinstance(content, dict):
        raise Malformed("bad-config", "config.json is not an object")
    text = content.get("text_config")
    facts = _Facts({**content, **text} if isinstance(text, dict) else content)
    bytes_by_dtype = Counter[str]()
    for file in shards:
        with file.open() as stream:
            for tensor in safetensors.read_header(stream, file.size_bytes).tensors:
                bytes_by_dtype[tensor.dtype] += tensor.end - tensor.start
    heads, hidden = facts.size("num_attention_heads"), facts.size("hidden_size")
    head_dim = facts.size("head_dim", hidden // heads)
    quantization = content.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return Build(
        name=name,
        format="safetensors",
        architecture=facts.text("model_type"),
        precision=method if isinstance(method, str) else _most_bytes(bytes_by_dtype),
        weight_bytes=bytes_by_dtype.total(),
        layers=facts.size("num_hidden_layers"),
        kv_heads=facts.size("num_key_value_heads", heads),
        key_dim=head_dim,
        value_dim=head_dim,
        hidden_size=hidden,
        vocabulary=facts.size("vocab_size"),
        context=facts.size("max_position_embeddings"),
        weights_source=_source("tensor bytes", len(shards), "safetensors"),
    )


def _most_bytes(sizes: Counter[str]) -> str:
    """The type most of the weights have: what the files are, whatever their name says."""
    return sizes.most_common(1)[0][0] if sizes else "none"


def _source(what: str, count: int, form: str) -> str:
    return f"{what} of the {form} file" if count == 1 else f"{what} of {count} {form} files"


class _Facts:
    """Values by key, each checked for its type: a header that leaves one out cannot be planned with."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.prefix = ""

    def text(self, key: str) -> str:
        if not isinstance(value := self.values.get(key), str) or not value.isprintable():
            raise Malformed("missing-fact", f"{key} is missing or no text")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer. Where layers differ it is the largest, which makes a plan safe rather than tight."""
        value = self.values.get(self.prefix + key)
        if isinstance(value, gguf.Array):
            value = max(value.values, default=None)
        value = default if value is None else value
        if type(value) is not int or not 0 < value < MAX_SIZE:
            raise Malformed("missing-fact", f"{self.prefix + key} is missing or no size")
        return value
