"""The gate beside its corpus: headers that are mutated or cut, bounded memory, and folders that change underneath."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from corpus_bytes import CASES as BYTES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weight_files import BASE, entry, facts, gguf_bytes, rules, safetensors_bytes, write

from freehold.errors import Refused
from freehold.weights import describe, gguf, hashing, safetensors, verify
from freehold.weights.files import list_files
from freehold.weights.gate import disguise, examine
from freehold.weights.hashing import hash_files
from freehold.weights.reading import Malformed, parse_json

OF_HEADERS = ("gguf-", "safetensors-", "truncated", "wrong-magic", "duplicate", "bad-", "not-utf8", "json-")
ELSEWHERE = ("gguf-padding", "gguf-vocabulary")  # said by the gate, once the header is read


@pytest.mark.parametrize(
    "case", [case for case in BYTES if (case.rule or "").startswith(OF_HEADERS)], ids=lambda case: case.name
)
def test_what_the_gate_refuses_in_a_header_is_not_described(tmp_path, case):
    if case.rule in ELSEWHERE:
        return
    folder = case.build(tmp_path)
    with pytest.raises(Refused, match=case.rule):
        describe(folder / "m.gguf" if (folder / "m.gguf").exists() else folder)


def test_a_fifo_named_directly_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "m.gguf")
    assert rules(verify(tmp_path / "m.gguf")) == {"special-file", "no-weights"}


def test_a_folder_with_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("freehold.weights.files.MAX_FILES", 1)
    assert "too-many-files" in rules(verify(write(tmp_path, {"README.md": "x", "m.gguf": gguf_bytes()})))


def swap_link(folder: Path) -> None:
    (folder / "m.gguf").unlink()
    (folder / "m.gguf").symlink_to("other.gguf")


def rewrite_and_hide(folder: Path) -> None:
    before = (folder / "real.gguf").stat()
    (folder / "real.gguf").write_bytes(gguf_bytes(data=b"\2" * (2048 + 64)))
    os.utime(folder / "real.gguf", ns=(before.st_atime_ns, before.st_mtime_ns))


def swap_file(folder: Path) -> None:
    (folder / "other.gguf").rename(folder / "real.gguf")


@pytest.mark.parametrize("change", [swap_link, rewrite_and_hide, swap_file])
def test_what_changes_after_it_was_listed_is_refused_by_gate_and_hash(tmp_path, change):
    write(tmp_path, {"real.gguf": gguf_bytes(), "other.gguf": gguf_bytes()})
    (tmp_path / "m.gguf").symlink_to("real.gguf")
    files, findings = list_files(tmp_path)
    assert findings == []
    change(tmp_path)
    assert ("m.gguf", "unreadable") in {(each.path, each.rule) for each in examine(files)}
    assert "m.gguf" in {each.path for each in hash_files(files)[1]}
    assert list_files(tmp_path)[0] != files


def test_a_link_that_is_swapped_while_it_is_hashed_is_refused(tmp_path, monkeypatch):
    write(tmp_path, {"real.gguf": gguf_bytes(), "other.gguf": gguf_bytes()})
    (tmp_path / "m.gguf").symlink_to("real.gguf")
    real = hashing.hashlib.file_digest

    def swap_then_digest(stream, name):
        if (tmp_path / "m.gguf").resolve().name == "real.gguf":
            swap_link(tmp_path)
        return real(stream, name)

    monkeypatch.setattr(hashing.hashlib, "file_digest", swap_then_digest)
    verdict = verify(tmp_path)
    assert ("m.gguf", "unreadable") in {(each.path, each.rule) for each in verdict.findings}


def test_books_of_the_hub_cache_are_checked_but_are_no_part_of_the_digest(tmp_path):
    write(tmp_path, {"m.gguf": gguf_bytes()})
    before = verify(tmp_path)
    metadata = f"{'c' * 40}\n{'e' * 64}\n1.5\n"
    write(tmp_path, {".cache/huggingface/download/m.gguf.metadata": metadata, ".cache/huggingface/.gitignore": "*"})
    after = verify(tmp_path)
    assert (after.accepted, after.digest, after.artifacts) == (True, before.digest, before.artifacts)


@pytest.mark.parametrize("name", ["big.json", "big.md", "tokenizer.model", "big.svg"])
def test_a_side_file_past_the_limit_is_not_read(tmp_path, name):
    write(tmp_path, {"m.gguf": gguf_bytes(), name: b'"' + b"a" * 100})
    with (tmp_path / name).open("r+b") as stream:
        stream.truncate(100 << 20)
    files, _ = list_files(tmp_path)
    tracemalloc.start()
    findings = examine(files)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [each.rule for each in findings] == ["too-big"]
    assert peak_bytes < 8 << 20


def test_what_a_check_stumbles_over_is_refused(tmp_path, monkeypatch):
    def stumble(*_):
        raise TypeError("unhashable type: 'list'")

    monkeypatch.setattr("freehold.weights.gate.config.check", stumble)
    verdict = verify(write(tmp_path, {"m.gguf": gguf_bytes(), "config.json": {}}))
    assert [(each.path, each.rule) for each in verdict.findings] == [("config.json", "unjudged")]
    assert not verdict.accepted


@pytest.mark.parametrize(
    "unit", [b"a/../", b"<a ", b"a: *b\n", b"- !a ", b"#41/J", b"eval ", b"A" * 39 + b" ", b"A" * 40 + b" ", b"{{ a"]
)
@pytest.mark.parametrize("name", ["config.json", "README.md", "a.svg", "a.yaml", "a.pdf", "chat_template.jinja"])
def test_a_side_file_as_long_as_may_be_takes_no_second(tmp_path, name, unit):
    limit_bytes = {"a.svg": 4, "a.yaml": 4, "chat_template.jinja": 1}.get(name, 15) << 20
    start = {"config.json": b'{"x":"', "a.svg": b"<svg>", "a.pdf": b"%PDF-1.7"}.get(name, b"")
    content = start + unit * (limit_bytes // len(unit) - 9) + b'"}' * name.endswith("json")
    files, _ = list_files(write(tmp_path, {"m.gguf": gguf_bytes(), name: content}))
    began = time.process_time()
    examine(files)
    assert time.process_time() - began < 2  # under one, on a machine that does nothing else


def test_random_weights_are_taken_for_nothing_else():
    """A model has up to 100,000 tensors: a test of their beginnings that errs once in as many would be useless."""
    source = random.Random(1)
    taken = [what for _ in range(30_000) if (what := disguise.nature(source.randbytes(48)))]
    assert taken == []


def test_infinity_is_read_where_genuine_configurations_have_it_and_nowhere_else():
    assert parse_json(b'{"a": {"time_step_limit": [0.0, Infinity]}}') == {"a": {"time_step_limit": [0.0, float("inf")]}}
    for text in (
        b'{"time_step_limit": [[Infinity]]}',
        b'{"time_step_limit": [Infinity], "b": [Infinity]}',
        b"-Infinity",
    ):
        with pytest.raises(Malformed, match="Infinity"):
            parse_json(text)


GGUF_SAMPLE = gguf_bytes([*BASE, entry("b", True), entry("n", [1, 2])])
SAFETENSORS_SAMPLE = safetensors_bytes({"v": facts(), "w": facts("F32", (4,), (16, 32))}, b"\0" * 32)
JSON_SAMPLE = json.dumps(
    {"a": [1, 2.5, None, {"b": "caf\u00e9", "c": {}}], "time_step_limit": [0.0, float("inf")]}
).encode()


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


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(mutations(JSON_SAMPLE))
def test_mutated_json_is_read_as_python_reads_it_or_gives_a_finding(data):
    check_bounded(lambda stream, _: parse_json(stream.read()), data)
    try:
        content = parse_json(data)
    except Malformed:
        return
    assert content == json.loads(data)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x80\4", b"PK\3\4", b"MZ", b"c", b"gASV", b"PK\5\6"]))
def test_any_bytes_have_a_nature_and_any_text_can_be_searched(data, start):
    data = start + data
    assert isinstance(disguise.nature(data), str)
    assert isinstance(disguise.hidden_in(data), str)
    assert isinstance(disguise.payload_in(data.decode(errors="surrogateescape")), str)
    assert isinstance(disguise.zip_at_end(io.BytesIO(data), len(data)), bool)


@pytest.mark.parametrize("sample", [GGUF_SAMPLE, SAFETENSORS_SAMPLE], ids=["gguf", "safetensors"])
def test_every_truncation_is_refused(sample):
    read_header = gguf.read_header if sample is GGUF_SAMPLE else safetensors.read_header
    read_header(io.BytesIO(sample), len(sample))
    for length in range(len(sample)):
        with pytest.raises(Malformed):
            read_header(io.BytesIO(sample[:length]), length)
        with pytest.raises(Malformed):  # shorter than its size says, as when it is cut while it is read
            read_header(io.BytesIO(sample[: min(length, 100)]), len(sample))
