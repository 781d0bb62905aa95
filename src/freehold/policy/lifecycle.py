"""The life of one replica as a pure function: (life, event) -> (life, effects).

`fleet/replica.py` is the only caller: it feeds events in and carries effects out, so every interleaving can be tested
here without a process or a clock.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

State = Literal["cold", "starting", "ready", "stopping", "backoff"]
Happening = Literal["wanted", "up", "failed", "exited", "served", "idle", "stop", "stopped", "open", "due"]
Effect = Literal["start", "stop", "admit", "refuse", "schedule"]

# Past this many failures in a row a replica that crashed is started again only when somebody asks for it.
RESTARTS_UNASKED = 5


class Life(Struct, frozen=True, kw_only=True):
    """What a replica is doing. `run` counts its processes: news of another run is stale and never gets here."""

    state: State = "cold"
    run: int = 0
    failures: int = 0  # in a row
    wanted: bool = False  # somebody waits for the next run
    closed: bool = False  # an operator stopped it: nobody is let in until it is opened


def step(life: Life, event: Happening) -> tuple[Life, tuple[Effect, ...]]:  # noqa: C901, PLR0911, PLR0912  it is a table
    """The next life, and what must be done: start or stop a process, admit or refuse who waits, schedule `due`."""
    match life.state, event:
        case _, "wanted" if life.closed:
            return life, ("refuse",)
        case "cold", "wanted":
            return _starting(life)
        case "ready", "wanted":
            return life, ("admit",)
        case "stopping" | "backoff", "wanted":
            return replace(life, wanted=True), ()
        case "starting", "up":
            return replace(life, state="ready"), ("admit",)
        case "starting", "failed" | "exited":
            return replace(life, state="backoff", failures=life.failures + 1, wanted=False), ("refuse", "schedule")
        case "ready", "failed" | "exited":
            unasked = life.failures < RESTARTS_UNASKED
            return replace(life, state="backoff", failures=life.failures + 1, wanted=unasked), ("schedule",)
        case "ready", "served":
            return replace(life, failures=0), ()
        case "ready", "idle":
            return replace(life, state="stopping"), ("stop",)
        case "starting" | "ready", "stop":
            return replace(life, state="stopping", closed=True, wanted=False), ("stop", "refuse")
        case _, "stop":
            return replace(life, closed=True, wanted=False), ("refuse",)
        case _, "open":
            return replace(life, closed=False), ()
        case "stopping", "stopped":
            return _starting(life) if life.wanted else (replace(life, state="cold"), ())
        case "backoff", "due":
            return _starting(life) if life.wanted else (replace(life, state="cold"), ())
        case _:
            return life, ()


def _starting(life: Life) -> tuple[Life, tuple[Effect, ...]]:
    return replace(life, state="starting", run=life.run + 1, wanted=False), ("start",)
