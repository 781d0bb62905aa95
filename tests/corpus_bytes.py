"""The corpus: what is wrong or right in the bytes of weight files."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import tarfile

from corpus import Case, case
from weight_files import ASCII_PICKLE, BASE, PICKLE, SHAPE, entry, facts, gguf_bytes, safetensors_bytes, tensor, text
from weight_files import zipped as zip_bytes

from freehold.weights import gguf as gguf_format
from freehold.weights import safetensors as safetensors_format

ZIP = zip_bytes()
ELF = b"\x7fELF\2\1\1" + b"\0" * 57
PE = b"MZ\x90\0\3\0\0\0\4" + b"\0" * 51 + struct.pack("<I", 64) + b"PE\0\0" + b"\0" * 40
WASM = b"\0asm\1\0\0\0" + b"\0" * 16
NPY = b"\x93NUMPY\1\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }" + b" " * 60 + b"\n" + PICKLE


def tar_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("data.pkl")
        member.size = len(PICKLE)
        archive.addfile(member, io.BytesIO(PICKLE))
    return buffer.getvalue()


def g(name: str, rule: str | None, *contents: bytes) -> list[Case]:
    """GGUF files beside a clean model."""
    cases = enumerate(contents)
    return [case("gguf", f"{rule or 'clean'}: {name} {n}", rule, {"m.gguf": each}) for n, each in cases]


def s(name: str, rule: str | None, *contents: bytes) -> list[Case]:
    """Safetensors files in place of the clean one."""
    cases = enumerate(contents)
    return [
        case("safetensors", f"{rule or 'clean'}: {name} {n}", rule, {"model.safetensors": each}) for n, each in cases
    ]


def key(value: bytes) -> bytes:
    return gguf_bytes([*BASE, text("k") + value])


def with_entries(*entries: bytes) -> bytes:
    return gguf_bytes([*BASE, *entries])


def changed(**values) -> bytes:
    """A small model with other values, or more."""
    return gguf_bytes([entry(*each) for each in {**SHAPE, **values}.items()])


def one(shape: tuple[int, ...], kind: int = 0, data: bytes = b"\0" * 128, name: str = "a") -> bytes:
    return gguf_bytes(tensors=[tensor(name, shape, kind, 0)], data=data)


def two(offset: int, shape: tuple[int, ...] = (32,), kind: int = 1) -> bytes:
    return gguf_bytes(tensors=[tensor("a", (256, 2), 0, 0), tensor("b", shape, kind, offset)])


def typed(kind: int) -> bytes:
    """A clean file whose only tensor is of that type."""
    _, block, block_bytes = gguf_format.TENSOR_TYPES[kind]
    return one((block, 3), kind, b"\0" * (3 * block_bytes))


def holding(data: bytes, kind: int = 24) -> bytes:
    """A GGUF file with a tensor of these bytes."""
    return one((len(data),), kind, data)


PADDED = bytearray(one((3,), 0, b"\1" * 12 + b"\0" * 20))
IN_HEADER = bytearray(gguf_bytes([*BASE, entry("pad", "x")]))
IN_HEADER[len(IN_HEADER) - 2048 - 64 - 1] = 7
BETWEEN = gguf_bytes(
    tensors=[tensor("a", (3,), 0, 0), tensor("b", (8,), 0, 32)], data=b"\1" * 12 + ELF[:20] + b"\1" * 32
)

GGUF = [
    *g("starts otherwise", "wrong-magic", b"GGML" + gguf_bytes()[4:], b"\0" * 64, b"GGUg" + b"\0" * 60),
    *g("cut short", "truncated", b"", b"GGUF", gguf_bytes(counts=(60_000, 7)), key(struct.pack("<IQ", 8, 9000))),
    *g("array longer than the file", "truncated", key(struct.pack("<IIQ", 9, 10, 1000))),
    *g("string of 2^63 in an array", "truncated", key(struct.pack("<IIQQ", 9, 8, 1, 1 << 63))),
    *g("version", "gguf-version", gguf_bytes(version=1), gguf_bytes(version=3 << 24), gguf_bytes(version=4)),
    *g("counts", "gguf-count", gguf_bytes(counts=(1 << 63, 7)), gguf_bytes(counts=(2, (1 << 64) - 1))),
    *g("string of 2^62 bytes", "gguf-count", key(struct.pack("<IQ", 8, 1 << 62))),
    *g("array of 2^40 numbers", "gguf-count", key(struct.pack("<IIQ", 9, 4, 1 << 40))),
    *g("array of 2^33 strings", "gguf-count", key(struct.pack("<IIQ", 9, 8, 1 << 33))),
    *g("long tensor name", "gguf-count", one((32,), name="a" * 64)),
    *g("nested array", "gguf-nested-array", *(key(struct.pack("<IIQ", 9, 9, count) + b"\0" * 64) for count in (0, 1,
        9))),
    *g("value type", "gguf-value-type", key(struct.pack("<IQ", 13, 1)), key(struct.pack("<IIQ", 9, 77, 1))),
    *g("value type 2^32-1", "gguf-value-type", key(struct.pack("<IQ", 2**32 - 1, 1))),
    *g("boolean", "gguf-bool", key(struct.pack("<IB", 7, 2)), key(struct.pack("<IIQB", 9, 7, 1, 2))),
    *g("boolean 255", "gguf-bool", key(struct.pack("<IB", 7, 255))),
    *g("no number", "gguf-number", *(key(struct.pack("<If", 6, float(each))) for each in ("nan", "inf", "-inf"))),
    *g("NaN in an array", "gguf-number", key(struct.pack("<IIQ2d", 9, 12, 2, 1.0, float("nan")))),
    *g("long strings in an array", "gguf-long-string", *(with_entries(entry("k", ["a" * n])) for n in (16_385,
        99_999))),
    *g("a long token", "gguf-long-string", with_entries(entry("tags", ["a", "b" * 1_000_000]))),
    *g("17 MB of text", "gguf-too-big", *(with_entries(*(entry(f"{k}{n}", "a" * (6 << 20)) for n in "abc"))
        for k in "xyz")),
    *g("duplicate key", "duplicate-key", *(with_entries(BASE[n]) for n in range(3))),
    *g("key", "gguf-name", *(with_entries(entry(each, 1)) for each in ("a\x1b[2J", "", "\u0430", "a\0b", "a\nb"))),
    *g("tensor name", "gguf-name", one((32,), name="a\x1b[2J"), one((32,), name=""), one((32,), name="\u0430")),
    *g("alignment", "gguf-alignment", *(with_entries(entry("general.alignment", n)) for n in (0, 48, 1 << 31, 4,
        "32"))),
    *g("rank", "gguf-rank", one(()), one((1,) * 5), one((1,) * 9)),
    *g("rank 2^32-1", "gguf-rank", gguf_bytes(tensors=[text("a") + struct.pack("<I", 2**32 - 1) + b"\0" * 40])),
    *g("shape", "gguf-shape", one((0, 4)), one((100, 4), 12), one((4, 0, 4)), one((31,), 2)),
    *g("product past 2^64", "gguf-end", one((1 << 40, 1 << 40)), one((1 << 62, 4), 24)),
    *g("tensor type", "gguf-tensor-type", *(one((32,), kind) for kind in (4, 31, 38, 43, 99, 2**32 - 1))),
    *g("duplicate tensor", "duplicate-tensor", gguf_bytes(tensors=[tensor("a", (32,), 0, n * 128) for n in range(2)])),
    *g("duplicate tensor of another shape", "duplicate-tensor", gguf_bytes(tensors=[tensor("a", (8,), 0, 0),
        tensor("a", (16,), 1, 32)])),
    *g("overlap", "gguf-offset", two(1024), two(0), two(2016)),
    *g("hole", "gguf-offset", two(4096), two(2080)),
    *g("not aligned", "gguf-offset", two(2049)),
    *g("out of order", "gguf-offset", gguf_bytes(tensors=[tensor("b", (32,), 1, 2048), tensor("a", (256, 2), 0, 0)])),
    *g("trailing data", "gguf-end", gguf_bytes() + b"x", gguf_bytes() + PICKLE, gguf_bytes()[:-32]),
    *g("data in padding", "gguf-padding", BETWEEN, bytes(IN_HEADER), bytes(PADDED[:-1]) + b"x"),
    *g("scores", "gguf-vocabulary", with_entries(text("tokenizer.ggml.scores") + struct.pack("<IIQf", 9, 6, 1, 0.5))),
    *g("types", "gguf-vocabulary", *(with_entries(entry("tokenizer.ggml.token_type", [1] * n)) for n in (1, 3, 5))),
    *g("tensor is a program", "hidden-payload", *(holding(each) for each in (ELF, PE, WASM, PICKLE, NPY, ZIP[:40],
        tar_bytes()))),
    *g("tensor of floats is a program", "hidden-payload", one((16,), 0, ELF)),
    *g("text is a program", "hidden-payload", *(with_entries(entry("k", each.decode())) for each in (ASCII_PICKLE,
        b"#!/bin/sh\nx"))),
    *g("text holds a program", "hidden-payload", *(with_entries(entry("k", base64.b64encode(each).decode()))
        for each in (PICKLE, ELF, PE))),
    *g("bytes are a program", "hidden-payload", key(struct.pack("<IIQ", 9, 0, len(PICKLE)) + PICKLE)),
    *g("a template that is no text", "template-syntax", *(with_entries(entry("tokenizer.chat_template" + more, value))
        for more, value in (("", 1), ("", ["{{ a }}"]), (".tool_use", 1)))),
    *g("templates by name", None, with_entries(entry("tokenizer.chat_templates", ["rag"]),
        entry("tokenizer.chat_template.rag", "{{ a }}"))),
    *g("every type", None, *(typed(kind) for kind in gguf_format.TENSOR_TYPES)),
    *g("version 2", None, gguf_bytes(version=2)),
    *g("no tensor", None, gguf_bytes(tensors=[], data=b"")),
    *g("alignment 64", None, gguf_bytes([*BASE, entry("general.alignment", 64)], alignment=64)),
    *g("all kinds of values", None, with_entries(entry("f", 0.5), entry("b", True), entry("n", [1, 2]), entry("e",
        []))),
    *g("long texts", None, with_entries(entry("general.license.text", "Be excellent. " * 9000))),
    *g("bytes of a normaliser", None, key(struct.pack("<IIQ", 9, 0, 9000) + b"\0\xb4\2\0" * 2250)),
    *g("arrays that readers take for others", "gguf-value-type", *(with_entries(entry(f"tokenizer.ggml.{k}", v))
        for k, v in (("scores", [1, 1, 1, 1]), ("token_type", ["a"] * 4), ("merges", [1]), ("merges", "a b")))),
    *g("no list of tokens", "gguf-value-type", *(changed(**{"tokenizer.ggml.tokens": v}) for v in ("a", 7, [1, 2]))),
    *g("values of another kind", "gguf-key", *(changed(**{k: v}) for k, v in (("general.architecture", 7),
        ("general.architecture", ["llama"]), ("llama.context_length", "2048"), ("tokenizer.ggml.bos_token_id", "1"),
        ("llama.block_count", 2.0), ("tokenizer.ggml.model", 1), ("llama.block_count", True)))),
    *g("values beyond all reason", "gguf-key", *(changed(**{f"llama.{k}": v}) for k, v in (("block_count", 1 << 31),
        ("context_length", (1 << 32) - 1), ("embedding_length", 0), ("attention.head_count", 0)))),
    *g("an architecture that is a path", "gguf-key", changed(**{"general.architecture": "../x"})),
    *g("more experts in use than there are", "gguf-key", changed(**{"llama.expert_count": 8,
        "llama.expert_used_count": 9})),
    *g("a part after the last", "gguf-key", changed(**{"split.no": 9, "split.count": 1})),
    *g("a map of characters", "sentencepiece-shape", *(with_entries(entry("tokenizer.ggml.precompiled_charsmap",
        struct.pack("<IIQ", 9, 0, len(each)) + each)) for each in (b"\0\0\0\x80" + bytes(99), b"\1\2"))),
    *g("merged from parts", None, changed(**{"split.no": 0, "split.count": 0})),
    *g("a model without attention", None, changed(**{"general.architecture": "mamba", "mamba.ssm.conv_kernel": 4,
        "mamba.attention.head_count": 0, "mamba.context_length": 1 << 20})),
    *g("experts, and heads by layer", None, changed(**{"llama.expert_count": 8, "llama.expert_used_count": 8,
        "llama.attention.head_count": [4, 8], "tokenizer.ggml.padding_token_id": (1 << 32) - 1})),
    *g("a map of characters", None, with_entries(entry("tokenizer.ggml.precompiled_charsmap",
        struct.pack("<IIQI", 9, 0, 9000, 4096) + bytes(8996)))),
    *g("an adapter", None, with_entries(entry("general.type", "adapter"), entry("adapter.lora.alpha", 16.0))),
    *g("random weights", None, holding(bytes(range(256)) * 4)),
]  # fmt: skip

W = {"w": facts()}
NESTED = b'{"w":' + b"[" * 5000

SAFETENSORS = [
    *s("header length", "safetensors-header", safetensors_bytes(length=1 << 63), safetensors_bytes(length=25_000_001)),
    *s("header of nothing", "safetensors-header", safetensors_bytes(length=0), safetensors_bytes(length=1)),
    *s("cut short", "truncated", b"", b"\1" * 7, safetensors_bytes(length=5000)),
    *s("no object", "wrong-magic", *(safetensors_bytes(raw=each, data=b"") for each in (b"[1]", b' {"a":1}',
        b"\xef\xbb\xbf{}"))),
    *s("not JSON", "bad-json", *(safetensors_bytes(raw=each, data=b"") for each in (b'{"a":}', b'{"w":1}\0', b"{}}"))),
    *s("not UTF-8", "not-utf8", *(safetensors_bytes(raw=b'{"%b":1}' % each, data=b"") for each in (b"\xff", b"\xc3(",
        b"\xed\xa0\x80"))),
    *s("too deep", "json-too-deep", safetensors_bytes(raw=NESTED, data=b"")),
    *s("NaN", "bad-number", *(safetensors_bytes(raw=b'{"a":%b}' % each, data=b"") for each in (b"NaN", b"Infinity",
        b"1e999"))),
    *s("duplicate tensor", "duplicate-key", safetensors_bytes(raw=b'{"w":%b,"w":%b}' % ((json.dumps(facts()).encode(),
        ) * 2))),
    *s("duplicate metadata", "duplicate-key", safetensors_bytes(raw=b'{"__metadata__":{"a":"1","a":"2"}}', data=b"")),
    *s("duplicate field", "duplicate-key", safetensors_bytes(raw=b'{"w":{"dtype":"F16","dtype":"I64"}}', data=b"")),
    *s("too many tensors", "safetensors-count", *(
        safetensors_bytes(raw=b"{" + b",".join(b'"%d":{}' % each for each in range(count)) + b"}", data=b"")
        for count in ((1 << 18) + 1, 270_000, 300_000)
    )),
    *s("fields", "safetensors-tensor", *(safetensors_bytes({"w": each}) for each in (
        {"shape": [8], "data_offsets": [0, 16]}, {**facts(), "code": "x"}, 7, facts(shape=(-2, -4)),
        {**facts(), "shape": [True, 8]}, {**facts(), "data_offsets": [0]}, facts(shape=(1,) * 17), {**facts(),
            "shape": "2"},
    ))),
    *s("dtype", "safetensors-dtype", safetensors_bytes({"w": facts("OBJECT")}), safetensors_bytes({"w": {**facts(),
        "dtype": ["F16"]}})),
    *s("dtype in small letters", "safetensors-dtype", safetensors_bytes({"w": facts("f16")})),
    *s("sizes", "safetensors-size", *(safetensors_bytes({"w": each}) for each in (
        facts(offsets=(16, 0)), facts(shape=(2, 5)), facts("F4", (31,), (0, 16)), facts(shape=(1 << 62, 1 << 62)),
    ))),
    *s("overlap", "safetensors-offset", safetensors_bytes({"v": facts(), "w": facts(offsets=(8, 24))}, b"\0" * 24)),
    *s("hole", "safetensors-offset", safetensors_bytes({"v": facts(), "w": facts(offsets=(24, 40))}, b"\0" * 40)),
    *s("hole at the start", "safetensors-offset", safetensors_bytes({"w": facts(offsets=(8, 24))}, b"\0" * 24)),
    *s("trailing data", "safetensors-end", *(safetensors_bytes(data=b"\0" * 16 + each) for each in (PICKLE, b"\0",
        ELF))),
    *s("missing data", "safetensors-end", safetensors_bytes(data=b"\0" * 15)),
    *s("metadata", "safetensors-metadata", *(safetensors_bytes({"__metadata__": each, **W}) for each in ({"a": 1}, [],
        {"a": ["x"]}, None))),
    *s("name", "safetensors-name", *(safetensors_bytes({each: facts()}) for each in ("w\x1b[2J", "", "a\nb"))),
    *s("tensor is a program", "hidden-payload", *(
        safetensors_bytes({"w": facts(dtype, (len(each),), (0, len(each)))}, each)
        for dtype, each in (("U8", ELF), ("I8", PE), ("U8", PICKLE), ("U8", ZIP[:60]), ("BOOL", gzip.compress(PICKLE)),
            ("U8", NPY))
    )),
    *s("second tensor is a program", "hidden-payload", safetensors_bytes({"v": facts(), "w": facts("U8", (64,), (16,
        80))}, b"\0" * 16 + ELF)),
    *s("metadata is a program", "hidden-payload", *(safetensors_bytes({"__metadata__": {"a": each}, **W}) for each in (
        ASCII_PICKLE.decode(), PICKLE.decode("latin-1"), base64.b64encode(PICKLE).decode(), PICKLE.hex(), ELF.hex(),
        ELF.decode("latin-1"), base64.b64encode(PE).decode(), base64.urlsafe_b64encode(ZIP).decode(),
        "see " + base64.b64encode(gzip.compress(PICKLE)).decode(), base64.b64encode(ASCII_PICKLE).decode().rstrip("="),
    ))),
    *s("header padded with blanks", None, safetensors_bytes(raw=json.dumps(W).encode() + b" " * 5)),
    *s("an empty tensor", None, safetensors_bytes({"e": facts(shape=(0, 4), offsets=(0, 0)), **W})),
    *s("a number without dimension", None, safetensors_bytes({"n": facts("F32", (), (0, 4))}, b"\0" * 4)),
    *s("no tensor", None, safetensors_bytes({}, b"")),
    *s("every dtype", None, *(
        safetensors_bytes({"w": facts(dtype, (8,), (0, bits))}, b"\7" * bits) for dtype,
            bits in safetensors_format.BITS.items()
    )),
    *s("metadata is code", "code-in-value", *(safetensors_bytes({"__metadata__": {"a": each}, **W}) for each in (
        "__import__('os').system('x')", "import os; os.system('x')", "exec(open('x').read())"))),
    *s("metadata of trainers", None, safetensors_bytes({"__metadata__": {
        "format": "pt", "ss_tag_frequency": json.dumps({"a": {"b": 1}}), "modelspec.hash_sha256": "0x" + "a9" * 32,
        "modelspec.thumbnail": "data:image/jpeg;base64," + base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(900)).decode(),
    }, **W})),
    *s("packed weights", None, safetensors_bytes({"w": facts("U8", (1024,), (0, 1024))}, bytes(range(256)) * 4)),
]  # fmt: skip

CASES = [*GGUF, *SAFETENSORS]
