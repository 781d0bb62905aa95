"""What somebody needs: one struct for the command line, `[need]` in freehold.toml, and `choose`."""

from __future__ import annotations

import re
from typing import Literal

from msgspec import Struct

from freehold.errors import BadRequest
from freehold.facts import OfferKind
from freehold.plan import kv
from freehold.plan.weights import SCHEMES

_OLDEST = (0, 6, 0)  # vLLM
Task = Literal["", "chat", "coding", "vision", "audio"]


class Need(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model or a task, for so many users at once, under these bounds. Empty or None: no bound."""

    model: str = ""
    task: Task = ""
    min_size: float | None = None  # billions of parameters
    max_size: float | None = None
    context: int = 8192  # tokens of one request, prompt and answer
    users: int = 1  # requests at the same moment, each with the whole context
    speed: float = 0.0  # tokens a second that each of them gets at least
    budget: float | None = None  # a month
    currency: str = "EUR"
    use: Literal["", "commercial", "internal", "research"] = ""  # of the output; "": as [policy] says
    residency: tuple[str, ...] = ()  # countries where the machine may stand, beside those of [policy]
    jurisdiction_not: tuple[str, ...] = ()  # home law that must not reach the operator
    cards: str = ""  # at hand: "2xH100"
    kinds: tuple[OfferKind, ...] = ()  # of offers; (): all but spot
    hours_a_day: float = 24.0  # on which the machines are paid
    floor: tuple[str, ...] = ()  # of quality: COHORT>=VALUE, or <= where lower is better; all must hold
    unscored: Literal["", "refuse", "allow"] = ""  # models without a score there; "": as [policy] says
    quantization: tuple[str, ...] = ()  # keys of weights.SCHEMES; (): any
    kv_dtype: str = "bf16"
    vllm: str = "0.26"  # the version that is sized: what it takes beside the weights has changed
    requests_a_day: float | None = None
    prompt_tokens: float = 1500.0  # of one request, on average
    completion_tokens: float = 500.0
    prefix_hit: float = 0.0  # share of each prompt that is in the cache already, of an earlier one
    draft_tokens: int = 0  # guessed a step by speculative decoding
    acceptance: float = 0.0  # of each guess, where those before it were right: as measured for the task
    rate: float | None = None  # tokens a second one replica sustains in all, as measured or published
    rate_source: str = ""


_RANGES = (  # field, option, least, most, unit
    ("context", "context", 1, 100_000_000, "tokens"),
    ("users", "users", 1, 1_000_000, "requests at once"),
    ("speed", "speed", 0, 100_000, "tokens a second"),
    ("min_size", "size", 0, 100_000, "billion parameters"),
    ("max_size", "size", 0, 100_000, "billion parameters"),
    ("budget", "budget", 0, 1e12, "a month"),
    ("hours_a_day", "hours", 0.1, 24, "hours"),
    ("requests_a_day", "requests", 0, 1e10, "requests"),
    ("prompt_tokens", "prompt", 0, 1e8, "tokens"),
    ("completion_tokens", "completion", 1, 1e8, "tokens"),
    ("prefix_hit", "prefix-hit", 0, 1, "of a prompt"),
    ("draft_tokens", "draft-tokens", 0, 16, "tokens"),
    ("acceptance", "acceptance", 0, 1, "of the guesses"),
    ("rate", "rate", 1e-3, 1e8, "tokens a second"),
)


def check(need: Need) -> Need:
    """The need itself, or BadRequest with the valid range, or with the two parts that contradict each other."""
    for name, option, least, most, unit in _RANGES:
        value = getattr(need, name)
        if value is not None and not least <= value <= most:
            span = f"from {least:,} to {most:,.0f} {unit}"
            raise BadRequest(f"{name} is {value:,}, but must be {span}", hint=f"give --{option} {span}")
    if need.min_size is not None and need.max_size is not None and need.min_size > need.max_size:
        raise BadRequest(
            f"min_size {need.min_size:g} and max_size {need.max_size:g} contradict each other",
            hint=f"lower min_size to {need.max_size:g}, or raise max_size to {need.min_size:g}",
        )
    if bool(need.draft_tokens) != bool(need.acceptance):
        raise BadRequest(
            "draft_tokens says how many are guessed a step, acceptance how many of them are right: one is missing",
            hint="give both, for example --draft-tokens 3 --acceptance 0.7 as measured, or neither",
        )
    version_of(need.vllm)
    for name, asked, known in (("quantization", need.quantization, SCHEMES), ("kv_dtype", (need.kv_dtype,), kv.BYTES)):
        if wrong := [each for each in asked if each not in known]:
            raise BadRequest(f"{name} {wrong[0]!r} is not one of those known", hint="one of: " + ", ".join(known))
    return need


def version_of(text: str) -> tuple[int, int, int]:
    """`0.19` or `0.20.1` as three numbers. Raises BadRequest for what is none, or older than what was looked at."""
    found = re.fullmatch(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?", text)
    version = (int(found[1]), int(found[2]), int(found[3] or 0)) if found else (0, 0, 0)
    if version < _OLDEST:
        raise BadRequest(f"vllm {text!r} is not a version that was looked at", hint="0.6 or newer, for example 0.19")
    return version
