"""Counts tokens in an answer while it passes; frames of a stream are put together again, however they come."""

from __future__ import annotations

import re

import msgspec

from freehold.errors import EngineFailed
from freehold.fleet.wire import Frame, read_frame
from freehold.types import Tokens

LONGEST_FRAME_BYTES = 8 << 20
LARGEST_ANSWER_BYTES = 64 << 20
_FRAME_END = re.compile(rb"\r?\n\r?\n")
_LONGEST_END = 4


class StreamMeter:
    """Feed it every piece of a stream; it gives back what the caller is to see.

    `name` replaces the engine's own name for the model. `hide_usage`: the caller did not ask for the frame that only
    states usage, so it is taken out. `n`: choices a prompt. llama.cpp states the usage of each choice apart: of a chat
    in a frame of its own, of a completion beside its end. Callers get one frame for all.
    """

    def __init__(self, name: str, *, n: int = 1, hide_usage: bool) -> None:
        self.tokens = Tokens()  # stated by the engine, or seen to pass: then at least so many were produced
        self.exact = False  # stated, for all choices
        self.done = False  # [DONE] has passed
        self.failed = False  # the engine reported an error
        self._name, self._n, self._hide_usage = name, n, hide_usage
        self._rest = b""
        self._stated: list[Tokens] = []  # in frames of their own
        self._seen: dict[int, Tokens] = {}  # of each choice, so far
        self._ended: set[int] = set()  # choices whose end stated their usage
        self._usage_frame = b""

    def feed(self, piece: bytes) -> bytes:
        """Raises EngineFailed for a frame that no answer has."""
        buffer = self._rest + piece
        passed, begin = [], 0
        unseen = max(0, len(self._rest) - _LONGEST_END + 1)
        for end in _FRAME_END.finditer(buffer, unseen):
            passed.append(self._frame(buffer[begin : end.end()]))
            begin = end.end()
        self._rest = buffer[begin:]
        if len(self._rest) > LONGEST_FRAME_BYTES:
            raise EngineFailed(f"the engine sent a frame of more than {LONGEST_FRAME_BYTES >> 20} MiB")
        return b"".join(passed)

    def close(self) -> bytes:
        """The last frame, if it came without an empty line behind it."""
        rest, self._rest = self._rest, b""
        return self._frame(rest) if rest else b""

    def _frame(self, frame: bytes) -> bytes:
        data = frame.strip()
        if not data.startswith(b"data:"):
            return frame
        data = data[5:].strip()
        if data == b"[DONE]":
            self.done = True
            self._add_up()
            return self._merged_usage() + frame
        if data == b"null":  # llama.cpp begins so when it was given several prompts; clients stumble over it
            return b""
        read = read_frame(data)
        if read is None:
            return frame  # not ours to judge
        self.failed = self.failed or read.error is not None
        self._count(read)
        frame = rename_model(frame, read.model, self._name)
        if not read.usage or (read.choices and not self._ended):
            return frame
        self._usage_frame = b"" if self._hide_usage or (self._n == 1 and not read.choices) else frame
        return frame if read.choices or (self._n == 1 and not self._hide_usage) else b""

    def _count(self, read: Frame) -> None:
        """Usage alone in its frame is final, and so it is beside a choice that ends; else it is a running count."""
        running = read.usage or read.timings
        if read.usage and not read.choices:
            self._stated.append(read.usage.tokens())
        for choice in read.choices or ():
            if running:
                self._seen[choice.index] = running.tokens()
            elif choice.speaks:
                seen = self._seen.get(choice.index, Tokens())
                self._seen[choice.index] = msgspec.structs.replace(seen, completion=seen.completion + 1)
            if read.usage and choice.finish_reason:
                self._ended.add(choice.index)
        self._add_up()

    def _add_up(self) -> None:
        all_stated = self.done or self._n == 1  # with several choices others may be missing before the end
        if self._stated and all_stated:
            self.tokens, self.exact = _total(self._stated, self._n), True
        elif self._seen:
            self.tokens = _total_seen(self._seen, self._n)
            self.exact = self.done and self._ended == self._seen.keys()

    def _merged_usage(self) -> bytes:
        """One frame of usage for all choices, if the caller asked for it."""
        if not self._usage_frame:
            return b""
        said = msgspec.json.decode(self._usage_frame.strip().removeprefix(b"data:"))
        said.pop("timings", None)  # of one choice only
        return b"data: %b\n\n" % msgspec.json.encode({**said, "choices": [], "usage": usage_of(self.tokens)})


def _total(stated: list[Tokens], n: int) -> Tokens:
    """One frame a choice repeats the prompt for each of the `n` that share it; one frame alone is for all."""
    shared = n if len(stated) > 1 else 1
    return Tokens(
        prompt=sum(t.prompt for t in stated) // shared,
        completion=sum(t.completion for t in stated),
        cached=sum(t.cached for t in stated) // shared,
    )


def _total_seen(seen: dict[int, Tokens], n: int) -> Tokens:
    """Choices are numbered through: the first `n` share the first prompt."""
    prompts = {index // n: tokens for index, tokens in seen.items()}.values()
    return Tokens(
        prompt=sum(t.prompt for t in prompts),
        completion=sum(t.completion for t in seen.values()),
        cached=sum(t.cached for t in prompts),
    )


def usage_of(tokens: Tokens) -> dict[str, object]:
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.prompt + tokens.completion,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
    }


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
        read = read_frame(body)
        if read is None:
            raise EngineFailed("the engine's answer is not JSON")
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
