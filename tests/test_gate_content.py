"""The gate on what files say: every case of corpus_content, and the parts that a table does not show."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from corpus_adapters import LORA, TENSORS
from corpus_content import CASES, GPT2, SPM, bpe, piece
from hypothesis import given
from hypothesis import strategies as st

from freehold.weights import verify
from freehold.weights.files import File
from freehold.weights.gate import adapters, config, tokenizers
from freehold.weights.gate.patterns import complaint


def named(name: str) -> File:
    return File(name, Path(name), 1, 0o644, (0, 0, 0, 0, 0))


@pytest.mark.parametrize("each", CASES, ids=lambda each: f"{each.family}: {each.name}")
def test_a_case_is_refused_for_its_rule_or_accepted(each, tmp_path):
    each.build(tmp_path)
    verdict = verify(tmp_path)
    refused = {finding.rule for finding in verdict.findings if not finding.review}
    if each.rule is None:
        assert verdict.accepted, verdict.findings
    else:
        assert each.rule in refused
    assert ("(review)" in each.name) == any(finding.review for finding in verdict.findings if each.rule is None)


def test_every_rule_has_three_hostile_cases():
    counts = {case.rule: sum(each.rule == case.rule for each in CASES) for case in CASES if case.rule}
    assert not {rule: count for rule, count in counts.items() if count < 3}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(
        ["model", "vocab", "merges", "added_tokens", "normalizer", "type", "pattern", "Regex", "id", "content",
         "added_tokens_decoder", "special_tokens", "config", "r", "target_modules", "rank_pattern", "peft_type",
         "modules_to_save", "auto_map", "eos_token_id", "vocab_size", "padding", "strategy", "eos_token"]
    ) | st.text(max_size=5), inner, max_size=6), max_leaves=20,
)  # fmt: skip


@given(JSON)
def test_any_json_gets_an_answer(content):
    for name in ("tokenizer.json", "vocab.json", "tokenizer_config.json", "tekken.json"):
        tokenizers.check(named(name), content)
    config.check(named("config.json"), content)
    adapters.check(named("adapter_config.json"), content, TENSORS)
    if isinstance(content, dict):
        adapters.check(named("adapter_config.json"), {**LORA, **content}, TENSORS)
        tokenizers.check(named("tokenizer.json"), bpe(**content))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_sentencepiece_model_or_a_finding(data):
    assert len(tokenizers.check_sentencepiece(named("tokenizer.model"), data)) == 1


@given(st.integers(0, len(SPM) - 1))
def test_a_cut_sentencepiece_model_is_refused(at):
    assert tokenizers.check_sentencepiece(named("tokenizer.model"), SPM[:at] + b"\x00")


@given(st.text("ab()[]{}|*+?\\^.$=<!:0123456789,-", max_size=60))
def test_any_pattern_gets_an_answer(pattern):
    assert isinstance(complaint(pattern), str)


@pytest.mark.parametrize(
    "pattern",
    [GPT2, r"\d{1,3}(?=(?:\d{3})*\b)", r"(?=(\d{3})+(?!\d))", r"[^\n]+|[\n]+", r"(?i:'s|'t|'re)|\p{N}{1,3}",
     r"[]a]+[^]b]*", r"\d+(?:[.,]\d+)*", r"(?:\r?\n)+(?!\r?\n)", r"(?:\p{L}\p{M}*)+",
     r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|\s+(?!\S)", r"(?:foo\.)+\w", r"<\|[\w ]+\|>", r"\p{L}++\s?+"],
)  # fmt: skip
def test_patterns_in_use_pass(pattern):
    assert not complaint(pattern)


def test_a_large_tokenizer_takes_no_second():
    words = [f"{first:03}{second:03}" for first in range(500) for second in range(500)]
    vocabulary = {f"{at:03}": at for at in range(500)} | {word: at + 500 for at, word in enumerate(words)}
    content = bpe(vocab=vocabulary, merges=[f"{word[:3]} {word[3:]}" for word in words] * 2)
    content["added_tokens"] = []
    model = SPM + b"".join(piece(b"%d" % at) for at in range(1000, 51_000))
    started = time.process_time()
    assert tokenizers.check(named("tokenizer.json"), content) == []
    assert tokenizers.check_sentencepiece(named("tokenizer.model"), model) == []
    assert time.process_time() - started < 2


BASE = {"model.layers.0.self_attn.q_proj.weight": (64, 64), "model.layers.0.mlp.up_proj.qweight": (8, 64)}


@pytest.mark.parametrize(
    ("base", "word"),
    [
        (BASE, ""),
        ({"language_model." + name: shape for name, shape in BASE.items()}, ""),
        ({**BASE, "model.layers.0.self_attn.q_proj.weight": (128, 64)}, "made for 64 x 64"),
        ({"model.layers.0.self_attn.q_proj.weight": (2048, 1)}, ""),  # packed in four bits: cannot be compared
        ({"model.layers.0.self_attn.qkv_proj.weight": (192, 64)}, "none of"),
        ({}, ""),
    ],
)
def test_an_adapter_is_compared_with_its_base(base, word):
    misfits = adapters.fits(TENSORS, base)
    assert bool(misfits) == bool(word)
    assert not word or word in misfits[0]


def test_an_adapter_for_a_deeper_base_does_not_fit():
    deeper = {name.replace("layers.0", "layers.9"): shape for name, shape in TENSORS.items()}
    assert adapters.fits(deeper, BASE) == ["base_model.model.model.layers.9.self_attn.q_proj: the base has 1 layers"]


def test_the_base_is_named():
    assert adapters.base_of(LORA) == "owner/name"
    assert [adapters.base_of(each) for each in (None, {}, {"base_model_name_or_path": "../x"})] == ["", "", ""]
