"""Tokenizers: ids that are what they say, texts and patterns of bounded size, nothing that hides.

Formats: tokenizer.json of https://github.com/huggingface/tokenizers, the maps beside it that transformers writes,
tekken.json of https://github.com/mistralai/mistral-common, and SentencePiece's protobuf,
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import Any

from freehold.types import Finding
from freehold.weights.files import File
from freehold.weights.gate import sentencepiece
from freehold.weights.gate.finding import refuse
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
    place: set(str.split(known))
    for place, known in {
        "normalizer": "BertNormalizer Strip StripAccents NFC NFD NFKC NFKD Sequence Lowercase Nmt Precompiled Replace "
        "Prepend ByteLevel",
        "pre_tokenizer": "BertPreTokenizer ByteLevel CharDelimiterSplit Metaspace Whitespace Sequence Split "
        "Punctuation WhitespaceSplit Digits UnicodeScripts FixedLength",
        "post_processor": "RobertaProcessing BertProcessing ByteLevel TemplateProcessing Sequence",
        "decoder": "ByteLevel WordPiece Metaspace BPEDecoder CTC Sequence Replace Fuse Strip ByteFallback",
    }.items()
}
_FIX = "fetch the tokenizer again from the model's publisher"

Complaint = tuple[str, str]  # rule, why


def check(file: File, content: Any) -> list[Finding]:
    """Every reason to refuse a parsed tokenizer file, or to have a person look."""
    look = _LOOKS.get(PurePosixPath(file.name).name.lower(), _special_tokens)
    found: dict[str, str] = {}
    for rule, why in look(content) if isinstance(content, dict) else [("tokenizer-shape", "no JSON object")]:
        found.setdefault(rule, why)
    return [refuse(file, rule, why, _FIX) for rule, why in found.items()]


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
    pieces: dict[str, Any] = vocabulary if isinstance(vocabulary, dict) else {}
    if isinstance(vocabulary, dict | list):
        yield from _ids(pieces) if pieces else _unigram([*vocabulary])
    else:
        yield "tokenizer-shape", "the model has no vocabulary"
    yield from _merges(model, pieces)
    yield from _added(_list(content.get("added_tokens")), pieces)
    for place, known in STEPS.items():
        yield from _steps(content.get(place), place, known)
    padding = content.get("padding")
    strategy = padding.get("strategy") if isinstance(padding, dict) else None
    if isinstance(strategy, dict) and not _is_size(strategy.get("Fixed", 0), MAX_PADDING):
        yield "tokenizer-size", f"pads every text to {quoted(str(strategy))} tokens"


def _ids(vocabulary: dict[str, Any]) -> Iterator[Complaint]:
    """A vocabulary of half a million must not take long: whole collections at a time."""
    ids = vocabulary.values()
    if any(kind is not int for kind in set(map(type, ids))):
        yield "token-id", "a token's id is no whole number"
    elif ids and min(ids) < 0:
        yield "token-id", f"the token id {min(ids)} is negative"
    elif len(set(ids)) != len(ids):
        yield "token-id", f"{len(ids):,} tokens share {len(set(ids)):,} ids: two of them mean the same to the model"
    elif ids and max(ids) >= _max_id(len(ids)):
        yield "token-id", f"the token id {max(ids):,} of {len(ids):,} tokens"
    yield from _lengths(vocabulary)


def _max_id(tokens: int) -> int:
    return min(MAX_ID, 10 * tokens + 1_000_000)


def _lengths(tokens: Collection[str]) -> Iterator[Complaint]:
    if (longest := max(map(len, tokens), default=0)) > MAX_TOKEN:
        yield "tokenizer-size", f"a token of {longest:,} characters; at most {MAX_TOKEN:,} are read"
    elif len(tokens) > MAX_TOKENS:
        yield "tokenizer-size", f"{len(tokens):,} tokens; at most {MAX_TOKENS:,} are read"


def _unigram(pieces: list[Any]) -> Iterator[Complaint]:
    plain = all(isinstance(each, list) and len(each) == 2 and isinstance(each[0], str) for each in pieces)
    if not plain or not {int, float}.issuperset(type(score) for _, score in pieces):
        yield "tokenizer-shape", "a piece of the vocabulary is not a text with a score"
        return
    texts = {text for text, _ in pieces}
    if len(texts) != len(pieces):
        yield "token-id", f"{len(pieces) - len(texts):,} pieces occur twice"
    yield from _lengths(texts)


def _merges(model: dict[str, Any], vocabulary: dict[str, Any]) -> Iterator[Complaint]:
    joined = not model.get("continuing_subword_prefix")  # else what two pieces make is not their sum
    for each in _list(model.get("merges")):
        pair = each.split(" ", 2) if isinstance(each, str) else each
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], str):
            yield "tokenizer-shape", f"the merge {quoted(str(each))} is not of two pieces"
            return
        if pair[0] not in vocabulary or (joined and pair[0] + pair[1] not in vocabulary):
            yield "tokenizer-merge", f"the merge {quoted(str(each))} makes a token that is not in the vocabulary"
            return


def _added(tokens: list[Any], vocabulary: dict[str, Any]) -> Iterator[Complaint]:
    ids: dict[int, str] = {}
    for token in tokens:
        text, number = (token.get("content"), token.get("id")) if isinstance(token, dict) else (token, None)
        if not isinstance(text, str) or number is None or not _is_size(number, _max_id(len(tokens) + len(vocabulary))):
            yield "token-id", f"the added token {quoted(str(text))} has the id {quoted(str(number))}"
            return
        if ids.setdefault(number, text) != text:
            yield "token-id", f"{quoted(text)} and {quoted(ids[number])} share the id {number}"
        if (own := vocabulary.get(text, number)) != number:
            yield "token-id", f"{quoted(text)} has the id {number}, in the vocabulary {quoted(str(own))}"
        yield from _text(text, special=bool(token.get("special")))


def _text(text: str, *, special: bool) -> Iterator[Complaint]:
    yield from _lengths([text])
    if special and len(text) <= MAX_TOKEN and (character := hidden_character(text)):
        yield "token-character", f"the special token {quoted(text)} holds the invisible character {character}"


def _steps(step: Any, place: str, known: set[str]) -> Iterator[Complaint]:
    waiting = [step] if step is not None else []
    for count, each in enumerate(waiting):  # it grows while it is read
        kind = each.get("type") if isinstance(each, dict) else each
        if not isinstance(each, dict) or str(kind) not in known or count > 1_000:
            yield "tokenizer-step", f"the {place} has a step {quoted(str(kind))} that is not known"
            return
        for key in (f"{place}s", "normalizers", "pretokenizers", "processors", "decoders"):
            waiting += _list(each.get(key))
        yield from _step(each, place)


def _step(each: dict[str, Any], place: str) -> Iterator[Complaint]:
    pattern = each.get("pattern")
    pattern = pattern if isinstance(pattern, dict) else {}
    if isinstance(expression := pattern.get("Regex"), str) and (why := complaint(expression)):
        yield "tokenizer-pattern", f"the pattern {quoted(expression)} can run for ever: {why}"
    texts = [pattern.get("String"), *(each.get(key) for key in ("content", "prepend", "replacement", "prefix"))]
    longest = max(len(str(text)) for text in texts)
    if longest > MAX_TEXT or len(str(each.get("precompiled_charsmap"))) > MAX_CHARSMAP:
        yield "tokenizer-size", f"the {place} puts in long texts, or by a large map"
    specials = each.get("special_tokens")
    for token in specials.values() if isinstance(specials, dict) else ():
        ids = token.get("ids") if isinstance(token, dict) else None
        if not isinstance(ids, list) or not all(_is_size(number, MAX_ID) for number in ids):
            yield "token-id", f"the {place} gives a special token the ids {quoted(str(ids))}"


def _vocabularies(content: dict[str, Any]) -> Iterator[Complaint]:
    """vocab.json and added_tokens.json; some models have a vocabulary for each language."""
    nested = content and all(isinstance(each, dict) for each in content.values())
    for each in content.values() if nested else (content,):
        yield from _ids(each)


def _special_tokens(content: dict[str, Any]) -> Iterator[Complaint]:
    """special_tokens_map.json and tokenizer_config.json."""
    decoder = content.get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        text = token.get("content") if isinstance(token, dict) else token
        if not number.isdecimal() or int(number) >= MAX_ID or not isinstance(text, str):
            yield "token-id", f"the added token {quoted(str(text))} has the id {quoted(number)}"
            return
        yield from _text(text, special=isinstance(token, dict) and bool(token.get("special")))
    named = [value for key, value in content.items() if key.endswith("_token")]
    for value in (
        *named,
        *_list(content.get("additional_special_tokens")),
        *_list(content.get("extra_special_tokens")),
    ):
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
        if not all(isinstance(each, dict) for each in tokens):
            yield "tokenizer-shape", "a token of tekken.json is no object"
            return
        yield from _ids({str(at): each.get("rank") for at, each in enumerate(tokens)})
        yield from _lengths([str(each.get(key)) for each in tokens for key in ("token_bytes", "token_str")])


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []


def _is_size(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value < limit


_LOOKS = {
    "tokenizer.json": _tokenizer,
    "tekken.json": _tekken,
    "vocab.json": _vocabularies,
    "added_tokens.json": _vocabularies,
}
