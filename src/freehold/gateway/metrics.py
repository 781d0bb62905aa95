"""What is counted of every request: plain numbers in memory, 0.7 µs a request. `exposition.py` gives them names.

Labels are names from `freehold.toml` and a few fixed words, never anything that a caller chose: a label that callers
choose is memory that they fill.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import NamedTuple

from freehold.types import UsageRecord

# Upper bounds of the buckets as OpenTelemetry's conventions advise:
# https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/gen-ai-metrics.md
DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
WAIT_S = (0.001, 0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)  # ours: a cold start fits in

_DURATION_MS, _FIRST_TOKEN_MS, _PER_TOKEN_MS, _WAIT_MS = (
    tuple(bound * 1000 for bound in bounds) for bounds in (DURATION_S, FIRST_TOKEN_S, PER_TOKEN_S, WAIT_S)
)


class Labels(NamedTuple):
    """Of which requests a tally is."""

    endpoint: str  # that answered
    asked: str  # "": the same
    kind: str
    group: str
    replica: str
    status: int
    outcome: str


class Tally:
    """Sums, and counts by bucket, the last one of all that is larger. Milliseconds, tokens and pico."""

    __slots__ = (
        *("requests", "lower_bound", "cached", "reasoning", "charge_pico", "machine_pico"),
        *("duration", "duration_ms", "first_token", "first_token_ms", "per_token", "per_token_ms"),
        *("prompt", "prompt_tokens", "completion", "completion_tokens", "queue", "queue_ms", "wake", "wake_ms"),
    )

    def __init__(self) -> None:
        self.requests = self.lower_bound = self.cached = self.reasoning = self.charge_pico = self.machine_pico = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.duration_ms = self.first_token_ms = self.per_token_ms = self.queue_ms = self.wake_ms = 0.0
        self.duration = [0] * (len(DURATION_S) + 1)
        self.first_token = [0] * (len(FIRST_TOKEN_S) + 1)
        self.per_token = [0] * (len(PER_TOKEN_S) + 1)
        self.prompt, self.completion = ([0] * (len(TOKENS) + 1) for _ in range(2))
        self.queue, self.wake = ([0] * (len(WAIT_S) + 1) for _ in range(2))


class Metrics:
    """One owner: the event loop."""

    def __init__(self) -> None:
        self.tallies: dict[tuple[str, str, str, str, str, int, str], Tally] = {}  # by what Labels names
        self.refusals: Counter[str] = Counter()  # by the error's code

    def settled(self, record: UsageRecord) -> None:
        """A request is over. Called once for each, on the hot path: not a line here that can be spared."""
        labels = (
            record.endpoint, record.asked, record.kind, record.group, record.replica, record.status, record.outcome,
        )  # fmt: skip
        tally = self.tallies.get(labels)
        if tally is None:
            tally = self.tallies[labels] = Tally()
        total_ms, queue_ms = record.total_ms, record.queue_ms
        prompt, completion = record.prompt_tokens, record.completion_tokens
        tally.requests += 1
        tally.duration[bisect_left(_DURATION_MS, total_ms)] += 1
        tally.duration_ms += total_ms
        tally.queue[bisect_left(_WAIT_MS, queue_ms)] += 1
        tally.queue_ms += queue_ms
        tally.prompt[bisect_left(TOKENS, prompt)] += 1
        tally.prompt_tokens += prompt
        tally.completion[bisect_left(TOKENS, completion)] += 1
        tally.completion_tokens += completion
        tally.charge_pico += record.charge_pico
        tally.machine_pico += record.machine_pico
        if record.stream:
            first_ms = record.first_byte_ms
            if first_ms is not None:
                tally.first_token[bisect_left(_FIRST_TOKEN_MS, first_ms)] += 1
                tally.first_token_ms += first_ms
                if completion > 1:
                    each_ms = (total_ms - first_ms) / (completion - 1)
                    tally.per_token[bisect_left(_PER_TOKEN_MS, each_ms)] += 1
                    tally.per_token_ms += each_ms
        if record.cached_tokens:
            tally.cached += record.cached_tokens
        if record.reasoning_tokens:
            tally.reasoning += record.reasoning_tokens
        if record.wake_ms:
            tally.wake[bisect_left(_WAIT_MS, record.wake_ms)] += 1
            tally.wake_ms += record.wake_ms
        if record.lower_bound:
            tally.lower_bound += 1

    def refused(self, code: str | None) -> None:
        """A request was turned away before it had a record. `code`: the error's, one of ours."""
        self.refusals[code or "bad_request"] += 1
