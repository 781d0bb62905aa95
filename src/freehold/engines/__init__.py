"""How to launch and talk to each inference engine: describes, does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

from freehold.engines.external import External
from freehold.engines.llamacpp import LlamaCpp
from freehold.errors import Unknown
from freehold.types import Launch, Plan, Tokens, WireError

_GROUP = "freehold.engines"
_OURS = {"external": External, "llamacpp": LlamaCpp}


class Engine(Protocol):
    """What Freehold must know of an engine to route to it."""

    ready_path: str  # answers 200 once requests can be served
    metrics_path: str
    stream_fields: Mapping[str, object]  # added to a request that streams
    answers_by_stream: bool  # ask it for a stream even when the caller wants the answer whole
    refused_fields: Mapping[str, str]  # of a request: they reach past it; why
    hides_cache_hits: bool  # one cache for all callers, so none may see its hits; unless a salt keeps them apart

    def isolate(self, salt: str, slot: int | None, *, same: bool, salted: bool) -> Mapping[str, object]:
        """Fields to add to a request, so that no group of callers reads from its cache what another one left there.

        `salt`: of the group, never to be guessed. `slot`: of the engine's cache, where we hand them out; `same`: the
        last prompt there was of the same group. `salted`: whoever runs the engine says that it knows salts.
        """
        ...

    def counters(self, metrics: bytes) -> Tokens:
        """Tokens since the process started, such that they equal the sum of `usage`."""
        ...

    def error(self, status: int, body: bytes) -> tuple[int, WireError]:
        """The HTTP status and error that OpenAI's clients expect for this answer."""
        ...


@runtime_checkable
class Launchable(Engine, Protocol):
    """An engine that Freehold can also start."""

    def launch(self, plan: Plan, weights: str, name: str, socket: str, binary: str | None = None) -> Launch:
        """The process that serves the file `weights` as `name` on the Unix socket `socket`."""
        ...


def engine(name: str) -> Engine:
    """Find an engine: one of ours, or one that an installed package offers under the entry points `freehold.engines`.

    Raises errors.Unknown, which names those there are.
    """
    if name in _OURS:
        return _OURS[name]()
    offered = {point.name: point for point in entry_points(group=_GROUP)}
    if name in offered:
        return offered[name].load()()
    raise Unknown(f"There is no engine {name!r}.", hint=f"There are: {', '.join(sorted({*_OURS, *offered}))}.")
