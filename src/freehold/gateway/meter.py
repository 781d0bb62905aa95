"""Counts tokens in an answer while it passes. Frames of a stream are put together again, whatever pieces they come in."""

from __future__ import annotations

import re

import msgspec

from freehold.errors import EngineFailed
from freehold.fleet.wire import Frame, decode_frame
from freehold.types import Tokens

LONGEST_FRAME_BYTES = 16 << 20
LARGEST_ANSWER_BYTES = 64 << 20
_FRAME_END = re.compile(rb"\r?\n\r?\n")


class StreamMeter:
    """Feed it every piece of a stream; it gives back what the caller is to see.

    `name` replaces the engine's own name for the model. `hide_usage`: the caller did not ask for the frame that only
    states usage, so it is taken out.
    """

    def __init__(self, name: str, *, hide_usage: bool) -> None:
        self.tokens = Tokens()  # stated by the engine, or seen to pass: then at least so many were produced
        self.exact = False  # stated
        self.done = False  # [DONE] has passed
        self.failed = False  # the engine reported an error
        self._name, self._hide_usage = name, hide_usage
        self._rest = b""
        self._final = Tokens()

    def feed(self, piece: bytes) -> bytes:
        """Raises EngineFailed for a frame that no answer has."""
        buffer = self._rest + piece
        passed, begin = [], 0
        for end in _FRAME_END.finditer(buffer):
            passed.append(self._frame(buffer[begin : end.end()]))
            begin = end.end()
        self._rest = buffer[begin:]
        if len(self._rest) > LONGEST_FRAME_BYTES:
            raise EngineFailed(f"the engine sent a frame of more than {LONGEST_FRAME_BYTES >> 20} MiB")
        return b"".join(passed)

    def close(self) -> bytes:
        """The last frame, if it came without an empty line behind it."""
        rest, self._rest = self._rest, b""
        return self._frame(rest) if rest.strip() else b""

    def _frame(self, frame: bytes) -> bytes:
        data = frame.strip()
        if not data.startswith(b"data:"):
            return frame
        data = data[5:].strip()
        if data == b"[DONE]":
            self.done = True
            return frame
        try:
            read = decode_frame(data)
        except msgspec.DecodeError:
            return frame  # not ours to judge
        self.failed = self.failed or read.error is not None
        self._count(read)
        if self._hide_usage and read.usage and not read.choices:
            return b""
        return rename_model(frame, read.model, self._name)

    def _count(self, read: Frame) -> None:
        """Usage alone in its frame is final (with n above 1 llama.cpp sends one a choice); beside a choice it runs."""
        if read.usage and not read.choices:
            last, more = self._final, read.usage.tokens()
            self._final = self.tokens = Tokens(
                prompt=last.prompt + more.prompt,
                completion=last.completion + more.completion,
                cached=last.cached + more.cached,
            )
            self.exact = True
        elif self.exact:
            pass
        elif running := read.usage or read.timings:
            self.tokens = running.tokens()
        else:
            spoken = sum(choice.speaks for choice in read.choices)
            self.tokens = msgspec.structs.replace(self.tokens, completion=self.tokens.completion + spoken)


class WholeMeter:
    """The same door for an answer that comes as one piece of JSON: kept until it is whole, then passed on."""

    def __init__(self, name: str) -> None:
        self.tokens = Tokens()
        self.exact = self.done = self.failed = False
        self._name = name
        self._pieces: list[bytes] = []
        self._size_bytes = 0

    def feed(self, piece: bytes) -> bytes:
        """Raises EngineFailed for an answer too large to keep."""
        self._pieces.append(piece)
        self._size_bytes += len(piece)
        if self._size_bytes > LARGEST_ANSWER_BYTES:
            raise EngineFailed(f"the engine's answer is larger than {LARGEST_ANSWER_BYTES >> 20} MiB")
        return b""

    def close(self) -> bytes:
        body = b"".join(self._pieces)
        try:
            read = decode_frame(body)
        except msgspec.DecodeError:
            raise EngineFailed(f"the engine's answer is not one: {body[:200].decode(errors='replace')}") from None
        self.done, self.failed = True, read.error is not None
        if read.usage:
            self.tokens, self.exact = read.usage.tokens(), True
        return rename_model(body, read.model, self._name)


def rename_model(body: bytes, said: str | None, name: str) -> bytes:
    """Put `name` where the answer names its model.

    Inside a JSON string the quotes would be escaped, so the first such pair of name and value is a real one.
    """
    if said is None or said == name:
        return body
    value = msgspec.json.encode(said)
    for pair in (b'"model":' + value, b'"model": ' + value):
        if pair in body:
            return body.replace(pair, b'"model":' + msgspec.json.encode(name), 1)
    return body
