"""The gate against hostile files: every one is refused for the reason it should be, and nothing is ever run."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import tracemalloc

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weight_files import (
    ASCII_PICKLE,
    BASE,
    CONFIG,
    MARKER,
    PICKLE,
    entry,
    facts,
    gguf_bytes,
    rules,
    safetensors_bytes,
    tensor,
    text,
    write,
    zipped,
)

from freehold.errors import Refused
from freehold.weights import describe, gguf, safetensors, verify
from freehold.weights.reading import Malformed

HOSTILE_GGUF = {
    "pickle": (PICKLE, "wrong-magic"),
    "zip": (zipped(), "wrong-magic"),
    "empty": (b"", "truncated"),
    "magic only": (b"GGUF", "truncated"),
    "version 1": (gguf_bytes(version=1), "gguf-version"),
    "big-endian": (gguf_bytes(version=3 << 24), "gguf-version"),
    "2^63 tensors": (gguf_bytes(counts=(1 << 63, 7)), "gguf-count"),
    "60,000 tensors in a small file": (gguf_bytes(counts=(60_000, 7)), "truncated"),
    "2^64-1 keys": (gguf_bytes(counts=(2, (1 << 64) - 1)), "gguf-count"),
    "string beyond the file": (gguf_bytes([text("k") + struct.pack("<IQ", 8, 9000)]), "truncated"),
    "string of 2^62 bytes": (gguf_bytes([text("k") + struct.pack("<IQ", 8, 1 << 62)]), "gguf-count"),
    "array of 2^40 numbers": (gguf_bytes([text("k") + struct.pack("<IIQ", 9, 4, 1 << 40)]), "gguf-count"),
    "array longer than the file": (gguf_bytes([text("k") + struct.pack("<IIQ", 9, 10, 1000)]), "truncated"),
    "array of 2^33 strings": (gguf_bytes([text("k") + struct.pack("<IIQ", 9, 8, 1 << 33)]), "gguf-count"),
    "array with a long string": (gguf_bytes([text("k") + struct.pack("<IIQQ", 9, 8, 1, 1 << 63)]), "truncated"),
    "nested array": (gguf_bytes([text("k") + struct.pack("<IIQ", 9, 9, 1)]), "gguf-nested-array"),
    "unknown value type": (gguf_bytes([text("k") + struct.pack("<IQ", 13, 1)]), "gguf-value-type"),
    "unknown array type": (gguf_bytes([text("k") + struct.pack("<IIQ", 9, 77, 1)]), "gguf-value-type"),
    "boolean 2": (gguf_bytes([text("k") + struct.pack("<IB", 7, 2)]), "gguf-bool"),
    "boolean 2 in an array": (gguf_bytes([text("k") + struct.pack("<IIQB", 9, 7, 1, 2)]), "gguf-bool"),
    "duplicate key": (gguf_bytes([*BASE, BASE[1]]), "duplicate-key"),
    "control character in a key": (gguf_bytes([*BASE, entry("a\x1b[2J", 1)]), "gguf-name"),
    "empty key": (gguf_bytes([*BASE, entry("", 1)]), "gguf-name"),
    "alignment 0": (gguf_bytes([*BASE, entry("general.alignment", 0)]), "gguf-alignment"),
    "alignment 48": (gguf_bytes([*BASE, entry("general.alignment", 48)]), "gguf-alignment"),
    "alignment 2^31": (gguf_bytes([*BASE, entry("general.alignment", 1 << 31)]), "gguf-alignment"),
    "alignment a text": (gguf_bytes([*BASE, entry("general.alignment", "32")]), "gguf-alignment"),
    "no dimension": (gguf_bytes(tensors=[tensor("a", (), 0, 0)], data=b""), "gguf-rank"),
    "nine dimensions": (gguf_bytes(tensors=[tensor("a", (1,) * 9, 0, 0)], data=b"\0" * 32), "gguf-rank"),
    "2^32-1 dimensions": (gguf_bytes(tensors=[text("a") + struct.pack("<I", 2**32 - 1) + b"\0" * 40]), "gguf-rank"),
    "dimension 0": (gguf_bytes(tensors=[tensor("a", (0, 4), 0, 0)], data=b""), "gguf-shape"),
    "half a block": (gguf_bytes(tensors=[tensor("a", (100, 4), 12, 0)], data=b""), "gguf-shape"),
    "product past 2^64": (gguf_bytes(tensors=[tensor("a", (1 << 40, 1 << 40), 0, 0)], data=b""), "gguf-end"),
    "unknown tensor type": (gguf_bytes(tensors=[tensor("a", (32,), 99, 0)]), "gguf-tensor-type"),
    "removed tensor type": (gguf_bytes(tensors=[tensor("a", (32,), 4, 0)]), "gguf-tensor-type"),
    "long tensor name": (gguf_bytes(tensors=[tensor("a" * 64, (32,), 0, 0)]), "gguf-count"),
    "duplicate tensor": (
        gguf_bytes(tensors=[tensor("a", (32,), 0, 0), tensor("a", (32,), 0, 128)]),
        "duplicate-tensor",
    ),
    "overlap": (gguf_bytes(tensors=[tensor("a", (256, 2), 0, 0), tensor("b", (32,), 1, 1024)]), "gguf-offset"),
    "hole": (gguf_bytes(tensors=[tensor("a", (256, 2), 0, 0), tensor("b", (32,), 1, 4096)]), "gguf-offset"),
    "not aligned": (gguf_bytes(tensors=[tensor("a", (256, 2), 0, 0), tensor("b", (32,), 1, 2049)]), "gguf-offset"),
    "out of order": (gguf_bytes(tensors=[tensor("b", (32,), 1, 2048), tensor("a", (256, 2), 0, 0)]), "gguf-offset"),
    "trailing data": (gguf_bytes() + zipped(), "gguf-end"),
    "missing data": (gguf_bytes()[:-32], "gguf-end"),
}

HOSTILE_SAFETENSORS = {
    "pickle": (PICKLE, "safetensors-header"),
    "zip": (zipped(), "safetensors-header"),
    "seven bytes": (b"\1" * 7, "truncated"),
    "header of 2^63": (safetensors_bytes(length=1 << 63), "safetensors-header"),
    "header longer than the file": (safetensors_bytes(length=5000), "truncated"),
    "header over 100 MB": (safetensors_bytes(length=100_000_001), "safetensors-header"),
    "not an object": (safetensors_bytes(raw=b"[1]", data=b""), "wrong-magic"),
    "leading blank": (safetensors_bytes(raw=b' {"a":1}', data=b""), "wrong-magic"),
    "not JSON": (safetensors_bytes(raw=b'{"a":}', data=b""), "bad-json"),
    "not UTF-8": (safetensors_bytes(raw=b'{"\xff":1}', data=b""), "not-utf8"),
    "too deep": (safetensors_bytes(raw=b'{"a":' + b"[" * 5000, data=b""), "json-too-deep"),
    "NaN": (safetensors_bytes(raw=b'{"a":NaN}', data=b""), "bad-number"),
    "duplicate tensor": (
        safetensors_bytes(raw=b'{"w":%b,"w":%b}' % ((json.dumps(facts()).encode(),) * 2)), "duplicate-key",
    ),
    "no dtype": (safetensors_bytes({"w": {"shape": [8], "data_offsets": [0, 16]}}), "safetensors-tensor"),
    "extra field": (safetensors_bytes({"w": {**facts(), "code": "x"}}), "safetensors-tensor"),
    "tensor is a number": (safetensors_bytes({"w": 7}), "safetensors-tensor"),
    "unknown dtype": (safetensors_bytes({"w": facts("OBJECT")}), "safetensors-dtype"),
    "dtype a list": (safetensors_bytes({"w": {**facts(), "dtype": ["F16"]}}), "safetensors-dtype"),
    "negative dimension": (safetensors_bytes({"w": facts(shape=(-2, -4))}), "safetensors-tensor"),
    "boolean dimension": (safetensors_bytes({"w": {**facts(), "shape": [True, 8]}}), "safetensors-tensor"),
    "end before start": (safetensors_bytes({"w": facts(offsets=(16, 0))}), "safetensors-size"),
    "shape and size differ": (safetensors_bytes({"w": facts(shape=(2, 5))}), "safetensors-size"),
    "overlap": (safetensors_bytes({"v": facts(), "w": facts(offsets=(8, 24))}, b"\0" * 24), "safetensors-offset"),
    "hole": (safetensors_bytes({"v": facts(), "w": facts(offsets=(24, 40))}, b"\0" * 40), "safetensors-offset"),
    "hole at the start": (safetensors_bytes({"w": facts(offsets=(8, 24))}, b"\0" * 24), "safetensors-offset"),
    "trailing data": (safetensors_bytes(data=b"\0" * 16 + PICKLE), "safetensors-end"),
    "missing data": (safetensors_bytes(data=b"\0" * 15), "safetensors-end"),
    "metadata a number": (safetensors_bytes({"__metadata__": {"a": 1}, "w": facts()}), "safetensors-metadata"),
    "metadata a list": (safetensors_bytes({"__metadata__": [], "w": facts()}), "safetensors-metadata"),
    "control character in a name": (safetensors_bytes({"w\x1b[2J": facts()}), "safetensors-name"),
}  # fmt: skip

HOSTILE_SIDE_FILES = {
    "modeling.py": ("print()", "code"),
    "kernel.so": (b"\x7fELF", "code"),
    "pytorch_model.bin": (PICKLE, "pickle"),
    "model.pt": (zipped(), "pickle"),
    "MODEL.PKL": (PICKLE, "pickle"),
    "weights.tar.gz": (b"\x1f\x8b", "archive"),
    "data.zip": (zipped(), "archive"),
    "model.onnx": (b"\x08", "unknown-format"),
    "upper.SAFETENSORS": (PICKLE, "unknown-format"),
    "noextension": (PICKLE, "unknown-format"),
    "page.html": ("<script>", "unknown-format"),
    "config.json": ({**CONFIG, "auto_map": {"AutoModel": "modeling.X"}}, "remote-code"),
    "tokenizer_config.json": ({"a": [{"trust_remote_code": True}]}, "remote-code"),
    "generation_config.json": ({"custom_generate": "someone/else"}, "remote-code"),
    "adapter_config.json": ({"auto_mapping": {"parent_library": "x"}}, "remote-code"),
    "double.json": ('{"a": 1, "a": 2}', "duplicate-key"),
    "nan.json": ("[NaN]", "bad-number"),
    "huge.json": ("[1e999]", "bad-number"),
    "digits.json": ("[" + "9" * 5000 + "]", "bad-json"),
    "deep.json": ("[" * 100 + "]" * 100, "json-too-deep"),
    "closing.json": ("]" * 100, "bad-json"),
    "latin.json": (b'"\xe9"', "not-utf8"),
    "utf16.json": ('{"a": 1}'.encode("utf-16"), "not-utf8"),
    "pickle.json": (PICKLE, "not-utf8"),
    "pickle.txt": (ASCII_PICKLE, "not-text"),
    "binary.md": (PICKLE, "not-text"),
    "LICENSE": (b"#!/bin/sh\n", "not-text"),
    "nul.jinja": (b"a\0b", "not-text"),
    "photo.png": (PICKLE, "wrong-magic"),
    "card.pdf": (b"MZ", "wrong-magic"),
    ".hidden": ("x", "hidden"),
    ".git/hooks/post-checkout": ("x", "hidden"),
    "caf\N{LATIN SMALL LETTER E WITH ACUTE}.txt": ("x", "bad-name"),
    "m\N{CYRILLIC SMALL LETTER O}del.safetensors": (safetensors_bytes(), "bad-name"),
    "new\nline.txt": ("x", "bad-name"),
    "-rf": ("x", "bad-name"),
    "a/b/c/d/e/f/g/h/i/j.txt": ("x", "too-deep"),
    "model.safetensors.index.json": ({"weight_map": {"w": "../../secret.safetensors"}}, "missing-shard"),
    "m.safetensors.index.json": ({"weight_map": {"w": "model-00002-of-00002.safetensors"}}, "missing-shard"),
    "n.safetensors.index.json": ({"weight_map": ["x"]}, "bad-index"),
}


@pytest.mark.parametrize(("content", "rule"), HOSTILE_GGUF.values(), ids=HOSTILE_GGUF)
def test_hostile_gguf_is_refused(tmp_path, content, rule):
    verdict = verify(write(tmp_path, {"m.gguf": content}) / "m.gguf")
    assert (verdict.accepted, rules(verdict)) == (False, {rule})
    assert all(finding.why and finding.fix for finding in verdict.findings)
    with pytest.raises(Refused, match=rule):
        describe(tmp_path / "m.gguf")


@pytest.mark.parametrize(("content", "rule"), HOSTILE_SAFETENSORS.values(), ids=HOSTILE_SAFETENSORS)
def test_hostile_safetensors_is_refused(tmp_path, content, rule):
    verdict = verify(write(tmp_path, {"config.json": CONFIG, "model.safetensors": content}))
    assert (verdict.accepted, rules(verdict)) == (False, {rule})
    with pytest.raises(Refused, match=rule):
        describe(tmp_path)


@pytest.mark.parametrize(("name", "content", "rule"), [(name, *case) for name, case in HOSTILE_SIDE_FILES.items()])
def test_hostile_side_file_is_refused(tmp_path, monkeypatch, name, content, rule):
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "model", {"model.safetensors": safetensors_bytes(), name: content})
    verdict = verify(folder)
    assert (verdict.accepted, rules(verdict)) == (False, {rule})
    msgspec.json.encode(verdict)  # whatever the names were
    assert not MARKER.exists()


def test_links_special_files_and_executables_are_refused(tmp_path):
    outside = write(tmp_path / "outside", {"secret.txt": "x"})
    folder = write(tmp_path / "model", {"model.safetensors": safetensors_bytes(), "sub/README.md": "x", "run.txt": "x"})
    (folder / "leaves.txt").symlink_to(outside / "secret.txt")
    (folder / "folder.txt").symlink_to(folder / "sub")
    (folder / "broken.txt").symlink_to("nowhere")
    (folder / "loop.txt").symlink_to("loop.txt")
    os.mkfifo(folder / "fifo.gguf")
    (folder / "run.txt").chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.json"))
        verdict = verify(folder)
    assert {(finding.path, finding.rule) for finding in verdict.findings} == {
        ("leaves.txt", "link-outside"), ("folder.txt", "special-file"), ("broken.txt", "broken-link"),
        ("loop.txt", "broken-link"), ("fifo.gguf", "special-file"), ("socket.json", "special-file"),
        ("run.txt", "executable"),
    }  # fmt: skip
    assert [artifact.path for artifact in verdict.artifacts] == ["model.safetensors", "run.txt", "sub/README.md"]


def test_a_fifo_named_directly_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "m.gguf")
    assert rules(verify(tmp_path / "m.gguf")) == {"special-file", "no-weights"}


def test_names_that_differ_only_in_case_are_refused(tmp_path):
    write(tmp_path, {"m.gguf": gguf_bytes(), "A.txt": "x", "a.txt": "x"})
    if len(list(tmp_path.iterdir())) == 3:  # not on a file system that folds case
        assert rules(verify(tmp_path)) == {"name-collision"}


def test_a_folder_without_weights_or_with_too_many_files_is_refused(tmp_path, monkeypatch):
    assert rules(verify(write(tmp_path, {"README.md": "x", "config.json": CONFIG}))) == {"no-weights"}
    monkeypatch.setattr("freehold.weights.files.MAX_FILES", 1)
    assert "too-many-files" in rules(verify(tmp_path))


def test_a_side_file_past_the_limit_is_not_read(tmp_path):
    write(tmp_path, {"m.gguf": gguf_bytes(), "big.json": b""})
    os.truncate(tmp_path / "big.json", 100 << 20)
    tracemalloc.start()
    assert rules(verify(tmp_path)) == {"too-big"}
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_json_that_would_fill_the_memory_is_refused_before_it_is_parsed(tmp_path):
    write(tmp_path, {"m.gguf": gguf_bytes(), "lists.json": b"[" + b"[]," * 1_000_000 + b"[]]"})
    assert rules(verify(tmp_path)) == {"json-too-big"}


GGUF_SAMPLE = gguf_bytes([*BASE, entry("b", True), entry("n", [1, 2])])
SAFETENSORS_SAMPLE = safetensors_bytes({"v": facts(), "w": facts("F32", (4,), (16, 32))}, b"\0" * 32)


@st.composite
def mutations(draw, sample: bytes) -> bytes:
    """The sample with a few bytes or 64-bit words replaced, then perhaps cut or lengthened."""
    data = bytearray(sample)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 9))
        if draw(st.booleans()):
            data[at] = draw(st.integers(0, 255))
        else:
            data[at : at + 8] = struct.pack(
                "<Q", draw(st.sampled_from([0, 1, 255, 2**31, 2**32 - 1, 2**62, 2**64 - 1]))
            )
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data) + draw(st.binary(max_size=9))


def check_bounded(read_header, data: bytes) -> None:
    refusal = None
    tracemalloc.start()
    try:
        read_header(io.BytesIO(data), len(data))
    except Malformed as error:
        refusal = error
    finally:
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak_bytes < 1 << 20
    assert refusal is None or (refusal.rule and refusal.why.isprintable())


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(mutations(GGUF_SAMPLE))
def test_a_mutated_gguf_header_gives_a_header_or_a_finding_and_never_allocates_much(data):
    check_bounded(gguf.read_header, data)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(mutations(SAFETENSORS_SAMPLE))
def test_a_mutated_safetensors_header_gives_a_header_or_a_finding_and_never_allocates_much(data):
    check_bounded(safetensors.read_header, data)


@pytest.mark.parametrize("sample", [GGUF_SAMPLE, SAFETENSORS_SAMPLE], ids=["gguf", "safetensors"])
def test_every_truncation_is_refused(sample):
    read_header = gguf.read_header if sample is GGUF_SAMPLE else safetensors.read_header
    read_header(io.BytesIO(sample), len(sample))
    for length in range(len(sample)):
        with pytest.raises(Malformed):
            read_header(io.BytesIO(sample[:length]), length)
        with pytest.raises(Malformed):  # shorter than its size says, as when it is cut while it is read
            read_header(io.BytesIO(sample[: min(length, 100)]), len(sample))
