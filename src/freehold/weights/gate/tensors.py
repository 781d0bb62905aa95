"""Weight files: the header to its last byte, and what tensors and metadata would be if a loader took them for more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

from freehold.types import Finding
from freehold.weights import gguf, safetensors
from freehold.weights.files import File
from freehold.weights.gate import sentencepiece, templates
from freehold.weights.gate.config import CODE, MAX_TEXT
from freehold.weights.gate.disguise import HEAD_BYTES, nature, payload_in
from freehold.weights.gate.finding import refuse
from freehold.weights.reading import Malformed, quoted

_FIX = "fetch the file again from its publisher, and report it there"
_PER_TOKEN = ("tokenizer.ggml.scores", "tokenizer.ggml.token_type")

Shapes = dict[str, tuple[int, ...]]  # a file's tensors


def check_safetensors(file: File) -> tuple[Shapes, list[Finding]]:
    """Raises Malformed when the header is not what the format asks."""
    with file.open() as stream:
        header = safetensors.read_header(stream, file.size_bytes)
        starts = ((each.name, header.data_offset + each.start, each.end - each.start) for each in header.tensors)
        findings = _check_starts(file, stream, starts)
    names = "\n".join((*header.metadata, *(each.name for each in header.tensors)))
    findings += _check_strings(file, [*header.metadata.items(), ("names", names)])
    coded = (key for key, text in header.metadata.items() if CODE.search(text[:MAX_TEXT]))
    findings += [refuse(file, "code-in-value", f"metadata {quoted(key)} holds code", _FIX) for key in coded]
    return {each.name: each.shape for each in header.tensors}, findings


def check_gguf(file: File) -> tuple[gguf.Header, list[Finding]]:
    """Raises Malformed when the header is not what the format asks."""
    with file.open() as stream:
        header = gguf.read_header(stream, file.size_bytes)
        starts = ((each.name, header.data_offset + each.offset, each.size_bytes) for each in header.tensors)
        findings = _check_starts(file, stream, starts)
        _check_padding(stream, header, file.size_bytes)
    texts = [(key, value) for key, value in header.metadata.items() if isinstance(value, str)]
    heads = ((key, value.head) for key, value in header.metadata.items() if isinstance(value, gguf.Array))
    findings += _check_strings(file, texts)
    findings += [_payload(file, f"metadata {quoted(key)}", what) for key, head in heads if (what := nature(head))]
    for key, text in header.metadata.items():
        if key == "tokenizer.chat_template" or key.startswith("tokenizer.chat_template."):
            findings += templates.check(file, text, key)
    _check_charsmap(header)
    return header, findings + _check_vocabulary(file, header)


def _check_starts(file: File, stream: BinaryIO, starts: Iterable[tuple[str, int, int]]) -> list[Finding]:
    findings = []
    for name, start, size_bytes in starts:
        stream.seek(start)
        if what := nature(stream.read(min(size_bytes, HEAD_BYTES))):
            findings.append(_payload(file, f"tensor {quoted(name)}", what))
    return findings


def _check_strings(file: File, texts: Iterable[tuple[str, str]]) -> list[Finding]:
    return [_payload(file, f"metadata {quoted(key)}", what) for key, text in texts if (what := payload_in(text))]


def _check_padding(stream: BinaryIO, header: gguf.Header, size_bytes: int) -> None:
    """What lies between tensors belongs to none of them; every writer puts zeros there."""
    ends = [header.header_bytes, *(header.data_offset + each.offset + each.size_bytes for each in header.tensors)]
    begins = [*(header.data_offset + each.offset for each in header.tensors), size_bytes]
    for start, stop in zip(ends, begins, strict=True):
        stream.seek(start)
        if any(stream.read(stop - start)):
            raise Malformed("gguf-padding", f"data is hidden in the padding at byte {start:,}")


def _check_charsmap(header: gguf.Header) -> None:
    """Raises Malformed."""
    charsmap = header.metadata.get("tokenizer.ggml.precompiled_charsmap")
    if isinstance(charsmap, gguf.Array):
        sentencepiece.check_charsmap(charsmap.head, charsmap.count)


def _check_vocabulary(file: File, header: gguf.Header) -> list[Finding]:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, gguf.Array):
        return []
    findings = []
    for key in _PER_TOKEN:
        values = header.metadata.get(key)
        if isinstance(values, gguf.Array) and values.count != tokens.count:
            why = f"{key} has {values.count:,} values for {tokens.count:,} tokens: readers would go past its end"
            findings.append(refuse(file, "gguf-vocabulary", why, _FIX))
    return findings


def _payload(file: File, where: str, what: str) -> Finding:
    return refuse(file, "hidden-payload", f"{where} is {what}", _FIX)
