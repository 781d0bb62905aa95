"""The corpus: formats, names, texts and JSON."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from corpus import Case, case, model
from corpus_bytes import PICKLE, ZIP
from weight_files import CONFIG, gguf_bytes, safetensors_bytes, write

COMMIT, ETAG = "c" * 40, "e" * 64
PNG, JPEG, PDF = (
    b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
    b"\xff\xd8\xff\xe0" + b"\0" * 40,
    b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\n",
)
SVG = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">{}</svg>'


def each(family: str, rule: str | None, files: dict[str, bytes | str | dict]) -> list[Case]:
    """One case a file, named as it is."""
    return [
        case(family, f"{rule or 'clean'}: {ascii(name)[1:-1]}", rule, {name: content})
        for name, content in files.items()
    ]


def several(family: str, rule: str | None, name: str, contents: list[bytes | str]) -> list[Case]:
    cases = enumerate(contents)
    return [case(family, f"{rule or 'clean'}: {name} {n}", rule, {name: content}) for n, content in cases]


def made(family: str, name: str, rule: str | None, change: Callable[[Path], object]) -> Case:
    """A clean model that is changed on disk."""

    def build(folder: Path) -> None:
        write(folder, model())
        change(folder)

    return Case(family, name, rule, build)


def linked(name: str, rule: str | None, link: str, target: str) -> Case:
    return made("names", name, rule, lambda folder: (folder / link).symlink_to(target))


def outside(name: str, change: Callable[[Path, Path], object]) -> Case:
    """A link that leads to a file beside the folder."""

    def build(folder: Path) -> None:
        change(folder, write(folder.parent / "outside", {"config.json": CONFIG}))

    return made("names", name, "link-outside", build)


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))  # the whole path may be too long for a socket


FORMATS = [
    *each("formats", "code", dict.fromkeys((
        "modeling.py", "kernel.so", "RUN.SH", "page.html", "a.ipynb", "sub/setup.py", "LICENSE.py", "op.cu", "x.js",
            "config.json.py",
    ), "x")),
    *each("formats", "pickle", dict.fromkeys((
        "pytorch_model.bin", "model.pt", "MODEL.PKL", "a.pth", "a.joblib", "a.npy", "model.safetensors.bin",
            "README.pkl", "a.ckpt",
    ), PICKLE)),
    *each("formats", "archive", dict.fromkeys(("data.zip", "weights.tar.gz", "a.7z", "a.whl", "model.GZ"), ZIP)),
    *each("formats", "unknown-format", dict.fromkeys((
        "model.onnx", "noextension", "model.h5", "a.msgpack", "saved_model.pb", "model.safetensors.bak", "a.tflite",
            "imatrix.dat", "a.keras",
    ), b"\x08")),
    *each("formats", "wrong-magic", {"photo.png": b"x", "card.pdf": b"x", "a.wav": b"RIFF\0\0\0\0AVI ",
        "a.mp4": b"\0" * 16, "a.svg": "<html/>"}),
    *each("formats", None, {
        "assets/logo.png": PNG, "figures/a b (1).JPG": JPEG, "wrong-suffix.png": JPEG, "a.gif": b"GIF89a",
            "a.webp": b"RIFF\1\1\1\1WEBPVP8 ",
        "demo.mp4": b"\0\0\0\x20ftypisom", "a.wav": b"RIFF\1\1\1\1WAVEfmt ", "a.mp3": b"ID3\4", "a.flac": b"fLaC",
            "a.ogg": b"OggS", "paper.pdf": PDF,
        "LICENSE": "Apache", "LICENSE-MODEL": "x", "license.txt": "x", "Notice": "x", "USE_POLICY.md": "x",
            "README_zh-CN.md": "\u6a21\u578b",
        "THIRD_PARTY_NOTICES": "x", ".gitattributes": "* filter=lfs", ".gitignore": "",
            "merges.txt": "#version: 0.2\n\u0120 t\n", "Modelfile": "FROM ./m",
        "vocab.txt": "[PAD]\n\x1c\n", "eval.csv": "a,b\n1,2\n", "CITATION.cff": "cff-version: 1.2.0",
            "a.bib": "@misc{a}", "data.jsonl": '{"a":1}\n',
        "qwen.tiktoken": "IQ== 0\nIg== 1\n", "tiktoken.model": "IQ== 0\nIg== 1\n", "empty.md": "",
            "UPPER.SAFETENSORS": safetensors_bytes(),
        "model-Q4_K_M.gguf": gguf_bytes(), "mmproj-F16.gguf": gguf_bytes(),
            ".eval_results/gsm8k.yaml": "- dataset: x\n  value: 1\n",
        "USAGE_POLICY": "x", "tokenizer.vocab": "<unk>\t0\n", "SHA256SUMS": "00  m.gguf\n", "model.sig": "{}",
        "m.gguf.sha256": "00", "CHECKSUMS": "00", "1_Pooling/config.json": {"word_embedding_dimension": 8},
    }),
]  # fmt: skip

TEXTS = [
    *several("texts", "not-text", "README.md", [b"a\0b", b"\xff\x00\x01" * 40, b"ok\n\x80\x01\x02" + bytes(range(128,
        256))]),
    *several("texts", "disguised", "LICENSE", ["#!/bin/sh\nid\n", "#! /usr/bin/env python\n"]),
    *several("texts", "script", "LICENSE", ["#!/bin/sh", " <!DOCTYPE HTML><script>1</script>", "<?php 1;"]),
    *several("texts", "yaml-tag", "a.yaml", [
        "!!python/object/apply:os.system ['id']", "a:\n  - !!python/name:os.system\n", "k: !ENV ${HOME}",
            "[a, !<tag:yaml.org,2002:x> b]",
        "a: &b !!python/tuple [1]", '"k": !!python/none x', "%TAG !e! tag:yaml.org,2002:python/\n---\na: 1\n",
        "? a\n: !!python/object:os.x {}", "{a: !x b}",
    ]),
    *several("texts", "yaml-tag", "README.md", ["---\nlicense: !!python/name:os.system\n---\n# A",
        "\n---\r\na: [!x 1]\r\n---", "---\n- !<x> y\n---\n"]),
    *several("texts", "object-key", "a.yaml", ["a:\n  _target_: os.system\n", '{"py/object":"os.x"}', "? _target_\n: x",
        '"\\x5ftarget_": x', "- 'py/reduce' : x"]),
    *several("texts", "object-key", "a.jsonl", ['{"_target_":"os.system"}', '{}\n{"a": {"\\u005ftarget_": 1}}',
        '{"a":1,"py/type" :"x"}']),
    *several("texts", "object-key", "README.md", ["---\n_target_: x\n---\n"]),
    *several("texts", None, "a.jsonl", ['{"text": "{\\"_target_\\": 1} and _target_: x"}\n']),
    *several("texts", "git-filter", ".gitattributes", ["*.bin filter=evil -text", "* filter=lfs\n*.x filter=lfs2",
        "*.bin\tdiff=lfs filter=x"]),
    *several("texts", None, ".gitattributes", ["*.bin filter=lfs diff=lfs merge=lfs -text\n*.py text eol=lf\n"]),
    *several("texts", "yaml-alias", "bomb.yml", [
        "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}' if n else 'lol'] * width)}]\n" for n in range(9))
            for width in (8, 9, 12)
    ]),
    *several("texts", "svg-active", "a.svg", [SVG.format(each) for each in (
        "<script>1</script>", '<rect onload="x()"/>', "<foreignObject/>", '<image href="https://example.com/x.png"/>',
            "<svg:script/>",
        '<a xlink:href="javas&#99;ript:x()">y</a>', '<use xlink:href="file:///etc/passwd#x"/>',
            "<style>@import url(x)</style>",
        "<style>a{fill:url(//example.com)}</style>", '<image href="data:image/svg+xml;base64,AAAA"/>',
            '<a href="data:text/html,x">y</a>',
    )] + ['<!DOCTYPE svg [<!ENTITY a "b">]><svg/>']),
    *several("texts", "pdf-active", "a.pdf", [PDF + each for each in (
        b"/S /JavaScript /JS (x)", b"<</S/Launch/F(x)>>", b"/EmbeddedFiles 3 0 R", b"/J#61vaScript (x)",
            b" " * (1 << 20) + b"/Launch ", b"/JS 12 0 R",
    )]),
    *several("texts", None, "README.md", [
        "\ufeffWith a mark", "caf\xe9 au lait, na\xefve".encode("latin-1"), "Apache".encode("utf-16"),
            "1. one\n2. two\n",
        "---\nlicense: mit\ntags: [a, b]\n---\n- !important\n_target_: y", "---\n- !x\n",
        "cats and\ndogs\n1. x", "# A\n```html\n<script>1</script>\n```\n<img src='https://example.com/a.png'>",
            "sha256 " + ETAG, "-" * 500,
        "<p align=center>x</p>", "\n".join("| a | b |" for _ in range(99)),
            "![x](data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAf)",
    ]),
    *several("texts", None, "a.yml", ["a: 1\nb: [x, y]\nc: Hello, world!\n",
        "# !note\nd: 'x'\ne: a!b\nf: |\n  ![x](y)\n", "base: &b {a: 1}\nc: *b\n"]),
    *several("texts", None, "a.svg", [SVG.format(each) for each in (
        '<path d="M0"/><a href="https://example.com">x</a>', '<use href="#a"/>',
            '<image href="data:image/png;base64,iVBORw0KGgo="/>', "<text>once = 1</text>",
    )] + ['<?xml version="1.0"?><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd"><svg/>']),
]  # fmt: skip

JSON = [
    *several("json", "duplicate-key", "a.json", ['{"a": 1, "a": 2}', '[{"b": {"a": 1, "a": 1}}]',
        '{"a": 1, "\\u0061": 2}']),
    *several("json", "bad-number", "a.json", ["[NaN]", "[Infinity]", '{"rope_theta": -Infinity}', "[1e999]",
        '{"time_step_limit": [0, NaN]}',
                                              '{"time_step_limit": [0, Infinity], "a": Infinity}']),
    *several("json", "bad-json", "a.json", ["[" + "9" * 5000 + "]", "]" * 100, "", "{'a': 1}", '{"a": 1} {"b": 2}',
        "// c\n{}"]),
    *several("json", "json-too-deep", "a.json", ["[" * 100 + "]" * 100, '{"a":' * 65 + "1" + "}" * 65, "[" * 5000]),
    *several("json", "not-utf8", "a.json", [b'"\xe9"', '{"a": 1}'.encode("utf-16"), b'{"a": "\xed\xa0\x80"}']),
    *several("json", "json-too-big", "a.json", [b"[" + b"[]," * 1_000_000 + b"[]]", b"[" + b"1," * 3_000_001 + b"1]",
        b"[" + b"{}," * 1_000_001 + b"1]", '["' + "a" * (5 << 20) + '"]', b"[" + b"1," * 800_000 + b"1]",
        b"[" + b"{}," * 160_000 + b"1]", b"[" + b"[]," * 160_000 + b"1]"]),
    *several("json", "bad-number", "my_results.json", ["[1e999]"]),
    *(case("json", f"{name} with NaN", None, {name: '{"log_history": [{"loss": NaN, "grad_norm": -Infinity}]}'})
      for name in ("trainer_state.json", "eval_results.json")),
    *several("json", "foreign-class", "model_index.json", [f'{{"unet": ["{module}", "Net"]}}'
        for module in ("evil_module", "diffusers_evil", "os.path")]),
    *several("json", None, "model_index.json", [
        '{"vae": ["diffusers", "AutoencoderKL"], "a": [null, null], "b": ["stable_diffusion", "X"], "c": [1, 2]}',
    ]),
    *several("json", None, "unigram.json", [b"[" + b'["a",-1.5],' * 200_000 + b"[]]"]),
    *(made("json", f"too big {name}", "too-big", lambda folder, name=name: os.truncate(write(folder,
        {name: b""}) / name, 100 << 20))
      for name in ("big.json", "README.md", "tokenizer.model")),
    *(made("json", f"too big for its kind {name}", "too-big", lambda folder, name=name: os.truncate(write(folder,
        {name: b""}) / name, 20 << 20))
      for name in ("config.json", "README.md", "a.svg", "a.yaml", "chat_template.jinja")),
    *several("json", None, "a.json", [
        '{"time_step_limit": [0.0, Infinity]}', '{"a": {"time_step_max": Infinity}}',
            '{"model_max_length": 1000000000000000019884624838656}',
        '{"\\u00e9": "[[[[{{{{"}', " {}\n",
    ]),
]  # fmt: skip

NAMES = [
    *each("names", "hidden", dict.fromkeys((".hidden", ".git/hooks/post-checkout", ".cache/pip/a.txt", "sub/.env",
        ".cache/huggingface/x.md"), "x")),
    *each("names", "bad-name", dict.fromkeys((
        "caf\u00e9.txt", "m\u043edel.txt", "new\nline.txt", "-rf", "a;b.txt", "a\u202etxt.md", "con.txt", "NUL",
            "lpt1.json", "a.txt.", "a.md ", "a\\b.txt",
        "\uff21.txt", "a\u200b.txt", "$(id).md",
    ), "x")),
    *each("names", "too-deep", {"/".join("abcdefghi"[:9]) + f"/{n}.txt": "x" for n in range(3)}),
    *(case("names", f"collision {a}", "name-collision", {a: "x", b: "x"})
      for a, b in (("A.txt", "a.txt"), ("Sub/a.md", "sub/a.md"), ("MODEL.safetensors", "README.md"))[:2]),
    made("names", "collision of a link", "name-collision",
        lambda folder: (folder / "Config.json").symlink_to("config.json")),
    outside("absolute link", lambda folder, there: (folder / "a.json").symlink_to(there / "config.json")),
    outside("relative link", lambda folder, there: (folder / "a.json").symlink_to("../outside/config.json")),
    outside("link by way of a link", lambda folder, there: ((folder / "a.json").symlink_to("b.json"),
        (folder / "b.json").symlink_to(there / "config.json"))),
    linked("broken", "broken-link", "a.json", "nowhere"), linked("loop", "broken-link", "a.json", "a.json"),
        linked("beyond", "broken-link", "a.json", "config.json/x"),
    linked("to itself", "special-file", "sub", "."), linked("to the device null", "link-outside", "a.txt", "/dev/null"),
    made("names", "fifo", "special-file", lambda folder: os.mkfifo(folder / "a.gguf")),
    made("names", "socket", "special-file", lambda folder: listen(folder / "a.json")),
    *(made("names", f"mode {mode:o}", "executable", lambda folder, mode=mode: (folder / "config.json").chmod(mode))
        for mode in (0o755, 0o744, 0o4711, 0o4644, 0o2644)),
    linked("inside", None, "a.json", "config.json"),
    made("names", "hard link", None, lambda folder: os.link(folder / "config.json", folder / "b.json")),
    *each("names", None, {"figures/a (1) [x], y=2 @3.png": PNG, "a/b/c.txt": "x", "v1.5~beta+x.md": "x",
        "model copy.txt": "x"}),
    *(Case("names", f"no weights {n}", "no-weights", lambda folder, files=files: write(folder, files))
      for n, files in enumerate(({"config.json": CONFIG}, {"README.md": ""}, {"tokenizer.json": {}, "a.png": PNG}))),
]  # fmt: skip

CASES = [*FORMATS, *TEXTS, *JSON, *NAMES]
