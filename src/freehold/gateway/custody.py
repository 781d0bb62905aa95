"""What the daemon does for its trail: it notes the configuration, sends checkpoints away, deletes what is too old."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import json
import logging
import os
import signal
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET

from freehold.errors import FreeholdError
from freehold.fleet.config import Config, Trail
from freehold.fleet.ground import Ground
from freehold.ledger.checkpoint import Checkpoint, sign, state_of
from freehold.ledger.deletion import Deletion, What
from freehold.ledger.signing import signer

RETAIN_S = 86_400.0
SEND_S = 20.0  # so long may a checkpoint take on its way
_REAP_S = 2.0
_DAY_NS = 86_400 * 10**9
_log = logging.getLogger("freehold.trail")


class Custody:
    """`keep` runs until it is cancelled; nothing that fails in it ends the daemon, or the other loop."""

    def __init__(self, ground: Ground, trail: Trail) -> None:
        self._ground, self._trail = ground, trail
        self._failing: set[str] = set()
        self._writing: threading.Thread | None = None

    async def keep(self) -> None:
        await asyncio.gather(_every(RETAIN_S, self.retain), _every(self._trail.checkpoint_minutes * 60, self.attest))

    async def attest(self) -> None:
        """Send a checkpoint wherever the configuration says."""
        if path := self._trail.checkpoint_file:
            await self._send(path, lambda line: self._to_file(Path(path), line))
        if command := self._trail.checkpoint_command:
            await self._send(command[0], lambda line: _pipe(command, line))

    async def retain(self) -> None:
        """Delete what the configuration, or a key, keeps no longer."""
        now_ns = min(time.time_ns(), self._ground.clock_ns())  # where they differ, the one that deletes less
        old: list[tuple[What, int, str]] = [("content", now_ns, "its key keeps it no longer")]
        if (days := self._trail.keep_usage_days) is not UNSET:
            old.append(("usage", now_ns - days * _DAY_NS, f"trail.keep_usage_days = {days}"))
        if (days := self._trail.keep_event_days) is not UNSET:
            old.append(("events", now_ns - days * _DAY_NS, f"trail.keep_event_days = {days}"))
        due = [
            Deletion(what=what, before_ns=before_ns, actor="freehold", why=why, due=what == "content")
            for what, before_ns, why in old
        ]
        try:
            await self._ground.book.delete(*due, thorough=False)
        except (OSError, FreeholdError) as error:
            _log.error("retention: %s", error)

    async def _to_file(self, path: Path, line: bytes) -> None:
        """In a thread that nothing waits for: the server behind a file can hold it for ever, and the daemon with it."""
        if self._writing and self._writing.is_alive():
            raise OSError(f"{path}: the checkpoint before this one is still being written")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writing = threading.Thread(target=_tell, args=(done, _append, path, line), name="checkpoint", daemon=True)
        self._writing.start()
        try:
            async with asyncio.timeout(SEND_S):
                await done
        except TimeoutError:
            raise OSError(f"{path} took longer than {SEND_S:g} s") from None

    async def _send(self, where: str, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Its failure is an event, one until it works again."""
        try:
            await send((await checkpoint(self._ground)).line)
        except (OSError, ValueError, FreeholdError) as error:  # ValueError: a name with a NUL in it
            _log.error("no checkpoint to %s: %s", where, error)
            if where not in self._failing:
                self._ground.tell("trail.checkpoint_failed", where, error=str(error))
            self._failing.add(where)
        else:
            self._failing.discard(where)


async def _every(seconds: float, do: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await do()
        except Exception:  # noqa: BLE001  the door of a loop: this turn ends, the next one comes
            _log.exception("the trail's %s", getattr(do, "__name__", do))
        await asyncio.sleep(seconds)


async def checkpoint(ground: Ground) -> Checkpoint:
    """Signed now, of everything that has happened. Raises FreeholdError."""
    signing = await asyncio.to_thread(signer, ground.state)
    await ground.book.seal()
    return sign(await ground.book.do(state_of), signing)


async def note_config(ground: Ground, config: Config) -> None:
    """What the daemon goes by, the first time; later what is different from the last time, if anything is."""
    lines = sorted(_lines(msgspec.to_builtins(config)))
    before, now = await ground.book.about("config"), "\n".join(lines)
    if before is None:
        ground.tell("config.loaded", "freehold.toml", config=now)
    elif before != now:
        diff = difflib.unified_diff(before.splitlines(), lines, "before", "now", lineterm="", n=0)
        ground.tell("config.changed", "freehold.toml", diff="\n".join(diff))
    else:
        return
    await ground.book.set_about("config", now)


def _lines(value: Any, at: str = "") -> Iterator[str]:
    """A line for each value, without what may be a secret in it; files are named, not read."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _lines(inner, f"{at}.{name}" if at else str(name))
    else:
        yield f"{at} = {_shown(at, value)}"


def _shown(at: str, value: Any) -> str:
    """Of an address and of a command only what holds no secret; four digits of a hash show that the rest changed.

    More digits would help whoever tries out passwords.
    """
    whole = json.dumps(value, ensure_ascii=False)
    if value and at == "trail.checkpoint_command":
        safe = str(value[0])
    elif value and (at in ("hub.proxy", "hub.url") or (at.startswith("endpoints.") and at.endswith(".url"))):
        safe = _place(str(value))
    else:
        return whole
    digits = hashlib.sha256(whole.encode(errors="surrogatepass")).hexdigest()[:4]
    return f"{json.dumps(safe, ensure_ascii=False)} (the whole: {digits})"


def _place(url: str) -> str:
    """Scheme, host and port; of what cannot be cut surely, nothing."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", f":{parts.port}" if parts.port else ""
    except ValueError:
        return "***"
    if parts.scheme == "unix":
        return f"unix:{parts.path}"
    odd = "@" in parts.path + parts.query + parts.fragment or parts.netloc.count("@") > 1
    if odd or not host or not parts.scheme:
        return "***"
    return f"{parts.scheme}://[{host}]{port}" if ":" in host else f"{parts.scheme}://{host}{port}"


def _tell(done: asyncio.Future[None], append: Callable[[Path, bytes], None], path: Path, line: bytes) -> None:
    """Do it in this thread, and say how it went to whoever still waits."""
    error: BaseException | None = None
    try:
        append(path, line)
    except (OSError, ValueError) as failure:
        error = failure

    def settle() -> None:
        if not done.done():
            done.set_result(None) if error is None else done.set_exception(error)

    with suppress(RuntimeError):  # the loop has ended
        done.get_loop().call_soon_threadsafe(settle)


def _append(path: Path, line: bytes) -> None:
    """On the disk when this returns, or not there at all; never through a link, which could lead anywhere."""
    how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, how | os.O_NONBLOCK, 0o600)  # a pipe without a reader would hold it
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is no regular file")
        if (written := os.write(descriptor, line)) < len(line):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)  # half a line would spoil the next one
            raise OSError(f"{path}: no space left")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _pipe(command: Sequence[str], line: bytes) -> None:
    """The line to a program's standard input. Raises OSError when it cannot be started, fails, or takes too long."""
    env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(Path.home())}
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=nothing, stderr=pipe, env=env, cwd="/", start_new_session=True
    )
    try:
        async with asyncio.timeout(SEND_S):
            _, said = await process.communicate(line)
    except TimeoutError:
        raise OSError(f"{command[0]} took longer than {SEND_S:g} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(TimeoutError):  # who hangs in the kernel cannot be killed
                async with asyncio.timeout(_REAP_S):
                    await process.wait()
    if process.returncode:
        last = said.decode(errors="replace").strip()[-300:]
        raise OSError(f"{command[0]} ended with {process.returncode}: {last}")
