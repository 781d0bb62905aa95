"""The few fields Freehold reads in OpenAI's answers; the rest passes untouched."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from freehold.types import Tokens

# An engine that states more, or less than nothing, has not stated it: a book must not believe everything.
Count = Annotated[int, Meta(ge=0, le=2**40)]


class _Details(Struct):
    cached_tokens: Count | None = None


class Usage(Struct):
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    prompt_tokens_details: _Details | None = None

    def tokens(self) -> Tokens:
        cached = (self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0
        return Tokens(prompt=self.prompt_tokens, completion=self.completion_tokens, cached=cached)


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

    prompt_n: Count = 0  # without what the cache gave
    cache_n: Count = 0
    predicted_n: Count = 0

    def tokens(self) -> Tokens:
        return Tokens(prompt=self.prompt_n + self.cache_n, completion=self.predicted_n, cached=self.cache_n)


class Frame(Struct):
    """An answer, or one `data:` frame of it."""

    model: str | None = None
    choices: list[Choice] = []
    usage: Usage | None = None
    timings: Timings | None = None
    error: Any = None


decode_frame = msgspec.json.Decoder(Frame).decode


def read_usage(body: bytes) -> Tokens | None:
    """The usage of a whole answer, or None when it is no answer or states none."""
    try:
        usage = decode_frame(body).usage
    except msgspec.DecodeError:
        return None
    return usage.tokens() if usage else None
