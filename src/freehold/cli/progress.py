"""How far a download is: a bar on a terminal, a line now and then elsewhere. On standard error: the result is not."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

import click

_EVERY_S = 10.0


class Progress:
    """A Watcher of freehold.weights.fetch."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._done_bytes = self._total_bytes = 0
        self._said_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def say(self, text: str) -> None:
        self._close()
        click.echo(text, err=True)

    def begin(self, done_bytes: int, total_bytes: int) -> None:
        self._done_bytes, self._total_bytes, self._said_s = done_bytes, total_bytes, time.monotonic()
        here = f", {done_bytes / 1e6:,.1f} MB of them are here" if done_bytes else ""
        click.echo(f"{total_bytes / 1e6:,.1f} MB{here}", err=True)
        if sys.stderr.isatty():
            self._bar = click.progressbar(length=max(1, total_bytes), label="download", file=sys.stderr)
            self._bar.__enter__()
            self._bar.update(done_bytes)

    def advance(self, by_bytes: int) -> None:
        self._done_bytes += by_bytes
        if self._bar:
            self._bar.update(by_bytes)
        elif time.monotonic() - self._said_s > _EVERY_S:
            self._said_s = time.monotonic()
            share = 100 * self._done_bytes / max(1, self._total_bytes)
            click.echo(f"{self._done_bytes / 1e6:,.1f} MB, {share:.0f} %", err=True)

    def _close(self) -> None:
        if self._bar:
            self._bar.__exit__(None, None, None)
            self._bar = None
