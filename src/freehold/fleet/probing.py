"""Questions of our own to an engine: recorded like any other, so that its counters are explained to the token."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from freehold.errors import EngineFailed
from freehold.fleet.ground import Ground
from freehold.fleet.upstream import Answer, Upstream
from freehold.fleet.wire import read_usage
from freehold.types import Tokens, UsageRecord

PROBE_KEY = "freehold"  # the key that they are recorded under


class Asked(NamedTuple):
    """Who is asked."""

    upstream: Upstream
    endpoint: str
    replica: str
    run: int = 0


class Said(NamedTuple):
    """A whole answer."""

    tokens: Tokens
    text: str


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message = msgspec.field(default_factory=_Message)


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []


_decode = msgspec.json.Decoder(_Answer).decode


async def probe_completion(asked: Asked, fields: Mapping[str, object], ground: Ground, *, max_tokens: int = 4) -> Said:
    """One real completion of the model that `fields` name. Raises EngineFailed when it is none."""
    began_ns = ground.clock_ns()
    record = UsageRecord(
        request=f"probe-{uuid.uuid4().hex}",
        key=PROBE_KEY,
        endpoint=asked.endpoint,
        kind="probe",
        stream=False,
        started_ns=began_ns,
        replica=asked.replica,
        run=asked.run,
    )
    ground.book.open_request(record)
    messages = [{"role": "user", "content": "Hello"}]
    body = msgspec.json.encode({"messages": messages, "max_tokens": max_tokens, "temperature": 0, **fields})
    answer, used = Answer(0, b""), None
    try:
        answer = await asked.upstream.fetch("POST", "/v1/chat/completions", body)
        used = read_usage(answer.body) if answer.status == 200 else None
    finally:
        tokens = used or Tokens()
        settled = msgspec.structs.replace(
            record,
            status=answer.status,
            outcome="ok" if used else "error",
            prompt_tokens=tokens.prompt,
            completion_tokens=tokens.completion,
            cached_tokens=tokens.cached,
            total_ms=(ground.clock_ns() - began_ns) / 1e6,
        )
        ground.book.settle_request(settled)
    if used is None:
        raise EngineFailed(
            f"a probe of `{asked.replica}` got {answer.status}: {answer.body[:200].decode(errors='replace')}",
            hint=f"freehold logs {asked.endpoint}",
        )
    return Said(used, _text(answer.body))


def _text(body: bytes) -> str:
    try:
        return next((choice.message.content or "" for choice in _decode(body).choices), "")
    except msgspec.DecodeError:
        return ""
