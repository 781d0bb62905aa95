"""The replicas of one endpoint that Freehold starts: brought up together, replaced one by one, trusted as one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from itertools import count

from freehold.engines import Launchable
from freehold.errors import DoesNotFit, FreeholdError, Refused
from freehold.fleet.config import Endpoint
from freehold.fleet.ground import Ground
from freehold.fleet.replica import Replica
from freehold.fleet.route import Route
from freehold.fleet.starting import Start
from freehold.fleet.trust import Trust


class Pool:
    """One owner: the event loop. `own` runs its replicas until it is cancelled."""

    def __init__(
        self,
        route: Route,
        engine: Launchable,
        trusts: tuple[Trust, Trust | None],
        ground: Ground,
        drain_seconds: float,
        *,
        starts_s: Sequence[float] = (),
    ) -> None:
        """`trusts`: in the weights, and in those of a draft model."""
        self.name, self.route, self.engine, self.trust = route.name, route, engine, trusts[0]
        self.endpoint: Endpoint = route.endpoint
        self.ground = ground
        self._trusts, self._drain_seconds, self._starts_s = trusts, drain_seconds, starts_s
        self._generations = count(2)
        self._tasks: asyncio.TaskGroup | None = None
        self._owners: dict[str, asyncio.Task[None]] = {}
        self.replicas: list[Replica] = []  # retiring ones too
        for name in self.endpoint.replica_names(self.name):
            route.join(self._make(name))

    async def own(self) -> None:
        async with asyncio.TaskGroup() as self._tasks:
            for replica in self.replicas:
                self._own(replica)
            await asyncio.Event().wait()

    async def up(self, *, full: bool = False) -> None:
        """Open it and wait until all of its replicas answer; `full`: every byte of its weights is read again.

        Raises what kept one of them from starting.
        """
        if full:
            self.trust.expire()
        self.route.post("open")
        serving = self.serving
        coming = [replica.come_up() for replica in self._members]
        failed = [each for each in await asyncio.gather(*coming, return_exceptions=True) if each]
        if failed:
            raise failed[0]
        self.route.release(await self.route.hold(self.endpoint.start_seconds), served=False)
        if full and serving:
            await self.reread()  # they ran already: else their start has read them

    async def replace(self) -> None:
        """Each replica that runs gets a successor, started beside it: whoever is being answered notices nothing.

        Raises what keeps the first of them from starting, or that its operator stopped it meanwhile; those that were
        not replaced yet go on.
        """
        for old in self._members:
            if not old.coming:
                continue  # its next start is as good
            with contextlib.suppress(FreeholdError):
                await old.come_up()
            if not old.serving:
                continue
            new = self._make(f"{old.name.partition('+')[0]}+{next(self._generations)}")
            self._own(new)
            try:
                await new.come_up()
                self._check(new, old)
            except BaseException as error:
                await self._see_off(new)
                if isinstance(error, DoesNotFit):
                    error.hint = f"both are up for a moment: stop another endpoint, or {error.hint}"
                raise
            self.route.join(new)
            old.retire()
            self.route.admit()
            self._spawn(self._see_off(old), f"see off {old.name}")

    async def reread(self) -> None:
        """Raises why the weights are not, or not known to be, what they were: nobody is served from them any more."""
        runs = {replica: replica.serving for replica in self.replicas}
        try:
            await self.trust.reread()
        except Exception as error:  # noqa: BLE001  the door of rereading: what cannot be read, whatever for, is not served
            why = error if isinstance(error, FreeholdError) else _unread(self.name, error)
            for replica, run in runs.items():
                if run:
                    replica.close(run, why)
            raise why from None

    def _check(self, new: Replica, old: Replica) -> None:
        """Raises why it must not take the place of the other one, though it is up."""
        if old.closed:
            raise self.route.stopped()
        if new.context < old.context:  # "auto", and beside the other one there is less memory
            raise DoesNotFit(
                f"a successor of `{old.name}` would have a context of {new.context:,} tokens, not {old.context:,}",
                hint=f"say context = {new.context} in freehold.toml; then freehold down, freehold up",
            )

    @property
    def serving(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.serving and not replica.retiring]

    @property
    def _members(self) -> list[Replica]:
        """Those that callers are sent to: neither successors that are not up yet, nor who retires."""
        return [replica for replica in self.replicas if replica in self.route.replicas]

    def _make(self, name: str) -> Replica:
        start = Start(name, self.engine, self.route, self._trusts, self.ground)
        replica = Replica(name, self.route, start, self.ground, self._drain_seconds, starts_s=self._starts_s)
        self.replicas.append(replica)
        return replica

    def _own(self, replica: Replica) -> None:
        self._owners[replica.name] = self._spawn(replica.own(), f"own {replica.name}")

    def _spawn(self, work, name: str) -> asyncio.Task[None]:  # noqa: ANN001
        assert self._tasks is not None  # noqa: S101  nothing is replaced before `own`
        return self._tasks.create_task(work, name=name)

    async def _see_off(self, replica: Replica) -> None:
        """A replica that is not needed: when the last of its requests is answered, nothing of it is left."""
        if not replica.retiring:
            replica.retire()
        await replica.gone.wait()
        self._owners.pop(replica.name).cancel()
        self.replicas.remove(replica)


def _unread(name: str, error: Exception) -> Refused:
    message = f"the weights of `{name}` could not be read again: {type(error).__name__}: {error}"
    return Refused(message, hint=f"is the disk full, or failing? then: freehold up {name}")
