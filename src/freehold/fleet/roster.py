"""The adapters of one endpoint: which versions there are, and which of them a name means.

Every replica has all of them before it serves. A name means its current version; while another one is on trial, a share
of the requests goes there. The version before stays loaded, so that going back takes no time.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from freehold.errors import Unknown
from freehold.types import Adapter


class Version(Struct, frozen=True, kw_only=True):
    """One set of files under a name."""

    name: str
    number: int
    adapter: Adapter  # what engines are given: converted, where the engine reads another format
    source: str  # where they were taken from
    source_digest: str  # of what was there
    base_digest: str  # the weights it was held against
    added_ns: int


class Alias(Struct, frozen=True, kw_only=True):
    """What a name means."""

    current: Version
    previous: Version | None = None
    trial: Version | None = None
    percent: int = 0  # of requests that go to the trial

    @property
    def versions(self) -> Iterator[Version]:
        return (each for each in (self.current, self.previous, self.trial) if each)


class Roster:
    """One owner: the event loop."""

    def __init__(self, endpoint: str, aliases: dict[str, Alias] | None = None) -> None:
        self.endpoint = endpoint
        self.aliases = aliases or {}
        self._turns: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self.staged: Version | None = None  # replicas get it, and nobody is sent there yet

    @property
    def wanted(self) -> tuple[Adapter, ...]:
        """What every replica must have before it serves."""
        staged = (self.staged,) if self.staged else ()
        return tuple(each.adapter for each in (*self._versions(), *staged))

    def wants(self, version: str) -> bool:
        """Whether replicas get it that start now."""
        return any(each.name == version for each in self.wanted)

    def _versions(self) -> Iterator[Version]:
        return (version for alias in self.aliases.values() for version in alias.versions)

    def pick(self, name: str) -> Adapter:
        """The version that a request goes to: of each hundred `percent` to the trial, evenly. Raises Unknown."""
        alias = self.find(name)
        if alias.trial is None:
            return alias.current.adapter
        turn = self._turns.get(name, 0) + alias.percent
        self._turns[name] = turn % 100
        return (alias.trial if turn >= 100 else alias.current).adapter

    def close_others(self, base_digest: str) -> list[str]:
        """Adapters are for the weights that they were accepted on: the names of those that were, and are closed now."""
        others = [name for name, alias in self.aliases.items() if alias.current.base_digest != base_digest]
        for name in others:
            del self.aliases[name]
        return others

    def find(self, name: str) -> Alias:
        try:
            return self.aliases[name]
        except KeyError:
            there_are = ", ".join(sorted(self.aliases)) or "none"
            raise Unknown(
                f"`{self.endpoint}` has no adapter called `{name}`", hint=f"there are: {there_are}", param="model"
            ) from None

    def put(self, name: str, alias: Alias | None) -> None:
        """From here on the name means this; None: nothing."""
        self._numbers[name] = self._last_number(name)
        self.aliases.pop(name, None)
        if alias:
            self.aliases[name] = alias

    def added(self, version: Version, percent: int) -> Alias:
        """What the name is to mean when it has this version too. A trial that was there before makes room."""
        alias = self.aliases.get(version.name)
        if alias is None:
            return Alias(current=version)
        if percent < 100:
            return replace(alias, trial=version, percent=percent)
        return Alias(current=version, previous=alias.current)

    def shared(self, name: str, percent: int) -> Alias:
        """The trial gets so much; with 100 it is the current version, with 0 it is gone. Raises Unknown without one."""
        alias = self.find(name)
        if alias.trial is None:
            raise Unknown(
                f"`{self.endpoint}:{name}` has one version, {alias.current.number}, and no other on trial",
                hint=f"freehold adapters add {name} PATH --base {self.endpoint} --percent N puts one on trial",
            )
        if percent == 0:
            return replace(alias, trial=None, percent=0)
        if percent == 100:
            return Alias(current=alias.trial, previous=alias.current)
        return replace(alias, percent=percent)

    def rolled_back(self, name: str) -> Alias:
        """A trial ends; without one the version before is the current one again. Raises Unknown when there is none."""
        alias = self.find(name)
        if alias.trial:
            return replace(alias, trial=None, percent=0)
        if alias.previous is None:
            raise Unknown(
                f"`{self.endpoint}:{name}` has no version before {alias.current.number}",
                hint=f"freehold adapters remove {name} --base {self.endpoint} takes it away",
            )
        return Alias(current=alias.previous)

    def next_number(self, name: str) -> int:
        """Each is given once: a replica may still have a version that the name does not mean any more."""
        self._numbers[name] = 1 + self._last_number(name)
        return self._numbers[name]

    def _last_number(self, name: str) -> int:
        alias = self.aliases.get(name)
        numbers = (version.number for version in alias.versions) if alias else ()
        return max((self._numbers.get(name, 0), *numbers))
