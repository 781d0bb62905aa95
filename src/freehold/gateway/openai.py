"""OpenAI's wire as far as Freehold speaks it itself: requests it reads, errors and model lists it writes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from freehold.errors import BadRequest, FreeholdError
from freehold.types import WireError

Kind = Literal["chat", "completion", "embedding"]

MOST_FIELDS = 200
MOST_CHOICES = 128  # a prompt; OpenAI's own limit
MOST_PROMPTS = 256
MOST_INPUTS = 2048  # to embed; OpenAI's own limit
LONGEST_MODEL = 256
# Fields take so much beside those that are large by nature. More are as many as take the loop tens of ms to hash.
_SMALL_BYTES = 256 << 10
_SHORTEST_PAIR = len('"":0,')
_UNLIMITED = -1  # llama.cpp's word for it, which other programs have learnt


class _Bulk(Struct, gc=False):
    messages: Raw = Raw()
    prompt: Raw = Raw()
    input: Raw = Raw()
    tools: Raw = Raw()
    documents: Raw = Raw()
    logit_bias: Raw = Raw()
    response_format: Raw = Raw()
    structured_outputs: Raw = Raw()
    input_ids: Raw = Raw()


def _first_of(most: int) -> type[Struct]:
    """A list, of which the first are kept and the rest is skipped: as a list[Raw] 10 million take 1.5 s."""
    return msgspec.defstruct("_First", [(f"_{at}", Raw, Raw()) for at in range(most)], array_like=True, gc=False)


_Choices: Any = Annotated[int, Meta(ge=1, le=MOST_CHOICES)]
_Limit: Any = Annotated[int, Meta(ge=_UNLIMITED, le=2**31 - 1)]
_encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_bulk = msgspec.json.Decoder(_Bulk).decode
_decode_prompts = msgspec.json.Decoder(_first_of(MOST_PROMPTS + 1)).decode
_decode_inputs = msgspec.json.Decoder(_first_of(MOST_INPUTS + 1)).decode
_decode_str = msgspec.json.Decoder(str).decode
_decode_model = msgspec.json.Decoder(Annotated[str, Meta(max_length=LONGEST_MODEL)]).decode
_decode_flag = msgspec.json.Decoder(bool | None).decode
_decode_options = msgspec.json.Decoder(dict[str, Raw] | None).decode
_decode_choices = msgspec.json.Decoder(_Choices | None).decode
_decode_limit = msgspec.json.Decoder(_Limit | None).decode
# msgspec's DecodeError is a ValueError, as UnicodeDecodeError is
_UNREADABLE = (ValueError, RecursionError)
_NO_LIMITS: dict[str, int] = {}
_NO_OPTIONS: dict[str, Raw] = {}
_NUMBER_BEGINS = frozenset(b"%d" % digit for digit in range(10)) | {b"-"}
_NAMED = 64  # characters of a name in an error
_LARGE = f"large may be: {', '.join(_Bulk.__struct_fields__)}"
_KEY = re.compile(rb'[ \t\r\n,{]*+"([^"\\]*+(?:\\.[^"\\]*+)*+)"[ \t\r\n]*+:[ \t\r\n]*+').match

_EMPTY = re.compile(rb'""|\[[ \t\r\n]*\]').fullmatch


class Ask(Struct, gc=False):
    """A request: the few fields Freehold reads, and all of them for the engine."""

    kind: Kind
    model: str
    stream: bool
    include_usage: bool
    prompts: int
    per_prompt: int  # choices in the answer for each prompt
    n: int  # choices the engine works out, of all prompts; more than in the answer where it is to keep the best
    limits: dict[str, int]  # the caller's words for the most tokens a choice, and what they say; -1: no limit
    options: dict[str, Raw]  # stream_options
    fields: dict[str, Raw]

    @property
    def max_tokens(self) -> int | None:
        """Tokens that a choice may have by the caller's own word; None: they set no limit.

        Of two limits the larger: in a chat llama.cpp, vLLM and SGLang go by `max_completion_tokens`, for a completion
        the latter two by `max_tokens` alone.
        """
        limits = self.limits.values()
        return None if not limits or _UNLIMITED in limits else max(1, *limits)

    def for_engine(self, model: str, *, stream: bool, more: Mapping[str, object], cap: int | None) -> bytes:
        """The same request for the engine, rebuilt from its fields: nothing in it is there twice.

        `model`: the engine's name for it. `stream`: ask for a stream, with the usage we need. `more`: the engine's own
        fields, which win. `cap`: the most tokens a choice may have, sent under the caller's names for it if there are.
        """
        fields: dict[str, object] = {**self.fields, "model": model}
        if stream and not self.include_usage:
            fields["stream_options"] = {**self.options, "include_usage": True}
        if stream and not self.stream:
            fields["stream"] = True
        if cap is not None and self.kind != "embedding":
            if not self.limits:
                fields["max_tokens"] = cap
            for name, limit in self.limits.items():
                if not 0 <= limit <= cap:
                    fields[name] = cap
        fields.update(more)
        return _encode(fields)


def read_ask(body: bytes, kind: Kind) -> Ask:
    """Read a request. Raises BadRequest, naming the field.

    Fields that we do not read pass, but none may be there twice: an engine may take the other one.
    """
    fields = _read_object(body)
    return _read_embedding(fields) if kind == "embedding" else _read_completion(fields, kind)


def _read_completion(fields: dict[str, Raw], kind: Kind) -> Ask:
    stream = include_usage = False
    n = best_of = prompts = 1
    limits, options = _NO_LIMITS, _NO_OPTIONS
    name = "model"
    try:
        model = _decode_model(fields["model"])
        if "stream" in fields:
            name = "stream"
            stream = _decode_flag(fields["stream"]) is True
        if "stream_options" in fields:
            name = "stream_options"
            options = _read_options(fields["stream_options"])
            include_usage = "include_usage" in options and _decode_flag(options["include_usage"]) is True
        if "n" in fields:
            name = "n"
            n = _decode_choices(fields["n"]) or 1
        if "best_of" in fields:
            name = "best_of"
            best_of = _decode_choices(fields["best_of"]) or 1
        if "max_tokens" in fields or "max_completion_tokens" in fields:
            name = "max_tokens"
            limits = _read_limits(fields, at_least=1 if kind == "chat" else 0)
        if kind == "completion" and "prompt" in fields:
            name = "prompt"
            prompts = _count_prompts(fields["prompt"])
            if max(n, best_of) > 1 and _some_empty(fields["prompt"]):
                raise ValueError("one is empty, and n is more than 1")  # llama.cpp b11549 would never answer
    except KeyError:
        raise BadRequest("you must provide a model parameter", param="model") from None
    except _UNREADABLE as error:
        raise BadRequest(f"Invalid value for `{name}`: {error}", param=name) from None
    return Ask(kind, model, stream, include_usage, prompts, n, prompts * max(n, best_of), limits, options, fields)


def _read_embedding(fields: dict[str, Raw]) -> Ask:
    """What is to be embedded fills as many slots of an engine as prompts would."""
    name = "model"
    try:
        model = _decode_model(fields["model"])
        name = "stream"
        if name in fields and _decode_flag(fields[name]):
            raise ValueError("embeddings come whole")
        name = "input"
        inputs = _count_prompts(fields[name], _decode_inputs, MOST_INPUTS)
    except KeyError:
        raise BadRequest(f"you must provide a {name} parameter", param=name) from None
    except _UNREADABLE as error:
        raise BadRequest(f"Invalid value for `{name}`: {error}", param=name) from None
    return Ask("embedding", model, False, False, inputs, 1, inputs, _NO_LIMITS, _NO_OPTIONS, fields)


def _read_object(body: bytes) -> dict[str, Raw]:
    """The fields of a body. Takes a time that grows with its length only, and little memory beside it."""
    try:
        if not body.isascii():
            str(body, "utf-8")
        if len(body) > _SMALL_BYTES:
            bulk = msgspec.structs.astuple(_decode_bulk(body))
            if len(body) - sum(map(len, bulk)) > _SMALL_BYTES:
                raise BadRequest(f"the request's smaller fields take more than {_SMALL_BYTES >> 10} KiB", hint=_LARGE)
        fields = _decode_fields(body)
        if len(fields) > MOST_FIELDS:
            raise BadRequest(f"the request has more than {MOST_FIELDS} fields")
        if len(body) - len(_encode(fields)) >= _SHORTEST_PAIR and (again := _given_twice(body, fields)) is not None:
            raise BadRequest(f"`{again}` is given more than once", param=again)
    except _UNREADABLE as error:
        raise BadRequest(f"We could not parse the JSON body of your request: {error}") from None
    return fields


def _given_twice(body: bytes, fields: dict[str, Raw]) -> str | None:
    """Go along a JSON object, to see that what was read of it is all. If not, the name of a field that is there again.

    Only needed where what was read is shorter: most often by the spaces between the fields.
    """
    at = 0
    for name, value in fields.items():
        key = _KEY(body, at)
        if key is None:
            return name
        found = key[1]
        if found != name.encode() and (found := _decode_str(b'"%b"' % found)) != name:
            return found[:_NAMED]
        at = key.end()
        if not body.startswith(value, at):
            return name[:_NAMED]
        at += len(value)
    beyond = _KEY(body, at)
    return _decode_str(b'"%b"' % beyond[1])[:_NAMED] if beyond else None


def _read_limits(fields: dict[str, Raw], at_least: int) -> dict[str, int]:
    """0 is a limit only where nothing but the prompt may come back: in a chat it means to some engines that none is."""
    limits = {}
    for name in ("max_tokens", "max_completion_tokens"):
        if name in fields and (limit := _decode_limit(fields[name])) is not None:
            if _UNLIMITED < limit < at_least:
                raise ValueError("an answer has at least 1 token")
            limits[name] = limit
    return limits


def _read_options(raw: Raw) -> dict[str, Raw]:
    options = _decode_options(raw) or _NO_OPTIONS
    if options and len(raw) - len(_encode(options)) >= _SHORTEST_PAIR:
        again = _given_twice(bytes(raw), options)
        if again is not None:
            raise BadRequest(f"`stream_options.{again}` is given more than once", param="stream_options")
    return options


def _count_prompts(raw: Raw, decode: Callable[[Raw], Struct] = _decode_prompts, most: int = MOST_PROMPTS) -> int:
    """A list that begins with a number is one prompt, of tokens; any other list, one for each of its elements."""
    if bytes(memoryview(raw)[:1]) != b"[":
        return 1
    prompts = msgspec.structs.astuple(decode(raw))
    if bytes(memoryview(prompts[0])[:1]) in _NUMBER_BEGINS:
        return 1
    count = sum(map(bool, map(len, prompts)))
    if count > most:
        raise ValueError(f"more than {most} of them")
    return max(1, count)


def _some_empty(raw: Raw) -> bool:
    if bytes(memoryview(raw)[:1]) != b"[":
        return _EMPTY(raw) is not None
    prompts = msgspec.structs.astuple(_decode_prompts(raw))
    return not len(prompts[0]) or any(_EMPTY(prompt) for prompt in prompts if len(prompt))


def error_body(error: FreeholdError) -> bytes:
    message = f"{error} ({error.hint})" if error.hint else str(error)
    return _encode({"error": WireError(message=message, type=error.type, code=error.code, param=error.param)})


def model_list(names: list[str], created_s: int) -> bytes:
    return _encode({"object": "list", "data": [model(name, created_s) for name in names]})


def model(name: str, created_s: int) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created_s, "owned_by": "freehold"}


def _random_digits() -> Iterator[str]:
    """64 random bits each time, at a hundredth of a system call's cost."""
    while True:
        pool = os.urandom(4096).hex()
        for at in range(0, len(pool), 16):
            yield pool[at : at + 16]


_more_digits = _random_digits().__next__


def new_request_id(now_ns: int) -> str:
    """Ordered by time, so that an index on it grows at its end; nobody can guess one."""
    return f"req-{now_ns:016x}{_more_digits()}"
