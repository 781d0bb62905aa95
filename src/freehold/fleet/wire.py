"""The few fields Freehold reads in OpenAI's answers; the rest passes untouched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from freehold.types import Tokens

_T = TypeVar("_T")

# An engine that states more, or less than nothing, has not stated it: a book must not believe everything.
Count = Annotated[int, Meta(ge=0, le=2**31)]


class _Details(Struct):
    cached_tokens: Count | None = None


class _Thought(Struct):
    reasoning_tokens: Count | None = None


class Usage(Struct):
    prompt_tokens: Count | None = 0
    completion_tokens: Count | None = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Thought | None = None  # vLLM's, since vllm-project/vllm#45802, and OpenAI's
    reasoning_tokens: Count | None = None  # SGLang's

    def tokens(self) -> Tokens:
        return Tokens(
            prompt=self.prompt_tokens or 0,
            completion=self.completion_tokens or 0,
            cached=(self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0,
            reasoning=(self.completion_tokens_details and self.completion_tokens_details.reasoning_tokens)
            or self.reasoning_tokens
            or 0,
        )


class Delta(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class Choice(Struct):
    index: int = 0
    finish_reason: str | None = None
    delta: Delta | None = None
    text: str | None = None

    @property
    def speaks(self) -> bool:
        """It carries something the engine generated."""
        delta = self.delta
        return bool(self.text or (delta and (delta.content or delta.reasoning_content or delta.tool_calls)))


class Timings(Struct):
    """llama.cpp's running count, in every frame if asked for."""

    prompt_n: Count | None = 0  # without what the cache gave
    cache_n: Count | None = 0
    predicted_n: Count | None = 0

    def tokens(self) -> Tokens:
        cached = self.cache_n or 0
        return Tokens(prompt=(self.prompt_n or 0) + cached, completion=self.predicted_n or 0, cached=cached)


class Frame(Struct):
    """An answer, or one `data:` frame of it."""

    model: str | None = None
    choices: list[Choice] | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    error: Any = None


class _Named(Struct):
    model: str | None = None


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
encode = msgspec.json.Encoder().encode
_decode_model = msgspec.json.Decoder(str | None).decode
_decode_usage = msgspec.json.Decoder(Usage | None).decode
_NONE_CACHED = {"cached_tokens": 0}
_decode_frame = msgspec.json.Decoder(Frame).decode
_decode_named = msgspec.json.Decoder(_Named).decode


def read_frame(data: bytes) -> Frame | None:
    """What can be read of it; of one with nonsense in it at least the model's name. None: it is no JSON object."""
    try:
        return _decode_frame(data)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return Frame(model=_decode_named(data).model)
    except (msgspec.DecodeError, RecursionError):
        return None


class Whole(Struct, gc=False):
    """A whole answer: its fields as they came, and of what they say what Freehold reads."""

    fields: dict[str, msgspec.Raw]
    model: str | None
    usage: Usage | None
    failed: bool


def read_whole(body: bytes) -> Whole | None:
    """None: it is no JSON object."""
    try:
        fields = _decode_fields(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    error = fields.get("error")
    failed = error is not None and bytes(error) != b"null"
    return Whole(fields, _read(fields, "model", _decode_model), _read(fields, "usage", _decode_usage), failed)


def _read(fields: dict[str, msgspec.Raw], name: str, decode: Callable[[bytes], _T | None]) -> _T | None:
    """What is not what it should be is as if it were not there."""
    try:
        return decode(fields[name]) if name in fields else None
    except (msgspec.DecodeError, RecursionError):
        return None


def read_usage(body: bytes) -> Tokens | None:
    """The usage of a whole answer, or None when it is no answer or states none."""
    whole = read_whole(body)
    return whole.usage.tokens() if whole and whole.usage else None


def hide_cached(fields: dict[str, msgspec.Raw]) -> dict[str, object]:
    """The fields of an answer that states usage, without what tells how much of the prompt was in a cache.

    Always with 0: SGLang, and vLLM at times, state it only when something was. The times go: llama.cpp's, and vLLM's.
    """
    fields.pop("timings", None)
    fields.pop("metrics", None)
    return {**fields, "usage": {**_decode_fields(fields["usage"]), "prompt_tokens_details": _NONE_CACHED}}


def hide_cached_in(frame: bytes) -> bytes:
    """The same for a frame of a stream."""
    begin, end = frame.index(b"{"), frame.rindex(b"}") + 1
    return b"%b%b%b" % (frame[:begin], encode(hide_cached(_decode_fields(frame[begin:end]))), frame[end:])
