"""Weight files, well-formed and not, byte by byte."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

from freehold.types import Verdict

TOKENS = ["<s>", "</s>", "a", "b"]
SHAPE = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 2048,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": TOKENS,
}


def text(value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(key: bytes | str, value) -> bytes:  # noqa: PLR0911 - one for each type
    """A key and its value: int, str, bool, float, a list of strings or integers, or raw bytes with their own type."""
    if isinstance(value, bytes):
        return text(key) + value
    if isinstance(value, bool):
        return text(key) + struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return text(key) + struct.pack("<II", 4, value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if value and isinstance(value[0], int):
        return text(key) + struct.pack(f"<IIQ{len(value)}I", 9, 4, len(value), *value)
    return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(each) for each in value)


def tensor(name: bytes | str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf_bytes(entries=None, tensors=None, *, version=3, counts=None, data=None, magic=b"GGUF", alignment=32) -> bytes:
    entries = [entry(*pair) for pair in SHAPE.items()] if entries is None else entries
    tensors = [tensor("a", (256, 2), 0, 0), tensor("b", (32,), 1, 2048)] if tensors is None else tensors
    data = b"\1" * (2048 + 64) if data is None else data
    counts = counts or (len(tensors), len(entries))
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(tensors)
    return head + b"\0" * (-len(head) % alignment) + data


def safetensors_bytes(header=None, data=b"\0" * 16, *, raw: bytes | None = None, length: int | None = None) -> bytes:
    if raw is None:
        default = {"__metadata__": {"format": "pt"}, "w": {"dtype": "F16", "shape": [2, 4], "data_offsets": [0, 16]}}
        raw = json.dumps(default if header is None else header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def facts(dtype="F16", shape=(2, 4), offsets=(0, 16)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 512, "intermediate_size": 128,
}  # fmt: skip


def write(folder: Path, files: dict[str, bytes | str | dict]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = json.dumps(content) if isinstance(content, dict) else content
        path.write_bytes(plain.encode() if isinstance(plain, str) else plain)
    return folder


def rules(verdict: Verdict) -> set[str]:
    return {finding.rule for finding in verdict.findings}


MARKER = Path("freehold-test-marker")


class Payload:
    def __reduce__(self):
        return Path.touch, (MARKER,)


PICKLE = pickle.dumps(Payload())
ASCII_PICKLE = pickle.dumps(Payload(), protocol=0)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", PICKLE)
    return buffer.getvalue()


BASE = [entry(*pair) for pair in SHAPE.items()]
