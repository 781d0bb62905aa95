"""OpenAI's wire as far as Freehold speaks it itself: requests it reads, errors and model lists it writes."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from freehold.errors import BadRequest, FreeholdError
from freehold.types import WireError

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


_decode_options = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode
_decode_include = msgspec.json.Decoder(StreamOptions | None).decode
_decode_model = msgspec.json.Decoder(str).decode
_decode_stream = msgspec.json.Decoder(bool | None).decode
_decode_n = msgspec.json.Decoder(int | None).decode


class Ask(msgspec.Struct):
    """A request: the few fields Freehold reads, and all of them for the engine."""

    model: str
    stream: bool
    include_usage: bool
    n: int  # choices asked for
    fields: dict[str, msgspec.Raw]

    def for_engine(self, model: str, stream_fields: Mapping[str, object], *, stream: bool) -> bytes:
        """The same request for the engine: its name for the model, and in a stream the counts we need.

        Rebuilt from the fields, so a name given twice cannot mean one thing here and another there.
        """
        fields: dict[str, object] = dict(self.fields)
        fields["model"] = model
        if stream:
            fields |= {"stream": True, **stream_fields}
            options = _decode_options(self.fields["stream_options"]) if "stream_options" in fields else None
            fields["stream_options"] = {**(options or {}), "include_usage": True}
        return _encode(fields)


def read_ask(body: bytes) -> Ask:
    """Read a request. Raises BadRequest, naming the field."""
    try:
        fields = _decode_fields(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"We could not parse the JSON body of your request: {error}") from None
    if "model" not in fields:
        raise BadRequest("you must provide a model parameter", param="model")
    n = _field(fields, "n", _decode_n)
    if n is not None and n < 1:
        raise BadRequest(f"Invalid value for `n`: {n} is less than 1", param="n")
    return Ask(
        model=_field(fields, "model", _decode_model),
        stream=bool(_field(fields, "stream", _decode_stream)),
        include_usage=bool((options := _field(fields, "stream_options", _decode_include)) and options.include_usage),
        n=n or 1,
        fields=fields,
    )


def _field(fields: dict[str, msgspec.Raw], name: str, decode: Any) -> Any:
    if name not in fields:
        return None
    try:
        return decode(fields[name])
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"Invalid value for `{name}`: {error}", param=name) from None


def error_body(error: FreeholdError) -> bytes:
    message = f"{error} ({error.hint})" if error.hint else str(error)
    return _encode({"error": WireError(message=message, type=error.type, code=error.code, param=error.param)})


def model_list(names: list[str], created_s: int) -> bytes:
    return _encode({"object": "list", "data": [model(name, created_s) for name in names]})


def model(name: str, created_s: int) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created_s, "owned_by": "freehold"}


def new_request_id() -> str:
    return f"req-{uuid.uuid4().hex}"
