"""What all requests share: keys, limits, fleet, book; what is read of their headers; and who is on their way."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from freehold.errors import BadRequest, FreeholdError, NotSupported, QueueFull
from freehold.fleet.fleet import Fleet, unknown_model
from freehold.fleet.route import Route
from freehold.gateway.accounts import Terms
from freehold.gateway.forwarded import caller_address
from freehold.gateway.keyring import Keyring
from freehold.gateway.logs import RequestLog
from freehold.gateway.metrics import Metrics
from freehold.gateway.openai import Ask, Kind
from freehold.types import Key, Tokens, UsageRecord

if TYPE_CHECKING:
    from freehold.gateway.passage import Passage

KINDS: dict[str, Kind] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/embeddings": "embedding",
}
BODIES_BYTES = 512 << 20  # of all requests on their way: who waits for a cold engine waits in our memory
TICK_S = 0.25
# What a chat template may add to what callers send: its own system prompt, and the marks around each message, for which
# there is room in the JSON around them.
TEMPLATE_TOKENS = 1024
UNSEEN_TOKENS = 32  # a choice: what an engine may produce until it notices that it should stop
_AFFINITY_BYTES = 4096
_LONG_BYTES = 1024  # of a first message, the system's: whoever shares that, shares enough
_log = logging.getLogger("freehold.gateway")
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_TRACE_PARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Head(NamedTuple):
    """What is read of a request's headers."""

    authorization: bytes | None = None
    address: str = ""  # where it came from
    caller_request: str = ""  # their x-request-id
    trace: bytes = b""  # lines for the engine
    wait_s: float | None = None  # how long they wait for a cold engine
    progress: bool = False  # they want to be told meanwhile


class _Beginning(msgspec.Struct, array_like=True, gc=False):
    """The first messages, and none of the million behind them."""

    first: msgspec.Raw = msgspec.Raw()
    second: msgspec.Raw = msgspec.Raw()


_decode_beginning = msgspec.json.Decoder(_Beginning).decode


class Bound(NamedTuple):
    """The most that a request may use."""

    prompt: int  # tokens
    completion: int  # of all choices
    rate_tokens: int  # a likely number, for limits by the minute
    pico: int
    cap: int | None  # completion tokens of a choice; sent to the engine

    @property
    def tokens(self) -> int:
        return self.prompt + self.completion

    def unseen(self, seen: Tokens, streamed: int | None) -> Tokens:
        """What an engine may have used beyond what was seen of it: it stays reserved, or who hangs up pays nothing.

        `streamed`: choices that came as they were produced; None: the answer comes whole or not at all.
        """
        completion = max(0, self.completion - seen.completion)
        if streamed is not None:
            completion = min(completion, UNSEEN_TOKENS * streamed)
        return Tokens(prompt=0 if seen.prompt else self.prompt, completion=completion)


class Desk:
    """One owner: the event loop."""

    def __init__(self, fleet: Fleet, keyring: Keyring, metrics: Metrics | None = None) -> None:
        """`keyring` is loaded."""
        self.fleet, self.ground = fleet, fleet.ground
        self.keyring, self.accounts, self.metrics = keyring, keyring.accounts, metrics or Metrics()
        self._log = RequestLog() if fleet.config.server.log_requests else None
        self.trusted = fleet.config.server.trusted_proxies
        self.passages: set[Passage] = set()
        self._bodies_bytes = 0
        self._secret = secrets.token_bytes(32)
        self._salts: dict[str, str] = {}

    def read(self, headers: Iterable[tuple[bytes, bytes]], peer: str) -> Head:
        """Names are in lower case. What is not well-formed is as if it were not there."""
        found = {name: value for name, value in headers if name in _WANTED}
        address = peer
        if self.trusted:
            forwarded = b",".join([value for name, value in headers if name == b"x-forwarded-for"])
            address = caller_address(peer, forwarded, self.trusted)
        if len(found) <= 1:  # as nearly always
            return Head(found.get(b"authorization"), address)
        caller = found.get(b"x-request-id", b"")
        return Head(
            found.get(b"authorization"),
            address,
            caller.decode() if _REQUEST_ID.fullmatch(caller) else "",
            _trace(found),
            _seconds(found.get(b"x-scale-up-timeout")),
            found.get(b"x-wake-progress") in (b"1", b"true"),
        )

    def key(self, head: Head) -> Key:
        """Whose request it is. Raises BadKey, Forbidden."""
        key = self.keyring.find(head.authorization)
        self.accounts.terms(key).require_address(head.address)
        return key

    def check_room(self, key: Key, body_bytes: int) -> None:
        """Raises QueueFull when the bodies of all that are on their way would take too much memory."""
        if self._bodies_bytes + body_bytes > BODIES_BYTES:
            self.keyring.limits.hit("bytes waiting", key.id)
            raise QueueFull("too much is waiting here already", retry_after_s=5)

    def usable(self, key: Key) -> list[str]:
        """The endpoints this key may ask now."""
        now_ns, terms = self.ground.clock_ns(), self.accounts.terms(key)
        routes = [self.fleet.find(name) for name in self.fleet.endpoints]
        usable = [each for each in routes if not each.refusal(now_ns) and each.answers(terms.rules)]
        named = (name for each in usable for name in (each.name, *(f"{each.name}:{a}" for a in each.roster.aliases)))
        return [name for name in named if terms.may_use(name)]

    def route(self, terms: Terms, ask: Ask, name: str, now_ns: int) -> tuple[Route, str]:
        """The way to this endpoint, if the key, policy and its engine let the request through. Raises FreeholdError.

        With it the version of the adapter that `endpoint:adapter` means; "" where the base is asked for.
        """
        endpoint, colon, alias = name.partition(":")
        if colon and endpoint not in self.fleet.endpoints:
            raise unknown_model(name)
        route = self.fleet.find(endpoint)
        if colon and alias not in route.roster.aliases:
            raise unknown_model(name)
        terms.require_endpoint(name)
        if error := route.refusal(now_ns):
            raise error
        if not route.refused_fields.isdisjoint(ask.fields):
            field = min(route.refused_fields & ask.fields.keys())
            why = route.engine.refused_fields[field]
            raise BadRequest(f"Unrecognized request argument supplied: {field}", hint=why, param=field)
        _require_held(route, ask, name)
        if ask.kind == "embedding" and (colon or not route.endpoint.embeds):  # llama.cpp would leave the adapter out
            hint = "ask its base" if colon else "its operator may set: embeddings = true"
            raise NotSupported(f"`{name}` makes no embeddings", hint=hint, param="model")
        return route, route.roster.pick(alias).name if colon else ""

    def bound(self, route: Route, terms: Terms, ask: Ask, body_bytes: int) -> Bound:
        """The most that this request may use, by its endpoint or those that stand in for it. Raises BadRequest."""
        context, asked = route.context, ask.max_tokens
        cap = 0 if ask.kind == "embedding" else route.cap(context)
        longest = asked if cap is None or (asked is not None and asked < cap) else cap
        if not terms.accounts:
            return Bound(0, 0, 0, 0, longest)
        if longest is None:
            if terms.budgeted:
                raise BadRequest(
                    "this key has a budget, and nobody says how long the answer may be",
                    hint="send max_tokens; or set max_completion_tokens of the endpoint",
                    param="max_tokens",
                )
            return Bound(0, 0, body_bytes // 4, 0, None)
        prompt = body_bytes + TEMPLATE_TOKENS
        if "tools" in ask.fields:  # templates may write them out at more length
            prompt += len(bytes(ask.fields["tools"]))
        if context and prompt > context * ask.prompts:
            prompt = context * ask.prompts
        completion = longest * ask.n
        pico = route.price.prompt_pico_per_token * prompt + route.price.completion_pico_per_token * completion
        for name in route.endpoint.fallback:
            price = self.fleet.find(name).price
            other_pico = price.prompt_pico_per_token * prompt + price.completion_pico_per_token * completion
            pico = max(pico, other_pico)
        rate = body_bytes // 4 + (0 if asked is None else asked * ask.n)
        return Bound(prompt, completion, rate, pico, longest)

    def salt(self, group: str) -> str:
        """What keeps a group's prompts apart in an engine's cache; nobody can guess another's."""
        if (salt := self._salts.get(group)) is None:
            digest = hashlib.blake2b(group.encode(), key=self._secret, digest_size=16)
            salt = self._salts[group] = digest.hexdigest()
        return salt

    def affinity(self, ask: Ask, group: str) -> bytes:
        """What requests with the same beginning share."""
        raw = ask.fields.get("prompt", b"")
        if "messages" in ask.fields:
            with suppress(msgspec.DecodeError, RecursionError):
                first, second = map(bytes, msgspec.structs.astuple(_decode_beginning(ask.fields["messages"])))
                raw = first if len(first) >= _LONG_BYTES else first + second
        return group.encode() + bytes(memoryview(raw)[:_AFFINITY_BYTES])

    def enter(self, passage: Passage, body_bytes: int) -> None:
        self.passages.add(passage)
        self._bodies_bytes += body_bytes

    def leave(self, passage: Passage, body_bytes: int) -> None:
        self.passages.discard(passage)
        self._bodies_bytes -= body_bytes

    def settled(self, record: UsageRecord) -> None:
        self.metrics.settled(record)
        if self._log:
            self._log.settled(record)

    def refused(self, error: FreeholdError) -> None:
        """A request was turned away before it had a record."""
        self.metrics.refused(error.code or "bad_request")

    def cut(self) -> None:
        """Whoever is still on their way: the daemon ends."""
        for passage in tuple(self.passages):
            passage.cut()

    async def tick(self) -> None:
        """Until cancelled: whatever takes too long ends."""
        while True:
            await asyncio.sleep(TICK_S)
            now_ns = self.ground.clock_ns()
            for passage in tuple(self.passages):
                try:
                    passage.tick(now_ns)
                except Exception:  # noqa: BLE001  the door of a request: it ends, the others are looked at
                    _log.exception("request %s", passage.record.request)
                    passage.cut()


_WANTED = frozenset(
    (
        b"authorization", b"x-forwarded-for", b"x-request-id", b"traceparent", b"tracestate", b"x-scale-up-timeout",
        b"x-wake-progress",
    )
)  # fmt: skip


def _require_held(route: Route, ask: Ask, name: str) -> None:
    """Raises NotSupported where the engine would answer with 200 and do something else."""
    for field, (values, hint) in route.engine.holds_only.items():
        if field in ask.fields and bytes(ask.fields[field]) not in values:
            said = f"the engine behind `{name}` does not hold to this `{field}`"
            raise NotSupported(said, hint=hint, param=field)


def _trace(found: dict[bytes, bytes]) -> bytes:
    """W3C's trace context, for the engine."""
    parent, state = found.get(b"traceparent", b""), found.get(b"tracestate", b"")
    if not _TRACE_PARENT.fullmatch(parent):
        return b""
    more = b"tracestate: %b\r\n" % state if 0 < len(state) <= 512 and state.isascii() else b""
    return b"traceparent: %b\r\n%b" % (parent, more)


def _seconds(value: bytes | None) -> float | None:
    if value is None or not re.fullmatch(rb"\d{1,6}(\.\d{1,3})?", value):
        return None
    return float(value)
