"""How to launch and talk to each inference engine: describes, does nothing."""

from __future__ import annotations

from importlib.metadata import entry_points

from freehold.engines.base import Engine, Launchable, Stage, Wanted
from freehold.engines.dynamo import Dynamo
from freehold.engines.external import External
from freehold.engines.llamacpp import LlamaCpp
from freehold.engines.sglang import SGLang
from freehold.engines.trtllm import TensorRTLLM
from freehold.engines.vllm import Vllm
from freehold.errors import Unknown

__all__ = ["Engine", "Launchable", "Stage", "Wanted", "engine", "names"]

_GROUP = "freehold.engines"
_OURS: dict[str, type[Engine]] = {
    "dynamo": Dynamo,
    "external": External,
    "llamacpp": LlamaCpp,
    "sglang": SGLang,
    "tensorrt-llm": TensorRTLLM,
    "vllm": Vllm,
}


def names() -> list[str]:
    """Of all engines there are: ours, and those that installed packages offer under the entry points _GROUP."""
    return sorted({*_OURS, *(point.name for point in entry_points(group=_GROUP))})


def engine(name: str) -> Engine:
    """Raises errors.Unknown, which names those there are."""
    if name in _OURS:
        return _OURS[name]()
    offered = {point.name: point for point in entry_points(group=_GROUP)}
    if name in offered:
        return offered[name].load()()
    raise Unknown(f"There is no engine {name!r}.", hint=f"There are: {', '.join(names())}.")
