"""What an engine prints while it starts: the stages of the start, as events with times, and what it says of memory."""

from __future__ import annotations

import time

from freehold.engines import Launchable
from freehold.fleet.ground import Ground
from freehold.plan.units import size

KEPT_BYTES = 1 << 20  # of a start's log, the end of it: an engine says what it took when it is nearly up


class Hearing:
    """One for each start. `hear` takes what the engine prints, in whatever pieces it comes."""

    def __init__(self, engine: Launchable, name: str, ground: Ground) -> None:
        self._engine, self._name, self._ground = engine, name, ground
        self._line = ""
        self._text = bytearray()
        self._stage, self._share = "", None
        self._began_s = time.monotonic()
        self.weight_bytes = 0  # how much there is to load
        self.seconds: dict[str, float] = {}  # each stage took

    @property
    def said(self) -> str:
        return self._text.decode("utf-8", "replace")

    @property
    def now(self) -> str:
        """The stage, and how far it is."""
        if self._share is None:
            return self._stage
        of = f", {size(round(self._share * self.weight_bytes))} of {size(self.weight_bytes)}"
        return f"{self._stage}: {self._share:.0%}{of if self.weight_bytes and 'weights' in self._stage else ''}"

    def enter(self, stage: str, share: float | None = None) -> None:
        """A stage has begun, or is so far; the one before it is over."""
        self._share = share
        if stage == self._stage:
            return
        self.close()
        self._stage, self._began_s = stage, time.monotonic()
        if stage not in self.seconds:  # an engine that goes to and fro does not fill the book
            self._ground.tell("engine.stage", self._name, stage=stage)

    def close(self) -> None:
        """The stage is over."""
        if self._stage:
            took_s = time.monotonic() - self._began_s
            self.seconds[self._stage] = round(self.seconds.get(self._stage, 0.0) + took_s, 3)
        self._stage, self._share = "", None

    def hear(self, text: bytes) -> None:
        self._text += text
        del self._text[:-KEPT_BYTES]
        *lines, self._line = (self._line + text.decode("utf-8", "replace")).replace("\r", "\n").split("\n")
        self._line = self._line[-4096:]
        for line in lines:
            if stage := self._engine.stage(line):
                self.enter(stage.name, stage.share)
