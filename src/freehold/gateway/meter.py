"""Counts tokens in an answer while it passes; frames of a stream are put together again, however they come."""

from __future__ import annotations

import re

import msgspec

from freehold.errors import EngineFailed
from freehold.fleet.wire import Frame, encode, hide_cached, hide_cached_in, read_frame, read_whole
from freehold.types import Tokens

LONGEST_FRAME_BYTES = 8 << 20
LARGEST_ANSWER_BYTES = 64 << 20
_FRAME_END = re.compile(rb"\r?\n\r?\n")
_LONGEST_END = 4
# A frame that says more than text: the end, usage, an error, or nothing at all.
_TELLS = re.compile(rb'\[DONE\]|"usage":\s*\{|"error"|data: ?null').search
# A line with text that the engine produced; inside of a JSON string there are no bare quotes and no line ends.
_SPEAKS = re.compile(rb'"(?:content|reasoning_content|reasoning|text|arguments)":\s*"[^"][^\n]*').findall


class StreamMeter:
    """Feed it every piece of a stream; it gives back what the caller is to see.

    `name` replaces the engine's own name for the model. `hide_usage`: the caller did not ask for the frame that only
    states usage, so it is taken out. `hide_cached`: how much of the prompt was in the engine's cache is not theirs to
    know. `n`: choices a prompt; `lone`: there is one prompt, and one choice.

    llama.cpp states the usage of each choice apart: of a chat in a frame of its own, of a completion beside its end.
    Callers get one frame for all.

    Whole frames of one choice that only carry text pass without being decoded: that is nearly all of them.
    """

    def __init__(
        self, name: str, *, n: int = 1, lone: bool = False, hide_usage: bool, hide_cached: bool = False
    ) -> None:
        self.exact = False  # stated, for all choices
        self.done = False  # [DONE] has passed
        self.failed = False  # the engine reported an error
        self._tokens = Tokens()
        self._name, self._n, self._hide_usage, self._hide_cached = name, n, hide_usage, hide_cached
        self._lone = lone
        self._rest = b""
        self._renaming: tuple[bytes, bytes] | None = None  # the engine's name for the model, and ours
        self._named = False  # whether that is known
        self._passed = b""  # the last piece that was not decoded, and how many frames with text there were
        self._spoken = 0
        self._stated: list[Tokens] = []  # in frames of their own
        self._seen: dict[int, Tokens] = {}  # of each choice, so far
        self._ended: set[int] = set()  # choices whose end stated their usage
        self._usage_frame = b""

    @property
    def tokens(self) -> Tokens:
        """Stated by the engine; or seen to pass: then at least so many were produced."""
        self._fold()
        return self._tokens

    def feed(self, piece: bytes) -> bytes:
        """Raises EngineFailed for a frame that no answer has."""
        if self._named and not self._rest and piece.endswith(b"\n\n") and self._lone and not _TELLS(piece):
            self._passed = piece
            self._spoken += len(_SPEAKS(piece))
            return piece.replace(*self._renaming) if self._renaming else piece
        self._fold()
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
        if read.model is not None and not self._named:
            self._named = True
            self._renaming = renaming(frame, read.model, self._name)
        if self._renaming:
            frame = frame.replace(*self._renaming)
        if read.usage and self._hide_cached:
            frame = hide_cached_in(frame)
        if not read.usage or (read.choices and not self._ended):
            return frame
        self._usage_frame = b"" if self._hide_usage or (self._n == 1 and not read.choices) else frame
        return frame if read.choices or (self._n == 1 and not self._hide_usage) else b""

    def _count(self, read: Frame) -> None:
        """Usage alone in its frame is final, and so it is beside a choice that ends; else it is a running count."""
        running = read.usage or read.timings
        if read.usage and not read.choices:
            if self._n == 1:
                self._stated.clear()  # said twice is not used twice
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

    def _fold(self) -> None:
        """Count what passed without being decoded; llama.cpp's running count, in its last frame, knows it exactly."""
        if not self._passed:
            return
        passed, self._passed = self._passed, b""
        seen = self._seen.get(0, Tokens())
        self._seen[0] = msgspec.structs.replace(seen, completion=seen.completion + self._spoken)
        self._spoken = 0
        if b'"timings"' in passed:
            last = read_frame(passed.strip().rpartition(b"\n\n")[2].removeprefix(b"data:"))
            if last and last.timings:
                self._seen[0] = last.timings.tokens()
        self._add_up()

    def _add_up(self) -> None:
        all_stated = self.done or self._n == 1  # with several choices others may be missing before the end
        if self._stated and all_stated:
            self._tokens, self.exact = _total(self._stated, self._n), True
        elif self._seen:
            self._tokens = _total_seen(self._seen, self._n)
            self.exact = self.done and self._ended == self._seen.keys()

    def _merged_usage(self) -> bytes:
        """One frame of usage for all choices, if the caller asked for it."""
        if not self._usage_frame:
            return b""
        said = msgspec.json.decode(self._usage_frame.strip().removeprefix(b"data:"))
        said.pop("timings", None)  # of one choice only
        return b"data: %b\n\n" % msgspec.json.encode({**said, "choices": [], "usage": self.usage()})

    def usage(self) -> dict[str, object]:
        """As callers see it."""
        tokens = self.tokens
        return usage_of(msgspec.structs.replace(tokens, cached=0) if self._hide_cached else tokens)


def _total(stated: list[Tokens], n: int) -> Tokens:
    """One frame a choice repeats the prompt for each of the `n` that share it; one frame alone is for all."""
    shared = n if len(stated) > 1 else 1
    return Tokens(
        prompt=sum(t.prompt for t in stated) // shared,
        completion=sum(t.completion for t in stated),
        cached=sum(t.cached for t in stated) // shared,
        reasoning=sum(t.reasoning for t in stated),
    )


def _total_seen(seen: dict[int, Tokens], n: int) -> Tokens:
    """Choices are numbered through: the first `n` share the first prompt."""
    prompts = {index // n: tokens for index, tokens in seen.items()}.values()
    return Tokens(
        prompt=sum(t.prompt for t in prompts),
        completion=sum(t.completion for t in seen.values()),
        cached=sum(t.cached for t in prompts),
        reasoning=sum(t.reasoning for t in seen.values()),
    )


def usage_of(tokens: Tokens) -> dict[str, object]:
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.prompt + tokens.completion,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
        **({"completion_tokens_details": {"reasoning_tokens": tokens.reasoning}} if tokens.reasoning else {}),
    }


class WholeMeter:
    """The same door for an answer that comes as one piece of JSON: kept until it is whole, then passed on."""

    def __init__(self, name: str, *, hide_cached: bool = False) -> None:
        self.tokens = Tokens()
        self.exact = self.done = self.failed = False
        self._name, self._hide_cached = name, hide_cached
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
        read = read_whole(body)
        if read is None:
            raise EngineFailed("the engine's answer is not JSON")
        self.done, self.failed = True, read.failed
        fields: dict[str, object] = read.fields  # type: ignore[assignment]  each is passed on as it came
        changed = False
        if read.usage:
            self.tokens, self.exact = read.usage.tokens(), True
            if self._hide_cached:
                fields, changed = hide_cached(read.fields), True
        if read.model is not None and read.model != self._name:
            fields["model"], changed = self._name, True
        return encode(fields) if changed else body


def renaming(body: bytes, said: str | None, name: str) -> tuple[bytes, bytes] | None:
    """What to replace so that an answer names its model `name`; None: nothing.

    Inside a JSON string the quotes would be escaped, so such a pair of name and value is a real one.
    """
    if said is None or said == name:
        return None
    value = msgspec.json.encode(said)
    said_pair = next((pair for pair in (b'"model":' + value, b'"model": ' + value) if pair in body), None)
    return (said_pair, b'"model":' + msgspec.json.encode(name)) if said_pair else None
