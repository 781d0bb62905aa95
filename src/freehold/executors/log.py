"""What an engine prints, on its way to its log: the engine has a pipe, never the file, and the file has an end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

LARGEST_LOG_BYTES = 32 << 20  # then it becomes NAME.log.1, in the place of the one before
_PIECE_BYTES = 1 << 16
_PIECES = 16  # at a time: an engine that prints without end must not hold up the loop


class Log:
    """Copies while the event loop runs. `write_end` is for the process, and closed by whoever started that."""

    def __init__(self, path: Path, heard: Callable[[bytes], None] | None = None) -> None:
        """`heard` gets what is printed, until somebody takes it away."""
        self._path, self.heard = path, heard
        self._closed = False
        self._file = self._open()
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read_end, False)
        asyncio.get_running_loop().add_reader(self._read_end, self.copy)

    def copy(self) -> None:
        """Some of what is there by now; the loop calls again for the rest."""
        if self._closed:  # its numbers may be somebody else's by now
            return
        with contextlib.suppress(BlockingIOError):
            for _ in range(_PIECES):
                text = os.read(self._read_end, _PIECE_BYTES)
                if not text:  # its last writer is gone
                    asyncio.get_running_loop().remove_reader(self._read_end)
                    return
                if self.heard:
                    self.heard(text)
                with contextlib.suppress(OSError):  # a full disk costs the log, not the engine
                    self._write(text)

    def close(self) -> None:
        self.copy()
        asyncio.get_running_loop().remove_reader(self._read_end)
        self._closed = True
        os.close(self._read_end)
        os.close(self._file)

    def _write(self, text: bytes) -> None:
        os.write(self._file, text)
        if os.fstat(self._file).st_size > LARGEST_LOG_BYTES:
            self._path.replace(f"{self._path}.1")
            full, self._file = self._file, self._open()
            os.close(full)

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self._path, flags, 0o600)
