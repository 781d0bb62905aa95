"""The strict gate: a file is refused unless its name, its first bytes and its content all say it is harmless data.

A family of checks is a small file with pure functions from a file, or its parsed content, to findings. `examine` gives
each file to those that its kind asks for. Nothing is ever unpickled, imported, rendered or executed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any

from freehold.types import Finding
from freehold.weights import gguf
from freehold.weights.cachefiles import MAX_CACHE_FILE_BYTES, content_of, is_blob, is_tree, is_unfinished
from freehold.weights.files import File
from freehold.weights.gate import adapters, config, disguise, formats, shards, templates, texts, tokenizers
from freehold.weights.gate.finding import refuse
from freehold.weights.gate.tensors import Shapes, check_gguf, check_safetensors
from freehold.weights.reading import MAX_JSON_BYTES, MAX_JSON_MARKS, SMALL_JSON_MARKS, Malformed, parse_json, quoted

_VOCABULARIES = {"tokenizer.json", "vocab.json", "added_tokens.json", "tekken.json"}  # any token may be a key there
_LONG = (*_VOCABULARIES, "unigram.json", ".index.json", ".txt", ".tiktoken", ".jsonl", ".csv")
_TOKENIZERS = {*_VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json"}
_MAX_SMALL_BYTES = 16 << 20  # of what is neither a vocabulary nor an index: 8 MB of training history are genuine
_MAX_BYTES = {"svg": 4 << 20, "yaml": 4 << 20, "template": 1 << 20, "sentencepiece": MAX_JSON_BYTES}
_FIX = "fetch the file again from its publisher"


def examine(files: Sequence[File]) -> list[Finding]:
    """Every reason to refuse `files`, and every one for a person to look; empty when there is none."""
    gate = _Gate({file.name: file for file in files})
    for file in sorted(files, key=_order):
        gate.admit(file)
    return gate.close()


def _order(file: File) -> int:
    """What others are compared with comes first: weights, then a tokenizer's added tokens, its vocabulary last."""
    if formats.kind_of(file.name) in {"safetensors", "gguf"}:
        return 0
    return 2 if PurePosixPath(file.name).name.lower() == "tokenizer.json" else 1


class _Gate:
    """What was read of the files so far."""

    def __init__(self, files: dict[str, File]) -> None:
        self.files = files
        self.findings: list[Finding] = []
        self.shapes: dict[str, Shapes] = {}  # of each safetensors file that is well-formed
        self.headers: dict[str, gguf.Header] = {}  # of each GGUF file that is
        self.indexed: set[str] = set()  # folders with an index
        self.added: dict[str, dict[int, str]] = {}  # the added tokens of each folder's tokenizer, by their ids

    def admit(self, file: File) -> None:
        if file.mode & 0o6111:
            why = "data files neither run nor take on another user's rights"
            self.findings.append(refuse(file, "executable", why, f"chmod a-xs '{file.name}'"))
        self._judge(file.name, lambda: self._check(file))

    def _judge(self, path: str, check: Callable[[], list[Finding]]) -> None:
        try:
            self.findings += check()
        except Malformed as error:
            self.findings.append(Finding(path=path, rule=error.rule, why=error.why, fix=_FIX))
        except OSError as error:
            why = quoted(error.strerror or str(error))
            self.findings.append(
                Finding(path=path, rule="unreadable", why=why, fix="make it readable and verify again")
            )
        except Exception as error:  # noqa: BLE001 - the door of the gate: what cannot be judged is refused
            why, fix = f"a check stumbled over it: {quoted(repr(error))}", f"{_FIX}; if it is the same, report this"
            self.findings.append(Finding(path=path, rule="unjudged", why=why, fix=fix))

    def close(self) -> list[Finding]:
        """The findings, with those on all files together."""
        if not any(formats.kind_of(name) in formats.WEIGHTS.values() for name in self.files):
            why = "no .gguf or .safetensors file"
            self.findings.append(Finding(path=".", rule="no-weights", why=why, fix="name the model's folder"))
        self._judge(".", lambda: shards.check_parts(self.files, self.indexed, self.headers))
        return self.findings

    def _check(self, file: File) -> list[Finding]:
        if is_unfinished(file.name) or is_blob(file.name):
            why = "a download that was broken off, or content that no snapshot names"
            return [refuse(file, "unfinished-download", why, "finish the download, or remove the file")]
        if expected := content_of(file.name):
            return _check_book(file, expected)
        if not (kind := formats.kind_of(file.name)):
            return formats.check(file)
        with file.open() as stream:
            head = stream.read(disguise.HEAD_BYTES)
            archive = disguise.zip_at_end(stream, file.size_bytes)
        if head.startswith(b"version https://git-lfs.github.com/spec/"):
            why = "a pointer of Git LFS, not the file itself"
            return [refuse(file, "lfs-pointer", why, "run git lfs pull, or fetch the file from its publisher")]
        what = disguise.nature(head) or ("a zip archive, found from its end" if archive else "")
        if kind == "sentencepiece" and disguise.is_onnx(head):
            what = "an ONNX graph"
        if what:
            return [refuse(file, "disguised", f"{what} under the name of {_article(kind)}", _FIX)]
        return self._check_kind(file, kind, head)

    def _check_kind(self, file: File, kind: str, head: bytes) -> list[Finding]:
        if kind == "safetensors":
            self.shapes[file.name], findings = check_safetensors(file)
            return findings
        if kind == "gguf":
            header, findings = check_gguf(file)
            self.headers[file.name] = header
            return findings + adapters.check_gguf(file, {each.name: each.shape for each in header.tensors})
        if kind == "media":
            return formats.check_media(file, head)
        if kind == "pdf":
            return texts.check_pdf(file)
        limit_bytes = MAX_JSON_BYTES if _is_long(file.name) else _MAX_BYTES.get(kind, _MAX_SMALL_BYTES)
        return self._check_small(file, kind, _read(file, limit_bytes))

    def _check_small(self, file: File, kind: str, data: bytes) -> list[Finding]:
        """The files that are read whole."""
        if kind == "json":
            return self._check_json(file, data)
        if kind == "sentencepiece" and not texts.TIKTOKEN.match(data):
            return tokenizers.check_sentencepiece(file, data)
        if kind == "template":
            return texts.check(file, data) + templates.check_file(file, data)
        if kind == "yaml":
            return texts.check_yaml(file, data)
        if kind == "svg":
            return texts.check_svg(file, data)
        return texts.check(file, data) + tokenizers.check_text(file, data)

    def _check_json(self, file: File, data: bytes) -> list[Finding]:
        own = PurePosixPath(file.name).name.lower()
        marks = MAX_JSON_MARKS if _is_long(file.name) else SMALL_JSON_MARKS
        content = parse_json(data, marks, log=config.LOGS.fullmatch(own) is not None)
        if is_tree(file.name):
            return []
        if own.endswith(".index.json"):
            self.indexed.add(str(PurePosixPath(file.name).parent))
            return shards.check_index(file, content, self.shapes)
        findings = []
        if own in _TOKENIZERS:
            folder = str(PurePosixPath(file.name).parent)
            findings += tokenizers.check(file, content, self.added.setdefault(folder, {}))
        if own not in _VOCABULARIES:
            findings += config.check(file, content)
            for where, source in _templates(content):
                findings += templates.check(file, source, where)
            if what := disguise.hidden_in(data):
                findings.append(refuse(file, "encoded-program", f"it holds, encoded, {what}", _FIX))
        if own == "adapter_config.json":
            findings += adapters.check(file, content, self._beside(file))
        return findings

    def _beside(self, adapter: File) -> Shapes:
        """The tensors of the adapter whose configuration it is."""
        return self.shapes.get(str(PurePosixPath(adapter.name).with_name("adapter_model.safetensors")), {})


def _check_book(file: File, expected: Any) -> list[Finding]:
    with file.open() as stream:
        data = stream.read(MAX_CACHE_FILE_BYTES + 1)
    if len(data) <= MAX_CACHE_FILE_BYTES and expected.fullmatch(data):
        return []
    why = "stands where the hub's cache keeps its books, but does not hold what it writes there"
    return [refuse(file, "cache-file", why, "remove it: the cache makes its books anew")]


def _templates(content: Any) -> list[tuple[str, Any]]:
    """The chat templates of a parsed tokenizer_config.json, processor_config.json or chat_template.json."""
    found = content.get("chat_template") if isinstance(content, dict) else None
    if not isinstance(found, dict | list):
        return [("chat_template", found)] if found is not None else []
    named = list(found.items()) if isinstance(found, dict) else []
    for each in found if isinstance(found, list) else []:
        named.append((each.get("name"), each.get("template")) if isinstance(each, dict) else ("", None))
    return [(f"chat_template {quoted(str(name))}", source) for name, source in named]


def _is_long(name: str) -> bool:
    return is_tree(name) or name.lower().endswith(_LONG)


def _read(file: File, limit_bytes: int) -> bytes:
    if file.size_bytes > limit_bytes:
        raise Malformed("too-big", f"{file.size_bytes:,} bytes; of such files at most {limit_bytes:,} are read")
    with file.open() as stream:
        return stream.read(limit_bytes)


def _article(kind: str) -> str:
    return {"json": "JSON", "media": "a picture, sound or film", "gguf": "GGUF", "pdf": "a PDF"}.get(kind, f"a {kind}")
