"""Makes one whole answer of a stream.

llama.cpp goes on computing an answer that is not streamed when its caller has left, and counts only the first of
several choices in it. So it is always asked for a stream; who wants the answer whole gets it put together here.
"""

from __future__ import annotations

from typing import Any

import msgspec

from freehold.errors import EngineFailed
from freehold.gateway.meter import LARGEST_ANSWER_BYTES, StreamMeter, WholeMeter
from freehold.gateway.openai import Ask
from freehold.types import Tokens

_DATA = b"data: {"


class AssembledMeter:
    """The same door as `WholeMeter`: keeps what comes and gives it back whole at the end."""

    def __init__(self, name: str, n: int, *, hide_cached: bool = False) -> None:
        self._meter = StreamMeter(name, n=n, hide_usage=True, hide_cached=hide_cached)
        self._size_bytes = 0
        self._answer: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self.done = False  # the caller waits for `close`

    @property
    def tokens(self) -> Tokens:
        return self._meter.tokens

    @property
    def exact(self) -> bool:
        return self._meter.exact

    @property
    def failed(self) -> bool:
        return self._meter.failed

    def feed(self, piece: bytes) -> bytes:
        """Raises EngineFailed for an answer too large to keep."""
        self._size_bytes += len(piece)
        if self._size_bytes > LARGEST_ANSWER_BYTES:
            raise EngineFailed(f"the engine's answer is larger than {LARGEST_ANSWER_BYTES >> 20} MiB")
        self._take(self._meter.feed(piece))
        return b""

    def close(self) -> bytes:
        """Raises EngineFailed when the stream had no end."""
        self._take(self._meter.close())
        if not self._meter.done or not self._choices:
            raise EngineFailed("the engine's answer has no end")
        self.done = True
        chat = "message" in self._choices[min(self._choices)]
        whole = {
            **self._answer,
            "object": "chat.completion" if chat else "text_completion",
            "choices": [_joined(self._choices[index]) for index in sorted(self._choices)],
            "usage": self._meter.usage(),
        }
        return msgspec.json.encode(whole)

    def _take(self, passed: bytes) -> None:
        for line in passed.splitlines():
            if line.startswith(_DATA):
                try:
                    self._take_frame(msgspec.json.decode(line[len(_DATA) - 1 :]))
                except (msgspec.DecodeError, KeyError, TypeError, AttributeError, RecursionError):
                    raise EngineFailed("the engine's answer is not one") from None

    def _take_frame(self, frame: dict[str, Any]) -> None:
        if error := frame.get("error"):
            raise EngineFailed(error["message"] if isinstance(error, dict) else str(error))
        for choice in frame.pop("choices", None) or ():
            self._add(choice)
        self._answer |= frame

    def _add(self, choice: dict[str, Any]) -> None:
        """Put a piece of one choice to what is there of it."""
        delta = choice.pop("delta", None)
        empty = {} if delta is None else {"message": {"role": "assistant", "content": _Text()}}
        whole = self._choices.setdefault(choice["index"], empty)
        if delta is not None:
            _extend(whole["message"], {name: value for name, value in delta.items() if name != "role"})
        _extend(whole, choice)


Meter = StreamMeter | WholeMeter | AssembledMeter


def meter_of(ask: Ask, name: str, *, streamed: bool, hide_cached: bool) -> Meter:
    """`streamed`: so the engine answers, whatever its caller wants."""
    if ask.stream:
        n, lone, hide_usage = ask.per_prompt, ask.n == 1, not ask.include_usage
        return StreamMeter(name, n=n, lone=lone, hide_usage=hide_usage, hide_cached=hide_cached)
    if streamed:
        return AssembledMeter(name, ask.per_prompt, hide_cached=hide_cached)
    return WholeMeter(name, hide_cached=hide_cached)


class _Text(list[str]):
    """A text in pieces, put together once: adding to a string copies it each time."""


# Texts that come whole in every piece.
_ONCE = frozenset({"finish_reason", "id", "type", "name", "role"})


def _extend(whole: dict[str, Any], more: dict[str, Any]) -> None:
    """Texts and lists grow, tables are filled in, anything else is replaced; a null says nothing new."""
    for name, value in more.items():
        have = whole.get(name)
        if name == "tool_calls" and isinstance(value, list):
            _extend_calls(whole.setdefault(name, []), value)
        elif isinstance(value, str) and name not in _ONCE:
            if not isinstance(have, _Text):
                have = whole[name] = _Text()
            have.append(value)
        elif isinstance(have, dict) and isinstance(value, dict):
            _extend(have, value)
        elif isinstance(have, list) and isinstance(value, list):
            have.extend(value)
        elif value is not None or name not in whole:
            whole[name] = value


def _extend_calls(calls: list[dict[str, Any]], more: list[dict[str, Any]]) -> None:
    for piece in more:
        index = piece.pop("index", 0)
        if index == len(calls):
            calls.append({})
        if not 0 <= index < len(calls):
            raise EngineFailed("the engine's tool calls do not follow one another")
        _extend(calls[index], piece)


def _joined(whole: Any) -> Any:
    match whole:
        case _Text():
            return "".join(whole)
        case dict():
            return {name: _joined(value) for name, value in whole.items()}
        case list():
            return [_joined(value) for value in whole]
    return whole
