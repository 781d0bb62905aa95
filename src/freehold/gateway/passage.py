"""One request on its way through: admitted, passed on, settled. Exactly one record, whatever happens.

The record is opened before the engine sees the request and settled before the caller sees the last byte. `admit`,
`settle` and `end` are plain synchronous functions.
"""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from freehold.errors import BadRequest, EngineFailed, FreeholdError, QueueFull
from freehold.fleet.external import ExternalReplica
from freehold.fleet.fleet import Fleet
from freehold.fleet.ground import Ground
from freehold.fleet.replica import Hold, Replica
from freehold.fleet.upstream import Exchange, Unanswered
from freehold.gateway.assembly import AssembledMeter
from freehold.gateway.keyring import Keyring
from freehold.gateway.meter import LARGEST_ANSWER_BYTES, StreamMeter, WholeMeter
from freehold.gateway.openai import Ask, new_request_id, read_ask
from freehold.policy import access
from freehold.types import Content, Key, Outcome, UsageRecord

_DAY_NS = 86_400 * 10**9
Kind = Literal["chat", "completion"]


def admit(fleet: Fleet, keyring: Keyring, key: Key, body: bytes, kind: Kind) -> Passage:
    """Let a request in and open its record. Raises FreeholdError: then there is none."""
    ask = read_ask(body)
    member = fleet.find(ask.model)
    now_ns = fleet.ground.clock_ns()
    if error := access.refusal(key, ask.model, now_ns) or fleet.refusal(ask.model, now_ns):
        raise error
    if stray := member.engine.refused_fields & ask.fields.keys():
        name = min(stray)
        raise BadRequest(f"Unrecognized request argument supplied: {name}", param=name)
    return Passage(fleet.ground, member, keyring, key, ask, kind=kind, body=body)


def _meter(ask: Ask, *, streamed: bool) -> StreamMeter | WholeMeter | AssembledMeter:
    if ask.stream:
        return StreamMeter(ask.model, n=ask.n, hide_usage=not ask.include_usage)
    return AssembledMeter(ask.model, ask.n) if streamed else WholeMeter(ask.model)


class Passage:
    """Made by `admit`. Whoever has one must `end` it."""

    def __init__(
        self,
        ground: Ground,
        member: Replica | ExternalReplica,
        keyring: Keyring,
        key: Key,
        ask: Ask,
        *,
        kind: Kind,
        body: bytes,
    ) -> None:
        self._ground, self._member, self._keyring, self._key, self._ask = ground, member, keyring, key, ask
        self._began_ns = self._ground.clock_ns()
        self._hold: Hold | None = None
        self._exchange: Exchange | None = None
        self._settled = False
        self._question = b"" if key.content_days is None else body
        self._kept = None if key.content_days is None else bytearray()  # what the caller was sent
        self.stream = ask.stream
        self._streamed = ask.stream or member.engine.answers_by_stream
        self.meter = _meter(ask, streamed=self._streamed)
        self.deadline_seconds = member.endpoint.request_seconds
        self.record = UsageRecord(
            request=new_request_id(),
            key=key.id,
            endpoint=ask.model,
            kind=kind,
            stream=ask.stream,
            started_ns=self._began_ns,
        )
        self._ground.book.open_request(self.record)

    async def send(self, path: str) -> Exchange:
        """Hold a replica, waking it if need be, and send the request on. Returns when the head of the answer is there.

        An engine that died before a byte of its answer has done nothing that anybody saw, so the request waits once for
        its next run.
        """
        member = self._member
        served_model = member.endpoint.served_model or self._ask.model
        body = self._ask.for_engine(served_model, member.engine.stream_fields, stream=self._streamed)
        try:
            return await self._attempt(path, body)
        except Unanswered:
            run = self._hold.run if self._hold else 0
            self._release(served=False)
            if not await member.is_over(run):
                raise
            return await self._attempt(path, body)

    async def _attempt(self, path: str, body: bytes) -> Exchange:
        self._hold = self._member.try_hold()
        if self._hold is None:
            try:
                self._hold = await self._member.hold()
            except QueueFull:
                self._keyring.limits.hit("requests waiting", self._key.id, self._ask.model)
                raise
            self._keyring.check(self._key)  # it may have been revoked while this waited
        queue_ms = self._elapsed_ms()
        self._exchange = exchange = Exchange(self._hold.upstream)
        await exchange.start("POST", path, body)
        self.record = replace(self.record, queue_ms=queue_ms, status=exchange.status)
        return exchange

    def translate(self, status: int, body: bytes) -> FreeholdError:
        """The engine's refusal, as OpenAI's clients know it."""
        status, said = self._member.engine.error(status, body)
        error = EngineFailed(said.message, param=said.param)
        error.status, error.type, error.code = status, said.type, said.code
        return error

    def feed(self, piece: bytes) -> bytes:
        """What of this piece the caller is to see now. Settles when it is the last they wait for."""
        if self.record.first_byte_ms is None:
            self.record = replace(self.record, first_byte_ms=self._elapsed_ms())
        passed = self.meter.feed(piece)
        if self._kept is not None:
            self._kept += passed[: LARGEST_ANSWER_BYTES - len(self._kept)]
        if self.meter.done:
            self.settle(self._outcome())
        return passed

    def finish(self) -> bytes:
        """The engine has ended its answer: what the caller has still to see. Settles."""
        passed = self.meter.close()
        if self._kept is not None:
            self._kept += passed[: LARGEST_ANSWER_BYTES - len(self._kept)]
        self.settle(self._outcome())
        return passed

    def _outcome(self) -> Outcome:
        whole = self.meter.done or self.meter.exact
        return "ok" if whole and not self.meter.failed else "error"

    def settle(self, outcome: Outcome, status: int | None = None) -> None:
        """Close the record with what was counted, once; later calls change nothing."""
        if self._settled:
            return
        self._settled = True
        tokens = self.meter.tokens
        self.record = replace(
            self.record,
            status=self.record.status if status is None else status,
            outcome=outcome,
            prompt_tokens=tokens.prompt,
            completion_tokens=tokens.completion,
            cached_tokens=tokens.cached,
            lower_bound=not self.meter.exact and self._exchange is not None and self._exchange.status in (0, 200),
            total_ms=self._elapsed_ms(),
            charge_pico=self._member.endpoint.price.charge_pico(tokens),
            machine_pico=self._release(served=outcome == "ok"),
        )
        content = None
        if self._kept is not None:
            until_ns = self._began_ns + (self._key.content_days or 0) * _DAY_NS
            content = Content(question=self._question, answer=bytes(self._kept), until_ns=until_ns)
        self._ground.book.settle_request(self.record, content)

    def fail(self, status: int | None) -> None:
        """The engine, or the time, came to an end before the answer did."""
        if self._exchange:
            self._exchange.cancel()  # before the end this closes the connection, and the engine stops its work
        self.settle("error", status)

    def end(self) -> None:
        """Let go of everything. A caller who left before the record was settled has cut it."""
        if self._exchange:
            self._exchange.cancel()
        self.settle("cut")
        self._release(served=False)

    def _release(self, *, served: bool) -> int:
        hold, self._hold = self._hold, None
        return self._member.release(hold, served=served) if hold else 0

    def _elapsed_ms(self) -> float:
        return round((self._ground.clock_ns() - self._began_ns) / 1e6, 3)
