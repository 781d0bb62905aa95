"""The corpus: models in several files, and what the hub's tools leave behind."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from corpus import Case, case, model
from corpus_bytes import ELF, PICKLE
from corpus_content import bpe
from corpus_folders import PNG
from weight_files import CONFIG, entry, facts, gguf_bytes, safetensors_bytes, tensor, text, write

COMMIT, ETAG = "c" * 40, "e" * 64

# -- several files ---------------------------------------------------------------------------------------------------


def sharded(index: object = None, **more: bytes) -> dict[str, bytes | str | dict]:
    """A clean model in two shards; `more` replaces them by number (s1, s2)."""
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    default = {"metadata": {"total_size": 32}, "weight_map": {"w": one, "v": two}}
    files = {one: more.get("s1", safetensors_bytes()), two: more.get("s2", safetensors_bytes({"v": facts()}))}
    return {
        "config.json": CONFIG,
        "model.safetensors.index.json": json.dumps(default if index is None else index),
        **files,
    }


def index_case(name: str, rule: str | None, files: dict) -> Case:
    return Case("shards", name, rule, lambda folder: write(folder, files))


def naming(*shards: str) -> dict:
    return sharded({"weight_map": dict(zip("wvxyz", shards, strict=False))})


def split(no: int, count: int, tensors: int, name: str) -> bytes:
    return gguf_bytes(
        [entry("split.no", no), entry("split.count", count), entry("split.tensors.count", tensors)],
        [tensor(name, (32,), 1, 0)],
        data=b"\1" * 64,
    )


def parts(*contents: bytes, count: int = 0) -> dict[str, bytes]:
    return {
        f"big-{n:05}-of-{count or len(contents):05}.gguf": content for n, content in enumerate(contents, 1) if content
    }


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDS = [
    index_case("two shards", None, sharded()),
    index_case("in a sub-folder", None, {**model(), **{f"text/{name}": content for name,
        content in sharded().items()}}),
    index_case("index of PyTorch files that were not fetched", None, {**model(),
        "pytorch_model.bin.index.json": {"weight_map": {"w": "pytorch_model-00001-of-00002.bin"}}}),
    index_case("numbered from 0", None, {f"model-{n:05}-of-00002.safetensors": safetensors_bytes({str(n): facts()})
        for n in range(3)}),
    *(index_case(f"bad {n}", "bad-index", sharded(each)) for n, each in enumerate(({"weight_map": ["x"]}, {}, [],
        {"weight_map": {"w": 1}}))),
    *(index_case(f"path {name}", "shard-path", naming(ONE, name)) for name in ("../../secret.safetensors",
        "/etc/passwd", "sub/a.safetensors", "..", "a\\b", "model.bin", "")),
    index_case("path in an index of PyTorch files", "shard-path", {**model(),
        "pytorch_model.bin.index.json": {"weight_map": {"w": "../x.bin"}}}),
    *(index_case(f"missing {name}", "missing-shard", naming(ONE, name))
        for name in ("model-00003-of-00003.safetensors", "Model-00002-of-00002.safetensors")),
    index_case("missing without index", "missing-shard", {"config.json": CONFIG, ONE: safetensors_bytes()}),
    index_case("tensor in another file", "index-mismatch", naming(TWO, ONE)),
    index_case("tensor in no file", "index-mismatch", naming(ONE, TWO, TWO)),
    index_case("tensor not named", "index-mismatch", sharded(s2=safetensors_bytes({"v": facts(),
        "x": facts(offsets=(16, 32))}, b"\0" * 32))),
    index_case("tensor twice", "duplicate-tensor", sharded(s2=safetensors_bytes({"v": facts(), "w": facts(offsets=(16,
        32))}, b"\0" * 32))),
    *(index_case(f"{name} in no index", "unlisted-shard", sharded() | {name: safetensors_bytes({"x": facts()})})
        for name in ("model-00003-of-00003.safetensors", "model-00003-of-00002.safetensors",
            "model-00001-of-00003.safetensors")),
    index_case("shards of another index", None, sharded() | {"model.fp16-00001-of-00001.safetensors":
        safetensors_bytes(), "adapter.safetensors": safetensors_bytes()}),
    index_case("split GGUF", None, parts(split(0, 2, 2, "a"), split(1, 2, 2, "b"))),
    index_case("split GGUF, first part without tensors", None, parts(gguf_bytes([entry("split.no", 0),
        entry("split.count", 2), entry("split.tensors.count", 1)], [], data=b""), split(1, 2, 1, "b"))),
    index_case("merged GGUF", None, {"m.gguf": split(0, 0, 1, "a")}),
    index_case("GGUF in one part", None, parts(gguf_bytes())),
    *(index_case(f"GGUF part {n} missing", "missing-shard", parts(*(b"" if n == m else split(m, 3, 3, str(m))
        for m in range(3)), count=3)) for n in range(3)),
    index_case("GGUF part says another number", "gguf-split", parts(split(1, 2, 2, "a"), split(0, 2, 2, "b"))),
    index_case("GGUF part says another count", "gguf-split", parts(split(0, 3, 2, "a"), split(1, 3, 2, "b"))),
    index_case("GGUF parts hold more tensors", "gguf-split", parts(split(0, 2, 1, "a"), split(1, 2, 1, "b"))),
    index_case("GGUF parts hold one tensor twice", "gguf-split", parts(split(0, 2, 2, "a"), split(1, 2, 2, "a"))),
    *(index_case(f"GGUF part says a text for {key}", "gguf-split",
        parts(gguf_bytes([entry("split." + key, b"\x08\0\0\0" + text(b"\x1b[2J\xff"))])))
        for key in ("no", "count", "tensors.count")),
    index_case("GGUF part beyond the last", "missing-shard", {f"big-{n:05}-of-00002.gguf": split(n - 1, 2, 3, str(n))
        for n in (1, 2, 3)}),
    index_case("GGUF part under a plain name", "gguf-split", {"m.gguf": split(0, 2, 2, "a")}),
]  # fmt: skip


# -- what the hub's tools leave behind -------------------------------------------------------------------------------


def hub_repo(folder: Path, files: dict, *, links: bool = True, store: Path | None = None) -> Path:
    """A repository as huggingface_hub caches it; with `store`, its blobs lie there as since 2.4. The snapshot."""
    snapshot = folder / "snapshots" / COMMIT
    for name, given in files.items():
        source = write(snapshot, {name: given}) / name
        content = source.read_bytes()
        if links:
            source.unlink()
            large = hashlib.sha256(content).hexdigest()  # other files have git's name
            small = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            blob = folder / "blobs" / (large if name.endswith(".safetensors") else small)
            kept = store / blob.name[:2] / blob.name if store else blob
            write(kept.parent, {kept.name: content})
            if store and not blob.is_symlink():
                blob.parent.mkdir(parents=True, exist_ok=True)
                blob.symlink_to(os.path.relpath(kept, blob.parent))
                write(kept.parent, {kept.name + ".refs": f"models--org--name/blobs/{blob.name}\n"})
            source.symlink_to(os.path.relpath(blob, source.parent))
    if store:
        write(store, {".huggingface-shared-blobs": "1\n"})
    tree = {"format_version": 1, "files": {"../x": {"size": 1, "blob_id": ETAG}}}
    write(
        folder,
        {"refs/main": COMMIT, "refs/pr/1": COMMIT, f".no_exist/{COMMIT}/model.py": "", f"trees/{COMMIT}.json": tree},
    )
    return snapshot


def hub_cache(folder: Path, store: Path | None = None) -> Path:
    tag = "Signature: 8a477f597d28d172789f06886806bc55\n# This file is a cache directory tag.\n"
    write(folder, {"version.txt": "1", "CACHEDIR.TAG": tag, f".locks/models--org--name/{ETAG}.lock": ""})
    files = model(**{"assets/logo.png": PNG, "README.md": "x", ".gitattributes": "x"})
    return hub_repo(folder / "models--org--name", files, store=store)


def local_folder(folder: Path, **more: bytes | str) -> Path:
    books = {f"download/{name}.{end}": text for name in ("config.json", "sub/modeling.py", ".gitattributes")
             for end, text in (("metadata", f"{COMMIT}\n{ETAG}\n1763769600.25\n"), ("lock", ""))}  # fmt: skip
    books |= {
        ".gitignore": "*",
        ".gitignore.lock": "",
        f"trees/{COMMIT}.json": '{"files": {}}',
        "CACHEDIR.TAG": "Signature: 8a477f597d28d172789f06886806bc55\n",
    }
    return write(
        folder, {**model(), **{f".cache/huggingface/{name}": text for name, text in {**books, **more}.items()}}
    )


def hub(name: str, rule: str | None, build: Callable[[Path], Path | None]) -> Case:
    return Case("layout", name, rule, build)


def with_repo(files: dict, **more: bytes | str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        hub_repo(folder / "models--org--name", files)
        return write(folder / "models--org--name", more)

    return build


def swapped(name: str, content: bytes, *, shared: bool = False) -> Callable[[Path], Path]:
    """Other content under the digest of the published one."""

    def build(folder: Path) -> Path:
        files = model(**{"README.md": "x"})
        snapshot = hub_repo(folder / "models--org--name", files, store=folder / "blobs" if shared else None)
        (snapshot / name).resolve().write_bytes(content)
        return snapshot

    return build


LAYOUT = [
    hub("other weights in a blob", "blob-digest", swapped("model.safetensors", safetensors_bytes(data=b"\7" * 16))),
    hub("another text in a blob", "blob-digest", swapped("README.md", b"y")),
    hub("another text in a shared blob", "blob-digest", swapped("README.md", b"y", shared=True)),
    hub("the same text in a shared blob", None, swapped("README.md", b"x", shared=True)),
    hub("cache", None, lambda folder: hub_cache(folder) and None),
    hub("repository", None, lambda folder: hub_cache(folder).parents[1]),
    hub("snapshot", None, hub_cache),
    hub("file of a snapshot", None, lambda folder: hub_cache(folder) / "model.safetensors"),
    hub("cache with a shared store", None, lambda folder: hub_cache(folder, folder / "blobs") and None),
    hub("repository with a shared store", None, lambda folder: hub_cache(folder, folder / "blobs").parents[1]),
    hub("snapshot with a shared store", None, lambda folder: hub_cache(folder, folder / "blobs")),
    hub("snapshot of copies", None, lambda folder: hub_repo(folder / "models--org--name", model(),
        links=False).parents[1]),
    hub("local folder", None, local_folder),
    *(hub(f"unfinished {name}", "unfinished-download", with_repo(model(), **{name: "x"})) for name in (f"blobs/{ETAG}",
        f"blobs/{ETAG}.1a2b3c4d.incomplete", f"blobs/{COMMIT}")),
    hub("unfinished in a local folder", "unfinished-download", lambda folder: local_folder(folder,
        **{f"download/x.{ETAG}.incomplete": b"x"})),
    case("layout", "unfinished by another program", "unfinished-download", {"model.safetensors.aria2": b"x"}),
    *(hub(f"book {name}", "cache-file", with_repo(model(), **{name: content})) for name, content in (
        ("refs/other", "../../x"), ("refs/pr/2", ELF), (f".no_exist/{COMMIT}/a.py", "import os"), ("refs/x",
            COMMIT + "\nx\n"),
    )),
    *(hub(f"book of a local folder {name}", "cache-file", lambda folder, name=name,
        content=content: local_folder(folder, **{name: content})) for name, content in (
        ("download/x.json.metadata", PICKLE), ("download/x.lock", "x"), (".gitignore", "!*.py"), ("CACHEDIR.TAG", "x"),
            ("upload/x.metadata", "a b\n"),
    )),
    hub("snapshot leads out", "link-outside", lambda folder: (hub_cache(folder),
        (folder / "models--org--name/snapshots" / COMMIT / "a.txt").symlink_to("/etc/hostname"))[0]),
    hub("pickle in a snapshot", "pickle", with_repo(model(**{"pytorch_model.bin": PICKLE}))),
    hub("code in a snapshot", "code", with_repo(model(**{"modeling.py": "x"}))),
]  # fmt: skip

CONFIG_NAME, ADDED_NAME = "tokenizer_config.json", "added_tokens.json"
DISAGREEING: list[dict] = [  # each file is well-formed; <|end|> is 4 in tokenizer.json
    {ADDED_NAME: {"<x>": 4}},
    {ADDED_NAME: {"<|end|>": 5}},
    {ADDED_NAME: {"<x>": 2}},
    {ADDED_NAME: {"c": 9}},
    {CONFIG_NAME: {"added_tokens_decoder": {"4": {"content": "<x>"}}}},
    {CONFIG_NAME: {"added_tokens_decoder": {"7": {"content": "<x>"}}}, ADDED_NAME: {"<x>": 8}},
    {CONFIG_NAME: {"added_tokens_decoder": {"5": {"content": "<x>"}, "6": {"content": "<x>"}}}},
]
TOKEN_TEXTS: dict[str, list[tuple[str, bytes]]] = {
    "token-id": [("a.tiktoken", b"YQ== 0\nYg== 0\n"), ("qwen.tiktoken", b"YQ== 0\r\nYg== 1\r\nYw== 1\r\n"),
                 ("tokenizer.model", b"YQ== 0\nYg== 99999999\n")],
    "tokenizer-shape": [("a.tiktoken", b"YQ== 0\nYg== -1\n"), ("a.tiktoken", b"YQ== 0\nrun('x')\n"),
                        ("tokenizer.model", b"YQ== 0\nYg==\n"), ("a.tiktoken", b"YQ== 0\n!! 1\n")],
    "tokenizer-size": [("vocab.txt", b"[UNK]\n" + b"x" * 99_999), ("merges.txt", b"a b\n" + b"c d " * 9_999 + b"\n"),
                       ("merges.txt", b"e" * 70_000)],
}  # fmt: skip
CLEAN_TOKEN_TEXTS: dict[str, bytes | str | dict] = {
    "a.tiktoken": b"YQ== 0\nYg== 1\n\n= 2\n",
    "vocab.txt": b"[UNK]\n\xc3\xa4\n",
    "merges.txt": b"#version: 0.2\na b\n",
    "notes.txt": b"x" * 99_999,
    "NOTICE": b"Version 2\nfor all.\n",
}
AGREEING = {
    "tokenizer.json": bpe(), ADDED_NAME: {"<|end|>": 4, "<more>": 5},
    CONFIG_NAME: {"added_tokens_decoder": {"4": {"content": "<|end|>"}, "2": {"content": "ab"}}},
}  # fmt: skip

TOKENIZERS = [
    *(case("tokenizer", f"files that disagree {at}", "token-id", {"tokenizer.json": bpe(), **files})
      for at, files in enumerate(DISAGREEING)),
    *(case("tokenizer", f"{rule} in a text {at}", rule, {name: content})
      for rule, files in TOKEN_TEXTS.items() for at, (name, content) in enumerate(files)),
    case("tokenizer", "files that agree", None, AGREEING),
    case("tokenizer", "in two folders", None, {"tokenizer.json": bpe(), "b/added_tokens.json": {"<x>": 4}}),
    case("tokenizer", "texts", None, CLEAN_TOKEN_TEXTS),
]  # fmt: skip

CASES = [*SHARDS, *LAYOUT, *TOKENIZERS]
