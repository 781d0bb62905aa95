"""The gate and what it lets through: clean files pass and are described, pins hold, the command says so."""

from __future__ import annotations

import hashlib
import io
import os
import struct
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from weight_files import (
    BASE,
    CONFIG,
    PICKLE,
    SHAPE,
    entry,
    facts,
    gguf_bytes,
    rules,
    safetensors_bytes,
    tensor,
    text,
    write,
)

from freehold.cli.verify import command
from freehold.errors import BadRequest, Refused, Unknown
from freehold.types import Verdict
from freehold.weights import describe, gguf, verify

# -- clean ones ------------------------------------------------------------------------------------------------------


def clean_folder(tmp_path: Path) -> Path:
    index = {"metadata": {"total_size": 32}, "weight_map": {"w": "model-00001-of-00002.safetensors"}}
    index["weight_map"]["v"] = "model-00002-of-00002.safetensors"
    return write(
        tmp_path / "model",
        {
            "config.json": {**CONFIG, "trust_remote_code": False},
            "tokenizer.json": {"model": {"vocab": {"auto_map": 1, "__class__": 2}}},
            "tokenizer_config.json": {"chat_template": "{{ messages }}", "auto_map": None},
            "model.safetensors.index.json": index,
            "model-00001-of-00002.safetensors": safetensors_bytes(),
            "model-00002-of-00002.safetensors": safetensors_bytes({"v": facts()}),
            "chat_template.jinja": "{% for m in messages %}{{ m }}{% endfor %}",
            "README.md": "1. one\n2. two\n",
            "terms.txt": "cats and\ndogs\n1. x",
            "b.txt": "b. x",
            "LICENSE": "Apache",
            ".gitattributes": "*.safetensors filter=lfs",
            "assets/logo.png": b"\x89PNG\r\n\x1a\n...",
            "paper.pdf": b"%PDF-1.7",
        },
    )


def test_a_sharded_safetensors_folder_passes_and_is_described(tmp_path):
    folder = clean_folder(tmp_path)
    verdict = verify(folder)
    assert (verdict.findings, verdict.accepted, verdict.pinned) == ((), True, "unpinned")
    build = describe(folder)
    assert (build.name, build.format, build.precision, build.weight_bytes) == ("model", "safetensors", "F16", 32)
    assert (build.layers, build.kv_heads, build.key_dim, build.vocabulary, build.context) == (2, 2, 16, 100, 512)


def test_an_adapter_folder_passes_but_is_no_model(tmp_path):
    adapter = {
        "base_model_name_or_path": "x/y",
        "r": 2,
        "lora_alpha": 4,
        "peft_type": "LORA",
        "target_modules": ["q_proj"],
    }
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    pair = {
        f"{module}.lora_A.weight": facts(shape=(2, 4)),
        f"{module}.lora_B.weight": facts(shape=(4, 2), offsets=(16, 32)),
    }
    weights = safetensors_bytes(pair, b"\1" * 32)
    write(tmp_path, {"adapter_config.json": adapter, "adapter_model.safetensors": weights})
    assert verify(tmp_path).accepted
    with pytest.raises(Unknown):
        describe(tmp_path)


@pytest.mark.parametrize("kind", gguf.TENSOR_TYPES)
def test_gguf_of_every_type_passes_and_is_described(tmp_path, kind):
    name, block, block_bytes = gguf.TENSOR_TYPES[kind]
    data = b"\0" * (-(-3 * block_bytes // 32) * 32)
    content = gguf_bytes(tensors=[tensor("w", (block, 3), kind, 0)], data=data)
    write(tmp_path, {"padded.gguf": content, "plain.gguf": content[: len(content) - len(data) + 3 * block_bytes]})
    assert verify(tmp_path).findings == ()
    build = describe(tmp_path / "padded.gguf")
    assert (build.precision, build.weight_bytes, build.vocabulary, build.context) == (name, len(content), 4, 2048)
    assert (build.layers, build.kv_heads, build.key_dim, build.value_dim, build.hidden_size) == (2, 2, 16, 16, 64)


def test_gguf_versions_values_and_layouts_that_are_legitimate(tmp_path):
    many = [entry("u", -1 & 0xFFFFFFFF), entry("f", 0.5), entry("b", True), entry("n", [1, 2]), entry("e", [])]
    long = text("scores") + struct.pack("<IIQ", 9, 6, 5000) + b"\0" * 20_000
    aligned = gguf_bytes([*BASE, entry("general.alignment", 64)], alignment=64)
    files = {
        "v2.gguf": gguf_bytes(version=2),
        "values.gguf": gguf_bytes([*BASE, *many, long]),
        "aligned.gguf": aligned,
        "vocab.gguf": gguf_bytes(tensors=[], data=b""),
    }
    assert verify(write(tmp_path, files)).findings == ()
    header = gguf.read_header(io.BytesIO(files["values.gguf"]), len(files["values.gguf"]))
    assert header.metadata["n"] == gguf.Array(2, (1, 2))
    assert header.metadata["scores"] == gguf.Array(5000)
    assert header.metadata["b"] is True


def test_layers_that_differ_are_described_by_the_largest(tmp_path):
    entries = [entry(key, [2, 8, 4] if key.endswith("_kv") else value) for key, value in SHAPE.items()]
    build = describe(write(tmp_path, {"m.gguf": gguf_bytes(entries)}) / "m.gguf")
    assert build.kv_heads == 8


def test_a_split_gguf_is_verified_and_described_as_a_whole(tmp_path):
    parts = {f"big-0000{part}-of-00002.gguf": gguf_bytes(None if part == 1 else []) for part in (1, 2)}
    first = write(tmp_path, {**parts, "other.gguf": gguf_bytes()}) / "big-00001-of-00002.gguf"
    assert [artifact.path for artifact in verify(first).artifacts] == list(parts)
    assert describe(first).weight_bytes == sum(len(content) for content in parts.values())
    (tmp_path / "big-00002-of-00002.gguf").unlink()
    with pytest.raises(Refused, match="1 of 2 parts"):
        describe(first)
    with pytest.raises(Unknown, match="2 GGUF models"):
        describe(tmp_path)


def test_a_hugging_face_cache_passes_whole_by_snapshot_and_by_file(tmp_path):
    plain = clean_folder(tmp_path)
    repo = tmp_path / "models--meta--tiny"
    snapshot = repo / "snapshots" / ("c" * 40)
    for source in (path for path in plain.rglob("*") if path.is_file()):
        content = source.read_bytes()
        blob = repo / "blobs" / hashlib.sha256(content).hexdigest()
        write(repo, {f"blobs/{blob.name}": content})
        link = snapshot / source.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    write(repo, {"refs/main": "c" * 40})
    assert verify(snapshot).findings == ()
    assert verify(snapshot).digest == verify(plain).digest
    assert verify(repo).findings == ()
    assert verify(snapshot / "model-00001-of-00002.safetensors").accepted
    assert describe(snapshot).name == "meta/tiny"
    write(repo, {"blobs/" + "0" * 64: PICKLE})
    assert rules(verify(repo)) == {"unfinished-download"}  # a blob that no snapshot names
    (snapshot / "README.md").unlink()
    (snapshot / "README.md").symlink_to("/etc/hostname")
    assert rules(verify(snapshot)) == {"link-outside"}


# -- digests and pins ------------------------------------------------------------------------------------------------


def test_the_digest_is_over_sorted_lines_of_digest_size_and_name(tmp_path):
    content = gguf_bytes()
    write(tmp_path, {"m.gguf": content, "sub/README.md": "hi"})
    digests = [(hashlib.sha256(content).hexdigest(), len(content), "m.gguf")]
    digests.append((hashlib.sha256(b"hi").hexdigest(), 2, "sub/README.md"))
    lines = sorted(f"{sha256}  {size}  {name}\n" for sha256, size, name in digests)
    verdict = verify(tmp_path)
    assert verdict.digest == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert [(each.sha256, each.size_bytes, each.path) for each in verdict.artifacts] == digests


def test_a_pin_accepts_the_same_files_and_refuses_any_change(tmp_path):
    folder = clean_folder(tmp_path)
    pin = verify(folder).digest
    assert (verify(folder, pin.upper()).pinned, verify(folder, pin).accepted) == ("pinned", True)
    (folder / "README.md").write_text("changed")
    changed = verify(folder, pin)
    assert (changed.accepted, changed.pinned, rules(changed)) == (False, "changed", {"digest-changed"})
    assert pin in changed.findings[0].why
    assert changed.digest in changed.findings[0].why


def test_a_file_that_changes_while_it_is_checked_is_refused(tmp_path, monkeypatch):
    write(tmp_path, {"m.gguf": gguf_bytes()})
    real = hashlib.file_digest

    def change_then_digest(stream, name):
        (tmp_path / "m.gguf").write_bytes(gguf_bytes() + PICKLE)
        return real(stream, name)

    monkeypatch.setattr("hashlib.file_digest", change_then_digest)
    verdict = verify(tmp_path)
    assert (rules(verdict), verdict.digest) == ({"unreadable"}, "")


def test_what_is_not_there_or_no_pin_says_what_to_do(tmp_path):
    for door in (verify, describe):
        with pytest.raises(Unknown) as unknown:
            door(tmp_path / "nothing")
        assert unknown.value.hint
    with pytest.raises(BadRequest):
        verify(tmp_path, "sha256:1234")


@pytest.mark.parametrize("missing", [key for key in SHAPE if not key.endswith("_kv")])
def test_describe_refuses_a_header_that_leaves_a_fact_out(tmp_path, missing):
    entries = [entry(*pair) for pair in SHAPE.items() if pair[0] != missing]
    write(tmp_path, {"m.gguf": gguf_bytes(entries)})
    with pytest.raises(Refused, match="missing-fact"):
        describe(tmp_path / "m.gguf")


# -- the command -----------------------------------------------------------------------------------------------------


def test_verify_command_says_unpinned_plainly_and_its_exit_status_is_the_verdict(tmp_path):
    write(tmp_path, {"m.gguf": gguf_bytes()})
    pin = verify(tmp_path).digest
    accepted = CliRunner().invoke(command, [str(tmp_path)], obj=Path("no.toml"))
    assert (accepted.exit_code, "UNPINNED" in accepted.stdout, f"--pin {pin}" in accepted.stdout) == (0, True, True)
    pinned = CliRunner().invoke(command, [str(tmp_path), "--pin", pin], obj=Path("no.toml"))
    assert (pinned.exit_code, "ACCEPTED, PINNED" in pinned.stdout) == (0, True)
    write(tmp_path, {"x.py": ""})
    refused = CliRunner().invoke(command, [str(tmp_path), "--json"], obj=Path("no.toml"))
    assert refused.exit_code == 3
    assert rules(msgspec.json.decode(refused.stdout, type=Verdict)) == {"code"}
    assert "[code]" in CliRunner().invoke(command, [str(tmp_path)], obj=Path("no.toml")).stdout


def test_one_shard_that_was_named_itself_is_judged_alone(tmp_path):
    write(tmp_path, {"model-00001-of-00002.safetensors": safetensors_bytes()})
    assert verify(tmp_path / "model-00001-of-00002.safetensors").accepted
