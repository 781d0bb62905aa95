"""Tokenizers: ids that are what they say, texts and patterns of bounded size, nothing that hides.

Formats: tokenizer.json of https://github.com/huggingface/tokenizers, the maps beside it that transformers writes,
tekken.json of https://github.com/mistralai/mistral-common, and SentencePiece's protobuf,
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.
"""

from __future__ import annotations

import binascii
import re
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
MAX_GROWTH = 64  # times that steps which replace make a text longer
MAX_PIECES = 64  # that a template puts around a text; Whisper's has 6
MAX_LINE_BYTES = 1 << 14
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
_NO_OBJECT = ("tokenizer-shape", "no JSON object")
_LONG_LINE = re.compile(rb"(?m)^[^\n]{%d}" % MAX_LINE_BYTES)
_NOT_RANKED = re.compile(rb"(?m)^(?!(?:[A-Za-z0-9+/]{0,2048}={0,2} \d{1,8})?\r?$)")  # Whisper's empty token is a mere =
_RANK = re.compile(rb"(?m) (\d+)\r?$")

Complaint = tuple[str, str]  # rule, why


def check(file: File, content: Any, known: dict[int, str] | None = None) -> list[Finding]:
    """Every reason to refuse a parsed tokenizer file, or to have a person look.

    `known` are the added tokens of the files beside it that were read before; those of this one join them.
    """
    name = PurePosixPath(file.name).name.lower()
    found: dict[str, str] = {}
    for rule, why in _LOOKS.get(name, _special_tokens)(content) if isinstance(content, dict) else [_NO_OBJECT]:
        found.setdefault(rule, why)
    if not found:
        found.update(_agree(name, content, {} if known is None else known))
    return [refuse(file, rule, why, _FIX) for rule, why in found.items()]


def check_text(file: File, data: bytes) -> list[Finding]:
    """Every reason to refuse a text, if it is a tokenizer's: vocab.txt, merges.txt or a list as tiktoken has it."""
    name = PurePosixPath(file.name).name.lower()
    if name in {"vocab.txt", "merges.txt"} and _LONG_LINE.search(data):
        return [refuse(file, "tokenizer-size", f"a line of more than {MAX_LINE_BYTES:,} bytes", _FIX)]
    if not name.endswith((".tiktoken", ".model", ".spm")):
        return []
    if strange := _NOT_RANKED.search(data):
        why = f"at byte {strange.start():,} is no token in base64 with its rank"
        return [refuse(file, "tokenizer-shape", why, _FIX)]
    ranks = _RANK.findall(data)
    complaints = _ids(dict(zip(map(str, range(len(ranks))), map(int, ranks), strict=True)))
    return [refuse(file, rule, why, _FIX) for rule, why in complaints]


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
    for token in tokens:
        text, number = (token.get("content"), token.get("id")) if isinstance(token, dict) else (token, None)
        if not isinstance(text, str) or number is None or not _is_size(number, _max_id(len(tokens) + len(vocabulary))):
            yield "token-id", f"the added token {quoted(str(text))} has the id {quoted(str(number))}"
            return
        yield from _text(text, special=bool(token.get("special")))


def _agree(name: str, content: dict[str, Any], known: dict[int, str]) -> Iterator[Complaint]:
    """A token has one id, and an id one token, in all files of a folder: readers differ in which they take."""
    claims: list[tuple[int, str]] = []
    if name == "added_tokens.json":
        claims = [(number, text) for text, number in content.items() if isinstance(number, int)]
    elif name == "tokenizer_config.json":
        decoder = content.get("added_tokens_decoder")
        tokens = decoder.items() if isinstance(decoder, dict) else ()
        claims = [(int(number), each["content"] if isinstance(each, dict) else each) for number, each in tokens]
    elif name == "tokenizer.json":
        claims = [(each["id"], each["content"]) for each in _list(content.get("added_tokens"))]
        named = {*known, *(number for number, _ in claims)}, {*known.values(), *(text for _, text in claims)}
        vocabulary = content["model"]["vocab"]
        numbered = vocabulary.items() if isinstance(vocabulary, dict) else _numbered(vocabulary)
        claims += [(number, text) for text, number in numbered if number in named[0] or text in named[1]]
    ids = {text: number for number, text in known.items()}
    for number, text in claims:
        if (own := known.setdefault(number, text)) != text:
            yield "token-id", f"{quoted(text)} and {quoted(own)}, of this or another file, share the id {number}"
        if (other := ids.setdefault(text, number)) != number:
            yield "token-id", f"{quoted(text)} has the id {number}, elsewhere or in another file {other}"


def _numbered(pieces: list[Any]) -> Iterator[tuple[str, int]]:
    """Those of a Unigram model: their ids are their places."""
    return ((piece[0], at) for at, piece in enumerate(pieces))


def _text(text: str, *, special: bool) -> Iterator[Complaint]:
    yield from _lengths([text])
    if special and len(text) <= MAX_TOKEN and (character := hidden_character(text)):
        yield "token-character", f"the special token {quoted(text)} holds the invisible character {character}"


def _steps(step: Any, place: str, known: set[str]) -> Iterator[Complaint]:
    waiting = [step] if step is not None else []
    made: list[tuple[str, float]] = []  # what steps put in, and how many times longer it is
    for count, each in enumerate(waiting):  # it grows while it is read
        kind = each.get("type") if isinstance(each, dict) else each
        if not isinstance(each, dict) or str(kind) not in known or count > 1_000:
            yield "tokenizer-step", f"the {place} has a step {quoted(str(kind))} that is not known"
            return
        for key in (f"{place}s", "normalizers", "pretokenizers", "processors", "decoders"):
            waiting += _list(each.get(key))
        yield from _step(each, place)
        if kind == "Replace":
            made.append(_growth(each, made))
        if (growth := max((times for _, times in made), default=1)) > MAX_GROWTH:
            yield "tokenizer-size", f"the {place} can make a text {growth:,.0f} times longer; at most {MAX_GROWTH}"
            return


def _growth(step: dict[str, Any], made: list[tuple[str, float]]) -> tuple[str, float]:
    """What a step puts in, and its growth: its own times that of what it may find from steps before it."""
    pattern, content = step.get("pattern"), str(step.get("content"))
    old = str(pattern.get("String", "")) if isinstance(pattern, dict) else ""  # what a Regex finds is not known
    before = [times for text, times in made if old in text * 2]
    return content, max(before, default=1) * max(1, len(content) / (len(old) or 1))


def _template(step: dict[str, Any]) -> Iterator[Complaint]:
    """A post-processor's template puts a text in once, each of a pair once, and few tokens around it."""
    for key, texts in (("single", 1), ("pair", 2)):
        pieces = _list(step.get(key))
        if len(pieces) > MAX_PIECES or sum("Sequence" in each for each in pieces if isinstance(each, dict)) > texts:
            yield "tokenizer-size", f"the template of a {key} has {len(pieces):,} pieces, or a text more than once"


def _step(each: dict[str, Any], place: str) -> Iterator[Complaint]:
    pattern = each.get("pattern")
    pattern = pattern if isinstance(pattern, dict) else {}
    if isinstance(expression := pattern.get("Regex"), str) and (why := complaint(expression)):
        yield "tokenizer-pattern", f"the pattern {quoted(expression)} can run for ever: {why}"
    texts = [pattern.get("String"), *(each.get(key) for key in ("content", "prepend", "replacement", "prefix"))]
    longest = max(len(str(text)) for text in texts)
    if longest > MAX_TEXT or len(str(each.get("precompiled_charsmap"))) > MAX_CHARSMAP:
        yield "tokenizer-size", f"the {place} puts in long texts, or by a large map"
    try:
        charsmap = binascii.a2b_base64(str(each.get("precompiled_charsmap") or ""), strict_mode=True)
        if charsmap:
            sentencepiece.check_charsmap(charsmap, len(charsmap))
    except ValueError:
        yield "tokenizer-shape", f"the {place} has a map of characters that is not in base64"
    yield from _template(each)
    specials = each.get("special_tokens")
    for token in specials.values() if isinstance(specials, dict) else ():
        ids = token.get("ids") if isinstance(token, dict) else None
        if not isinstance(ids, list) or len(ids) > MAX_PIECES or not all(_is_size(number, MAX_ID) for number in ids):
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
