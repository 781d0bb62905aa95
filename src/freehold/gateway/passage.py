"""One request on its way through: admitted, placed, passed on, settled. Exactly one record, whatever happens.

The record is opened before the engine sees the request and settled before the caller sees the last byte. Everything
here is a callback: of the journal when it is safe, of the route when a replica is held, of the connection as the answer
comes, of the caller who leaves. No task and no await a request. Two faces share it: see app.py and fast.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Set as AbstractSet

import msgspec

from freehold.errors import EngineFailed, FreeholdError, NotSupported, QueueFull, TimedOut
from freehold.fleet.route import Hold
from freehold.fleet.upstream import Connection
from freehold.gateway.assembly import Meter, meter_of
from freehold.gateway.caller import JSON, STREAM, Caller, Pairs, told, unforeseen
from freehold.gateway.desk import KINDS, Desk, Head
from freehold.gateway.meter import LARGEST_ANSWER_BYTES, WholeMeter
from freehold.gateway.openai import Kind, error_body, new_request_id, read_ask
from freehold.types import Content, Key, Outcome, Tokens, UsageRecord

_DAY_NS = 86_400 * 10**9
_PATHS = {kind: path for path, kind in KINDS.items()}
_LARGEST_REFUSAL_BYTES = 64 << 10
_NO_SUCH_ROUTE = (404, 405, 501)
_log = logging.getLogger("freehold.gateway")
_ATTEMPTS = 2  # on replicas of our own; of others each is tried once


class Passage:
    """It is over when it was settled and its caller told, or left."""

    # What most requests never change; the rest is set when they are made.
    connection: Connection | None = None
    tried: AbstractSet[str] = frozenset()
    _hold: Hold | None = None
    _begun = _settled = _left = _paused = _moved = _waited = _some_done = False
    _attempts = _noted = 0
    _asked = 0  # how often an engine may have seen it
    _status = 0  # of the engine's answer
    _refusal = b""
    _parting: tuple[int, Pairs, bytes] | None = None  # what the caller gets once the record is safe
    _question = b""
    meter: Meter = WholeMeter("")  # until an engine is asked: it counted nothing
    _kept: bytearray | None = None  # what the caller was sent, of a key that keeps it

    def __init__(self, desk: Desk, key: Key, head: Head, body: bytes, kind: Kind) -> None:
        """Let a request in. Raises FreeholdError: then there is no record of it. Whoever has it must `start` it."""
        desk.check_room(key, len(body))
        self._ask = ask = read_ask(body, kind)
        now_ns = self._began_ns = self._now_ns = desk.ground.clock_ns()
        self._since_ns = now_ns  # when what is going on now began: waiting, somebody's silence
        self._terms = terms = desk.accounts.terms(key)
        route, self.adapter = desk.route(terms, ask, ask.model, now_ns)
        self._route = route
        bound = desk.bound(route, terms, ask, len(body))
        self._bound, self._cap = bound, bound.cap
        self._desk, self._key, self._head, self._kind, self._body_bytes = desk, key, head, kind, len(body)
        self._fallbacks = route.endpoint.fallback
        self.account, self.group = key.id, key.group or key.id
        if self.adapter:  # what it caches is of no use to the base, and wrong for it
            self.group = f"{self.group}\0{self.adapter}"
        self.priority, self.rules, self.choices, self.stream = terms.priority, terms.rules, ask.n, ask.stream
        self.affinity = desk.affinity(ask, self.group) if len(route.replicas) > 1 else b""
        if key.content_days is not None:
            self._question, self._kept = body, bytearray()
        request = new_request_id(now_ns)
        self._id = request.encode()
        self.record = record = UsageRecord(
            request=request,
            key=key.id,
            endpoint=ask.model,
            kind=kind,
            stream=ask.stream,
            started_ns=now_ns,
            group=key.group,
            policy=terms.policy,
            caller_request=head.caller_request,
        )
        try:  # last: what was reserved is given back only by whoever was let in
            self._reservation = terms.reserve(bound.tokens, bound.rate_tokens, bound.pico, now_ns, ask.model)
        except FreeholdError as error:
            error.headers = terms.headers(now_ns)
            raise
        if self._reservation:
            record.held_tokens, record.held_pico = bound.tokens, bound.pico

    def start(self, caller: Caller) -> None:
        """On its way: from now on the caller is told, and `hang_up` says that they left."""
        self._caller = caller
        self._desk.enter(self, self._body_bytes)
        self._desk.ground.book.open_request(self.record, self._opened, self._route.price)

    # towards the engine

    def _opened(self, error: FreeholdError | None) -> None:
        if self._settled:
            return
        if error:  # it cannot be recorded, so it does not go through, and there is no record of it
            self._settled = True
            if self._reservation:
                self._reservation.settle(0, 0, self._began_ns)
            self._desk.leave(self, self._body_bytes)
            self._caller.answer(*told(error))
            return
        try:
            self._place()
        except Exception:  # noqa: BLE001  the door of a request: it ends, and whoever called goes on
            self._fail_unforeseen()

    def _place(self) -> None:
        try:
            hold = self._route.place(self)
        except FreeholdError as error:
            if isinstance(error, QueueFull):
                self._desk.keyring.limits.hit("requests waiting", self._key.id, self._route.name)
            self.refused(error)
        else:
            if hold:
                self.placed(hold)
            else:
                self._waited = True
                if self._head.wait_s == 0:
                    self._tick_waiting(0.0)

    def placed(self, hold: Hold) -> None:
        """The route calls this, at once or later."""
        self._hold = hold
        try:
            self._go(hold)
        except FreeholdError as error:
            self._fail(error)
        except Exception:  # noqa: BLE001  the door of a request: it ends, and whoever let it in goes on
            self._fail_unforeseen()

    def _go(self, hold: Hold) -> None:
        record = self.record
        record.replica, record.run = hold.replica.name, hold.run
        if self._waited:
            now_ns = self._since_ns = self._desk.ground.clock_ns()
            record.queue_ms = _ms(now_ns - self._began_ns)
            record.wake_ms = max(record.wake_ms, _ms(min(now_ns, hold.replica.ready_ns) - self._began_ns))
            self._desk.keyring.check(self._key)  # it may have been revoked meanwhile
        endpoint, engine, ask = self._route.endpoint, self._route.engine, self._ask
        streamed = ask.stream or (engine.answers_by_stream and ask.kind != "embedding")
        salted = self._route.salted
        hides = engine.hides_cache_hits and not salted
        record.served_model = self.adapter or endpoint.served_model or ""  # anew: another endpoint may have failed
        self.meter = meter_of(ask, record.endpoint, streamed=streamed, hide_cached=hides)
        # llama.cpp embeds in whichever slot it likes, and leaves the text there: nobody knows whose a cache is.
        same = hold.same and endpoint.prefix_caching and not endpoint.embeddings
        more = engine.isolate(self._desk.salt(self.group), hold.slot, same=same, salted=salted)
        if streamed and engine.stream_fields:
            more = {**more, **engine.stream_fields}
        if self.adapter:
            more = {**more, **hold.replica.adapters[self.adapter]}
        model = endpoint.served_model or self._route.name
        body = ask.for_engine(model, stream=streamed, more=more, cap=self._cap)
        headers = b"x-request-id: %b\r\n%b" % (self._id, self._head.trace)
        self._attempts += 1
        self._asked += 1
        hold.upstream.send(self, hold.upstream.request("POST", _PATHS[self._kind], body, headers))

    def refused(self, error: FreeholdError) -> None:
        """The route calls this, too: nobody there will answer."""
        try:
            self._turn_elsewhere(error)
        except Exception:  # noqa: BLE001  the door of a request: it ends, and whoever called goes on
            self._fail_unforeseen()

    def _turn_elsewhere(self, error: FreeholdError) -> None:
        """This endpoint cannot answer: another one, where its configuration and the key allow that."""
        now_ns = self._desk.ground.clock_ns()
        while self._fallbacks:
            name, *self._fallbacks = self._fallbacks
            try:
                route, self.adapter = self._desk.route(self._terms, self._ask, name, now_ns)
            except FreeholdError:
                continue
            self.record.asked = self.record.asked or self._ask.model
            self.record.endpoint = name
            self._cap = min((cap for cap in (self._cap, route.cap(route.context)) if cap), default=None)
            self._route, self._since_ns, self._attempts = route, now_ns, 0
            self._place()
            return
        self._fail(error)

    # the connection calls these

    @property
    def wanted(self) -> bool:
        return not self._settled

    def on_head(self, status: int) -> None:
        hold = self._hold
        self._status, self._moved = status, True
        self.record.status = status
        if hold:
            hold.replica.answering(hold, status)
        if status == 200 and self.stream:
            self._begin()
        if self._paused:  # since before there was a connection
            self.pause()

    def on_piece(self, piece: bytes) -> None:
        self._moved = True
        if self._status != 200:
            self._refusal += piece[: _LARGEST_REFUSAL_BYTES - len(self._refusal)]
            return
        if self.record.first_byte_ms is None:
            self._now_ns = self._desk.ground.clock_ns()
            self.record.first_byte_ms = _ms(self._now_ns - self._began_ns)
        passed = self._metered(self.meter.feed, piece)
        if passed is None:
            return
        self._keep(passed)
        if self.meter.done:  # what the engine says after this, nobody waits for
            connection = self.connection
            self._settle(self._outcome(), (200, (), passed))
            if connection:
                connection.let_finish()
        elif passed:
            self._caller.write(passed)

    def _metered(self, step: Callable[..., bytes], *piece: bytes) -> bytes | None:
        """What the caller is to see; None when it was no answer, and the request has failed."""
        try:
            return step(*piece)
        except EngineFailed as error:
            self._fail(error)
        except Exception:  # noqa: BLE001  the door of an engine's answer
            self._fail_unforeseen()
        return None

    def _keep(self, passed: bytes) -> None:
        if self._kept is not None:
            self._kept += passed[: LARGEST_ANSWER_BYTES - len(self._kept)]

    def on_end(self) -> None:
        if self._settled:
            return
        if self._status != 200:
            self._fail(self._translated())
            return
        passed = self._metered(self.meter.close)
        if passed is None:
            return
        if self.meter.failed and not self.stream:  # an error, whatever its status says
            self._status, self._refusal = 500, passed
            self._fail(self._translated())
            return
        if self._outcome() == "error" and not self.meter.failed:  # else it would look like a whole answer
            self._fail(EngineFailed("the engine ended its answer in the middle"))
            return
        self._keep(passed)
        self._settle(self._outcome(), (200, (JSON,), passed))

    def on_failure(self, reason: str, *, answered: bool, sent: bool = True) -> None:
        if self._settled:
            return
        hold, error = self._hold, EngineFailed(f"the engine did not answer: {reason}", retry_after_s=2)
        self._asked -= not sent
        if answered or hold is None:
            self._fail(EngineFailed(f"the engine went away: {reason}"))
            return
        hold.replica.unanswered(hold.run)
        if not hold.run:
            self.tried |= {hold.replica.name}
        self._release(served=False)
        self._since_ns = self._desk.ground.clock_ns()
        if hold.run and self._attempts >= _ATTEMPTS:
            self.refused(error)
            return
        try:  # it has done nothing that anybody saw: another replica may, or its own next run
            again = self._route.place(self)
        except FreeholdError:
            self.refused(error)
        else:
            self._waited = True
            if again:
                self.placed(again)

    def _translated(self) -> FreeholdError:
        """The engine's refusal, as OpenAI's clients know it."""
        if self._kind == "embedding" and self._status in _NO_SUCH_ROUTE:
            return NotSupported(f"`{self._route.name}` makes no embeddings", param="model")
        status, said = self._route.engine.error(self._status, self._refusal)
        # Of several texts one was too long: llama.cpp has embedded others, and does not say how much that took.
        self._some_done = self._ask.prompts > 1 and said.code == "context_length_exceeded"
        error = EngineFailed(said.message, param=said.param)
        error.status, error.type, error.code = status, said.type, said.code
        return error

    # the caller

    def hang_up(self) -> None:
        """They left. What was not settled is cut; who computes for them stops."""
        self._left = True
        if not self._settled:
            self._stop()
            self._settle("cut", None)

    def cut(self) -> None:
        """The daemon ends, and cannot wait for this."""
        self.hang_up()
        self._caller.drop()

    def pause(self) -> None:
        """They do not read: neither do we, so that the engine's stream stops here and not in our memory."""
        self._paused = True
        self._since_ns = self._desk.ground.clock_ns()
        if self.connection:
            self.connection.transport.pause_reading()

    def resume(self) -> None:
        self._paused = False
        self._since_ns = self._desk.ground.clock_ns()
        if self.connection:
            self.connection.transport.resume_reading()

    def tick(self, now_ns: int) -> None:
        """A few times a second: has something taken too long?"""
        if self._settled:
            return
        endpoint = self._route.endpoint
        waited_s = (now_ns - self._since_ns) / 1e9
        if (now_ns - self._began_ns) / 1e9 > endpoint.request_seconds:
            self._fail(TimedOut(f"the request took longer than {endpoint.request_seconds:g} s"))
        elif self._hold is None:
            if self._waited:  # else its record is not open yet
                self._tick_waiting(waited_s)
        elif self._moved and not self._paused:
            self._moved, self._since_ns = False, now_ns
            self._note_progress()
        elif self._paused:
            if waited_s > endpoint.stall_seconds:
                self._caller.drop()  # which hangs up
        elif not self._status and waited_s > endpoint.first_byte_seconds:
            self._hold.replica.unanswered(self._hold.run)
            self._fail(TimedOut(f"the engine gave no answer within {endpoint.first_byte_seconds:g} s"))
        elif self._status and waited_s > endpoint.stall_seconds:
            self._fail(TimedOut(f"the engine said nothing for {endpoint.stall_seconds:g} s"))

    def _tick_waiting(self, waited_s: float) -> None:
        route = self._route
        limit_s = route.endpoint.wait_seconds if self._head.wait_s is None else self._head.wait_s
        if waited_s >= limit_s:
            route.leave(self)
            self.refused(route.not_ready(f"`{route.name}` was not ready within {limit_s:g} s"))
        elif self._head.progress and self.stream and (said := route.progress()):
            self._begin()
            self._caller.write(b": %b\n\n" % msgspec.json.encode(said))

    def _note_progress(self) -> None:
        """What a crash would otherwise lose of a stream under way."""
        if isinstance(self.meter, WholeMeter):
            return
        tokens = self.meter.tokens
        if tokens.completion > self._noted:
            self._noted = tokens.completion
            self._desk.ground.book.note_progress(self.record.request, tokens)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self.record.status = 200
            self._caller.begin(200, (*STREAM, *self._headers()))

    def _headers(self) -> Pairs:
        """What every answer to an admitted request has."""
        limits = self._terms.headers(self._now_ns) if self._reservation else ()
        if theirs := self.record.caller_request:
            return ((b"x-request-id", theirs.encode()), (b"x-freehold-request-id", self._id), *limits)
        return ((b"x-request-id", self._id), *limits)

    # the end

    def _outcome(self) -> Outcome:
        whole = self.meter.done or self.meter.exact
        return "ok" if whole and not self.meter.failed else "error"

    def _fail(self, error: FreeholdError) -> None:
        """Before the first byte an answer of its own; in the middle of a stream a frame that clients raise from."""
        if self._settled:
            return
        self._stop()
        if self._begun:
            self._settle("error", (0, (), b"data: %b\n\n" % error_body(error)))
            return
        self.record.status = error.status
        self._settle("error", told(error))

    def _fail_unforeseen(self) -> None:
        _log.exception("request %s", self.record.request)
        self._fail(unforeseen())

    def _stop(self) -> None:
        if self.connection:
            self.connection.abort()  # which is how an engine learns to stop its work
        self._route.leave(self)

    def _settle(self, outcome: Outcome, parting: tuple[int, Pairs, bytes] | None) -> None:
        """Close the record with what was counted. `parting`: what the caller gets once that is safe."""
        self._settled, self._parting = True, parting
        desk, record, tokens = self._desk, self.record, self.meter.tokens
        record.outcome = outcome
        record.prompt_tokens, record.completion_tokens = tokens.prompt, tokens.completion
        record.cached_tokens, record.reasoning_tokens = tokens.cached, tokens.reasoning
        if self.choices > 1 and self._route.engine.repeats_prompts:
            record.repeated_tokens = tokens.prompt * (self.choices // self._ask.prompts - 1)
        record.lower_bound = not self.meter.exact and self._asked > 0 and (self._some_done or self._status in (0, 200))
        record.charge_pico = self._route.price.charge_pico(tokens)
        now_ns = self._now_ns = desk.ground.clock_ns()
        record.total_ms = _ms(now_ns - self._began_ns)
        if self._reservation:
            seen = None if isinstance(self.meter, WholeMeter) else self.choices
            unseen = self._bound.unseen(tokens, seen) if record.lower_bound else Tokens()
            record.held_tokens = unseen.prompt + unseen.completion
            record.held_pico = self._route.price.charge_pico(unseen)
            used, cost_pico = tokens.prompt + tokens.completion, record.charge_pico
            self._reservation.settle(used + record.held_tokens, cost_pico + record.held_pico, now_ns)
        record.machine_pico = self._release(served=outcome == "ok")
        content = None
        if self._kept is not None:
            until_ns = self._began_ns + (self._key.content_days or 0) * _DAY_NS
            content = Content(question=self._question, answer=bytes(self._kept), until_ns=until_ns)
        desk.leave(self, self._body_bytes)
        desk.ground.book.settle_request(record, content, self._part)

    def _part(self, _: FreeholdError | None) -> None:
        """The record is safe: the caller may have the rest."""
        self._desk.settled(self.record)
        if self._left or self._parting is None:
            return
        status, headers, body = self._parting
        if self._begun:
            self._caller.end(body)
        else:
            self._caller.answer(status, (*headers, *self._headers()), body)

    def _release(self, *, served: bool) -> int:
        hold, self._hold = self._hold, None
        return self._route.release(hold, served=served) if hold else 0


def _ms(ns: int) -> float:
    return ns // 1000 / 1000
