"""One endpoint: its replicas, and who waits for one of them.

Who asks is an `Asker`, told by a callback as soon as a replica is held for it: no task a request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple, Protocol

from freehold.engines import Engine, Launchable
from freehold.errors import FreeholdError, NotReady, QueueFull, Refused
from freehold.fleet.config import Endpoint
from freehold.fleet.permission import Permission, PlaceRules
from freehold.fleet.roster import Roster
from freehold.fleet.slots import Slots
from freehold.fleet.upstream import Upstream
from freehold.policy.balance import choose
from freehold.policy.fairness import FairQueue
from freehold.policy.law import in_words
from freehold.policy.lifecycle import Happening
from freehold.types import Objection


class Hold(NamedTuple):
    """A ready replica, kept ready until it is given back with `Route.release`."""

    replica: Member
    upstream: Upstream
    run: int
    mark: float  # where the occupancy account stood
    choices: int
    group: str
    slot: int | None  # of the engine's cache
    same: bool  # the slot's last prompt was of the same group


class Asker(Protocol):
    """Whoever wants a replica, and what decides which and when."""

    account: str  # takes turns with others
    group: str  # shares prompt caches
    priority: int
    rules: PlaceRules
    affinity: bytes
    choices: int
    adapter: str  # by its version, as replicas know it; "": the base
    tried: AbstractSet[str]  # replicas that did not answer

    def placed(self, hold: Hold) -> None:
        """It has one now. Whoever has left by then gives it back."""
        ...

    def refused(self, error: FreeholdError) -> None: ...


class Member(Protocol):
    """What a route knows of a replica: one of ours, or one that somebody else runs."""

    name: str
    slots: Slots
    ready_ns: int  # since when it answers
    site: int  # where it stands: of the endpoint's places

    @property
    def adapters(self) -> Mapping[str, Mapping[str, object]]:
        """Those it has, and the fields of a request for each."""
        ...

    @property
    def context(self) -> int | None:
        """Tokens that a request may use."""
        ...

    @property
    def usable(self) -> bool:
        """It answers, as far as anybody knows."""
        ...

    @property
    def coming(self) -> bool:
        """It will, without being asked again."""
        ...

    @property
    def closed(self) -> bool:
        """Its operator stopped it."""
        ...

    def hold(self, asker: Asker) -> Hold | None:
        """Only if it is `usable`; None when it has just ended."""
        ...

    def release(self, hold: Hold, *, served: bool) -> int: ...
    def wake(self) -> None: ...
    def answering(self, hold: Hold, status: int) -> None:
        """The head of an answer came."""
        ...

    def unanswered(self, run: int) -> None: ...
    def post(self, happening: Happening) -> None: ...
    def retry_after_s(self) -> int: ...
    def progress(self) -> dict[str, object] | None: ...


class Route:
    """Made empty: its replicas put themselves into `replicas`."""

    def __init__(self, name: str, endpoint: Endpoint, permission: Permission | None, engine: Engine) -> None:
        self.name, self.endpoint, self.engine = name, endpoint, engine
        self.price = endpoint.price
        self.roster = Roster(name)
        self.salted = bool(endpoint.cache_salt) or (isinstance(engine, Launchable) and engine.salts)
        self.refused_fields = frozenset(engine.refused_fields)
        self.replicas: list[Member] = []
        self._permission = permission
        self._queue: FairQueue[Asker] = FairQueue()
        self._allowed_by: dict[PlaceRules, Sequence[Member]] = {}
        self._admitting = self._again = False

    @property
    def context(self) -> int | None:
        """Tokens that a request may use, prompt and answer together; None: nobody knows."""
        return self.replicas[0].context

    def cap(self, context: int | None) -> int | None:
        """Tokens that an answer may have at most; None: nobody says."""
        most = self.endpoint.max_completion_tokens
        return most if most and (not context or most < context) else context

    def progress(self) -> dict[str, object] | None:
        """How far the replica is that everybody waits for."""
        return next((said for member in self.replicas if (said := member.progress())), None)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def place(self, asker: Asker, *, limited: bool = True) -> Hold | None:
        """A replica at once, or None: then it is told later, or `leave`s. Raises Refused, NotReady.

        `limited`: max_waiting holds for it.
        """
        allowed = self.allowed(asker.rules)
        if not self._queue and (hold := self._pick(allowed, asker)):
            return hold
        left = self._left(asker)
        if left and all(member.closed for member in left):
            raise self.stopped()
        self._wake(left)
        if not any(member.usable or member.coming for member in left):
            raise self.not_ready(f"`{self.name}` does not answer now")
        if limited and len(self._queue) >= self.endpoint.max_waiting:
            late = self.not_ready(f"{len(self._queue)} requests already wait for `{self.name}`")
            raise QueueFull(str(late), retry_after_s=late.retry_after_s)
        self._queue.push((asker.rules, asker.adapter, frozenset(asker.tried)), asker.account, asker.priority, asker)
        self.admit()
        return None

    def post(self, happening: Happening) -> None:
        """`stop` keeps everybody out until `open`."""
        for member in self.replicas:
            member.post(happening)

    async def hold(self, wait_seconds: float | None = None) -> Hold:
        """For an operator, whose patience `wait_seconds` is, and who does not count among those who wait."""
        waiter = _Waiter()
        limit = self.endpoint.wait_seconds if wait_seconds is None else wait_seconds
        if hold := self.place(waiter, limited=wait_seconds is None):
            return hold
        try:
            async with asyncio.timeout(limit):
                return await waiter.told
        except BaseException as gone:
            self.leave(waiter)
            told = waiter.told
            if told.done() and not told.cancelled() and not told.exception():
                self.release(told.result(), served=False)  # let in in the very moment they gave up
            if isinstance(gone, TimeoutError):
                raise self.not_ready(f"`{self.name}` was not ready within {limit:g} s") from None
            raise

    def leave(self, asker: Asker) -> None:
        """It waits no longer."""
        self._queue.remove(asker)

    def release(self, hold: Hold, *, served: bool) -> int:
        """Give it back; returns the request's share of the machine's cost, in pico."""
        pico = hold.replica.release(hold, served=served)
        if self._queue:
            self.admit()
        return pico

    def refusal(self, now_ns: int) -> Refused | None:
        """Why policy lets nobody ask this endpoint now, or None."""
        return self._permission.refusal(now_ns) if self._permission else None

    def allowed(self, rules: PlaceRules) -> Sequence[Member]:
        """The replicas that may answer whoever these rules are for. Raises Refused when there is none."""
        allowed = self._allowed_by.get(rules)
        if allowed is None:
            allowed = [replica for replica in self.replicas if not self._objections(replica, rules)]
            self._allowed_by[rules] = allowed
        if not allowed:
            every = (each for replica in self.replicas for each in self._objections(replica, rules))
            against = dict.fromkeys(map(in_words, every))
            raise Refused(
                f"no replica of `{self.name}` is where this key's rules on place allow: {'; '.join(against)}",
                hint="its operator sees them with: freehold keys show NAME",
                param="model",
            )
        return allowed

    def answers(self, rules: PlaceRules) -> bool:
        """Whether a replica may answer whoever these rules are for."""
        with contextlib.suppress(Refused):
            return bool(self.allowed(rules))
        return False

    def _objections(self, replica: Member, rules: PlaceRules) -> list[Objection]:
        return self._permission.objections(replica.site, rules) if self._permission else []

    def join(self, replica: Member) -> None:
        self.replicas.append(replica)
        self._allowed_by.clear()

    def part(self, replica: Member) -> None:
        """It serves nobody any more."""
        self.replicas.remove(replica)
        self._allowed_by.clear()

    def admit(self) -> None:
        """Somebody may be served now: a replica came up, or one let go of it.

        Who is let in may fail at once, and let go again: then it goes on here, and not one call deeper each time.
        """
        self._again = True
        if self._admitting:
            return
        self._admitting = True
        try:
            while self._again:
                self._again = False
                self._queue.take(self._serve)
        finally:
            self._admitting = False

    def lost(self, error: FreeholdError) -> None:
        """A replica is gone. Whoever has no other that answers, or is on its way, waits no longer."""

        def refuse(asker: Asker) -> bool:
            hopeless = not any(member.usable or member.coming for member in self._left(asker))
            if hopeless:
                asker.refused(error)
            return hopeless

        self._queue.take(refuse)

    def refuse(self, error: FreeholdError) -> None:
        for asker in self._queue.clear():
            asker.refused(error)

    def not_ready(self, message: str) -> NotReady:
        return NotReady(message, retry_after_s=min(member.retry_after_s() for member in self.replicas))

    def stopped(self) -> NotReady:
        return NotReady(f"`{self.name}` was stopped by its operator")

    def _left(self, asker: Asker) -> list[Member]:
        """Those that may still answer it: a version that the roster has no more, no replica gets again."""
        known = not asker.adapter or self.roster.wants(asker.adapter)
        return [
            member
            for member in self.allowed(asker.rules)
            if member.name not in asker.tried and (known or asker.adapter in member.adapters)
        ]

    def _serve(self, asker: Asker) -> bool:
        hold = self._pick(self.allowed(asker.rules), asker)
        if hold:
            asker.placed(hold)
        elif asker.adapter and not self._left(asker):
            asker.refused(self.not_ready(f"`{self.name}` has not this version of the adapter any more"))
        else:
            return False
        return True

    def _pick(self, allowed: Sequence[Member], asker: Asker) -> Hold | None:
        if len(allowed) == 1:
            (only,) = allowed
            return only.hold(asker) if _fits(only, asker) else None
        fit = [member for member in allowed if _fits(member, asker)]
        if not fit:
            return None
        best = choose([m.slots.held for m in fit], [m.name for m in fit], asker.affinity)
        return fit[best].hold(asker)

    def _wake(self, members: Sequence[Member]) -> None:
        """Somebody waits: those that answer are full, or there are none."""
        for member in members:
            if not member.usable and not member.coming:
                member.wake()


def _fits(member: Member, asker: Asker) -> bool:
    if not member.usable or not member.slots.fits(asker.choices) or member.name in asker.tried:
        return False
    return not asker.adapter or asker.adapter in member.adapters


class _Waiter:
    """An operator who waits."""

    account = group = adapter = ""
    priority = 1 << 30
    rules: PlaceRules = ()
    affinity = b""
    choices = 1
    tried: AbstractSet[str] = frozenset()

    def __init__(self) -> None:
        self.told: asyncio.Future[Hold] = asyncio.get_running_loop().create_future()

    def placed(self, hold: Hold) -> None:
        if self.told.done():
            hold.replica.release(hold, served=False)
        else:
            self.told.set_result(hold)

    def refused(self, error: FreeholdError) -> None:
        if not self.told.done():
            self.told.set_exception(error)
