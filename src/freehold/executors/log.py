"""What an engine prints, on its way to its log: the engine has a pipe, never the file, and the file has an end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

LARGEST_LOG_BYTES = 32 << 20  # then it becomes NAME.log.1, in the place of the one before


class Log:
    """Copies while the event loop runs. `write_end` is for the process, and closed by whoever started that."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._open()
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read_end, False)
        asyncio.get_running_loop().add_reader(self._read_end, self.copy)

    def copy(self) -> None:
        """Everything that is there by now."""
        with contextlib.suppress(BlockingIOError):
            while text := os.read(self._read_end, 1 << 16):
                if os.write(self._file, text) and os.fstat(self._file).st_size > LARGEST_LOG_BYTES:
                    os.close(self._file)
                    self._path.replace(f"{self._path}.1")
                    self._file = self._open()
            asyncio.get_running_loop().remove_reader(self._read_end)  # its last writer is gone

    def close(self) -> None:
        self.copy()
        asyncio.get_running_loop().remove_reader(self._read_end)
        os.close(self._read_end)
        os.close(self._file)

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self._path, flags, 0o600)
