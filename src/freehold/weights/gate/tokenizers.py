"""Tokenizers: ids that are what they say, texts and patterns of bounded size, nothing that hides.

Formats: tokenizer.json of https://github.com/huggingface/tokenizers, the maps beside it that transformers writes,
tekken.json of https://github.com/mistralai/mistral-common, and SentencePiece's protobuf,
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import Any

from freehold.types import Finding
from freehold.weights.files import File
from freehold.weights.gate import sentencepiece
from freehold.weights.gate.finding import refuse, review
from freehold.weights.gate.patterns import complaint
from freehold.weights.gate.templates import hidden_character
from freehold.weights.reading import Malformed, quoted

MAX_TOKENS = 2_000_000
MAX_ID = 10_000_000
MAX_TOKEN = 1_024  # characters; runs of blanks of 128 and more are genuine
MAX_TEXT = 4_096  # characters that a step of the pipeline puts in
MAX_CHARSMAP = 4 << 20
MAX_PADDING = 10_000_000

MODELS = {"BPE", "Unigram", "WordPiece", "WordLevel"}
STEPS = {
    "normalizer": set(
        str.split(
            "BertNormalizer Strip StripAccents NFC NFD NFKC NFKD Sequence Lowercase Nmt Precompiled Replace Prepend "
            "ByteLevel"
        )
    ),
    "pre_tokenizer": set(
        str.split(
            "BertPreTokenizer ByteLevel CharDelimiterSplit Metaspace Whitespace Sequence Split Punctuation "
            "WhitespaceSplit Digits UnicodeScripts FixedLength"
        )
    ),
    "post_processor": {"RobertaProcessing", "BertProcessing", "ByteLevel", "TemplateProcessing", "Sequence"},
    "decoder": set(str.split("ByteLevel WordPiece Metaspace BPEDecoder CTC Sequence Replace Fuse Strip ByteFallback")),
}
_FIX = "fetch the tokenizer again from the model's publisher"

Complaint = tuple[str, str]  # rule, why


def check(file: File, content: Any) -> list[Finding]:
    """Every reason to refuse a parsed tokenizer file, or to have a person look."""
    looks = {
        "tokenizer.json": _tokenizer,
        "vocab.json": _vocabularies,
        "added_tokens.json": _vocabularies,
        "tekken.json": _tekken,
    }
    look = looks.get(PurePosixPath(file.name).name.lower(), _special_tokens)
    found: dict[str, str] = {}
    for rule, why in look(content) if isinstance(content, dict) else [("tokenizer-shape", "no JSON object")]:
        found.setdefault(rule, why)
    return [
        review(file, rule, why, "compare the tokens with the publisher's own")
        if rule == "token-twin"
        else refuse(file, rule, why, _FIX)
        for rule, why in found.items()
    ]


def check_sentencepiece(file: File, data: bytes) -> list[Finding]:
    """Every reason to refuse a SentencePiece model."""
    try:
        sentencepiece.check(data)
    except Malformed as error:
        return [refuse(file, error.rule, error.why, _FIX)]
    return []


def _tokenizer(content: dict[str, Any]) -> Iterator[Complaint]:
    model = content.get("model")
    if not isinstance(model, dict) or str(model.get("type", "BPE")) not in MODELS:
        yield "tokenizer-shape", "has no model of a known type"
        return
    vocabulary = model.get("vocab")
    pieces: dict[str, Any] = {}
    if isinstance(vocabulary, dict):
        pieces = vocabulary
        yield from _ids(vocabulary)
    elif isinstance(vocabulary, list):
        yield from _unigram(vocabulary)
    else:
        yield "tokenizer-shape", "the model has no vocabulary"
    yield from _merges(model, pieces)
    yield from _added(content.get("added_tokens"), pieces)
    for place, known in STEPS.items():
        yield from _steps(content.get(place), place, known)
    padding = content.get("padding")
    strategy = padding.get("strategy") if isinstance(padding, dict) else None
    if isinstance(strategy, dict) and not _is_size(strategy.get("Fixed", 0), MAX_PADDING):
        yield "tokenizer-size", f"pads every text to {quoted(str(strategy))} tokens"


def _ids(vocabulary: dict[str, Any]) -> Iterator[Complaint]:
    """A vocabulary of half a million must not take long: whole collections at a time."""
    ids = vocabulary.values()
    if len(ids) > MAX_TOKENS:
        yield "tokenizer-size", f"{len(ids):,} tokens; at most {MAX_TOKENS:,} are read"
    elif any(kind is not int for kind in set(map(type, ids))):
        yield "token-id", "a token's id is no whole number"
    elif ids and min(ids) < 0:
        yield "token-id", f"the token id {min(ids)} is negative"
    elif len(set(ids)) != len(ids):
        yield "token-id", f"{len(ids):,} tokens share {len(set(ids)):,} ids: two of them mean the same to the model"
    elif ids and max(ids) >= min(MAX_ID, 10 * len(ids) + 1_000_000):
        yield "token-id", f"the token id {max(ids):,} of {len(ids):,} tokens"
    yield from _lengths(vocabulary)


def _lengths(tokens: Collection[str]) -> Iterator[Complaint]:
    if (longest := max(map(len, tokens), default=0)) > MAX_TOKEN:
        yield "tokenizer-size", f"a token of {longest:,} characters; at most {MAX_TOKEN:,} are read"


def _unigram(pieces: list[Any]) -> Iterator[Complaint]:
    if not all(isinstance(each, list) and len(each) == 2 and isinstance(each[0], str) for each in pieces):
        yield "tokenizer-shape", "a piece of the vocabulary is not a text with a score"
        return
    scores = [score for _, score in pieces]
    if any(kind not in {int, float} for kind in set(map(type, scores))) or not all(map(math.isfinite, scores)):
        yield "tokenizer-shape", "a piece has a score that is no number"
    texts = {text for text, _ in pieces}
    if len(pieces) > MAX_TOKENS:
        yield "tokenizer-size", f"{len(pieces):,} pieces; at most {MAX_TOKENS:,} are read"
    elif len(texts) != len(pieces):
        yield "token-id", f"{len(pieces) - len(texts):,} pieces occur twice"
    yield from _lengths(texts)


def _merges(model: dict[str, Any], vocabulary: dict[str, Any]) -> Iterator[Complaint]:
    merges = model.get("merges", [])
    if not isinstance(merges, list) or len(merges) > 4 * MAX_TOKENS:
        yield "tokenizer-shape", "merges is not a list, or too long a one"
        return
    joined = not model.get("continuing_subword_prefix")  # else what two pieces make is not their sum
    for each in merges:
        pair = each.split(" ", 2) if isinstance(each, str) else each
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], str):
            yield "tokenizer-shape", f"the merge {quoted(str(each))} is not of two pieces"
            return
        if pair[0] not in vocabulary or (joined and pair[0] + pair[1] not in vocabulary):
            yield "tokenizer-merge", f"the merge {quoted(str(each))} makes a token that is not in the vocabulary"
            return


def _added(tokens: Any, vocabulary: dict[str, Any]) -> Iterator[Complaint]:
    if not tokens:
        return
    if not isinstance(tokens, list) or not all(isinstance(each, dict) for each in tokens):
        yield "tokenizer-shape", "added_tokens is not a list of tokens"
        return
    ids: dict[int, str] = {}
    limit = min(MAX_ID, 10 * (len(tokens) + len(vocabulary)) + 1_000_000)
    for token in tokens:
        text, number = token.get("content"), token.get("id")
        if not isinstance(text, str) or not _is_size(number, limit):
            yield "token-id", f"the added token {quoted(str(text))} has the id {quoted(str(number))}"
            return
        if ids.setdefault(number, text) != text:
            yield "token-id", f"{quoted(text)} and {quoted(ids[number])} share the id {number}"
        if (own := vocabulary.get(text, number)) != number:
            yield (
                "token-id",
                f"the added token {quoted(text)} has the id {number}, in the vocabulary {quoted(str(own))}",
            )
        yield from _text(text, special=bool(token.get("special")))
    yield from _twins([*ids.values()])


def _text(text: str, *, special: bool) -> Iterator[Complaint]:
    yield from _lengths([text])
    if special and len(text) <= MAX_TOKEN and (character := hidden_character(text)):
        yield "token-character", f"the special token {quoted(text)} holds the invisible character {character}"


def _twins(texts: list[str]) -> Iterator[Complaint]:
    seen: dict[str, str] = {}
    for text in texts:
        if len(text) > MAX_TOKEN:
            continue
        plain = "".join(char for char in text if not hidden_character(char)) if hidden_character(text) else text
        if plain and seen.setdefault(plain, text) != text:
            yield "token-twin", f"{quoted(text)} and {quoted(seen[plain])} differ only in what cannot be seen"


def _steps(step: Any, place: str, known: set[str]) -> Iterator[Complaint]:
    waiting, count = [step], 0
    while waiting:
        each, count = waiting.pop(), count + 1
        if each is None:
            continue
        if not isinstance(each, dict) or each.get("type") not in known or count > 1_000:
            kind = each.get("type") if isinstance(each, dict) else each
            yield "tokenizer-step", f"the {place} has a step {quoted(str(kind))} that is not known"
            return
        waiting += [part for key in (f"{place}s", "normalizers", "pretokenizers", "processors", "decoders")
                    for part in _list(each.get(key))]  # fmt: skip
        yield from _step(each, place)


def _step(each: dict[str, Any], place: str) -> Iterator[Complaint]:
    pattern = each.get("pattern")
    if isinstance(pattern, dict) and isinstance(expression := pattern.get("Regex"), str):
        if why := complaint(expression):
            yield "tokenizer-pattern", f"the pattern {quoted(expression)} can run for ever: {why}"
    elif isinstance(pattern, dict):
        yield from _short(place, pattern.get("String"))
    for key in ("content", "prepend", "replacement", "prefix", "suffix"):
        yield from _short(place, each.get(key))
    charsmap = each.get("precompiled_charsmap") or ""
    if not isinstance(charsmap, str) or len(charsmap) > MAX_CHARSMAP:
        yield "tokenizer-size", f"the {place}'s character map has {len(charsmap):,} characters"
    specials = each.get("special_tokens")
    for token in specials.values() if isinstance(specials, dict) else ():
        ids = token.get("ids") if isinstance(token, dict) else None
        if not isinstance(ids, list) or not all(_is_size(number, MAX_ID) for number in ids):
            yield "token-id", f"the {place} gives a special token the ids {quoted(str(ids))}"


def _short(place: str, text: Any) -> Iterator[Complaint]:
    if isinstance(text, str) and len(text) > MAX_TEXT:
        yield "tokenizer-size", f"the {place} puts in {len(text):,} characters; at most {MAX_TEXT:,} are read"


def _vocabularies(content: dict[str, Any]) -> Iterator[Complaint]:
    """vocab.json and added_tokens.json; some models have a vocabulary for each language."""
    if content and all(isinstance(each, dict) for each in content.values()):
        for each in content.values():
            yield from _ids(each)
    else:
        yield from _ids(content)


def _special_tokens(content: dict[str, Any]) -> Iterator[Complaint]:
    """special_tokens_map.json and tokenizer_config.json."""
    decoder = content.get("added_tokens_decoder")
    texts = []
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        text = token.get("content") if isinstance(token, dict) else token
        if not number.isdecimal() or int(number) >= MAX_ID or not isinstance(text, str):
            yield "token-id", f"the added token {quoted(str(text))} has the id {quoted(number)}"
            return
        texts.append(text)
        yield from _text(text, special=isinstance(token, dict) and bool(token.get("special")))
    yield from _twins(texts)
    extra = content.get("extra_special_tokens")
    named = [value for key, value in content.items() if key.endswith("_token")]
    for value in [*named, *_list(content.get("additional_special_tokens")), *_list(extra)]:
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            yield from _text(text, special=True)


def _tekken(content: dict[str, Any]) -> Iterator[Complaint]:
    config, vocabulary = content.get("config"), content.get("vocab")
    if not isinstance(config, dict) or not isinstance(vocabulary, list):
        yield "tokenizer-shape", "tekken.json holds no config and vocabulary"
        return
    if why := complaint(str(config.get("pattern", ""))):
        yield "tokenizer-pattern", f"the pattern can run for ever: {why}"
    for tokens in (vocabulary, _list(content.get("special_tokens"))):
        ranks = {quoted(str(at)): each.get("rank") for at, each in enumerate(tokens) if isinstance(each, dict)}
        yield from _ids(ranks)
        if len(ranks) != len(tokens):
            yield "tokenizer-shape", "a token of tekken.json is no object"
        texts = (each.get(key) for each in tokens if isinstance(each, dict) for key in ("token_bytes", "token_str"))
        yield from _lengths([text for text in texts if isinstance(text, str)])


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []


def _is_size(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value < limit
