"""The daemon: everything put together, from the lock on its state to the last engine gone."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from freehold import __version__
from freehold.errors import FreeholdError
from freehold.executors.keyring import leave_session_keyring
from freehold.executors.local import Local, sweep
from freehold.fleet.config import Config
from freehold.fleet.fleet import Fleet
from freehold.fleet.ground import Ground
from freehold.fleet.occupancy import Occupancy
from freehold.fleet.replica import STARTS_REMEMBERED
from freehold.gateway.admin import Admin
from freehold.gateway.app import Gateway
from freehold.gateway.custody import Custody, note_config
from freehold.gateway.keyring import Keyring
from freehold.gateway.protocol import BoundedProtocol, PeerProtocol
from freehold.gateway.rundir import admin_socket, lock, own_folder, run_dir
from freehold.ledger.book import Book


class _Server(uvicorn.Server):
    """Signals are the daemon's business: there are two of these in it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def end(self) -> None:
        """Let requests in flight finish; asked again, do not wait for them."""
        self.force_exit = self.should_exit
        self.should_exit = True


async def serve(config: Config, config_digest: str, config_path: Path) -> None:
    """Until a signal or `freehold down`. A second signal does not wait for requests in flight."""
    state = own_folder(Path(config.state_dir))
    leave_session_keyring()
    async with AsyncExitStack() as stack:
        stack.enter_context(lock(state))
        run = run_dir(state)
        swept = sweep(run)
        ground = await stack.enter_async_context(_ground(config, state, run, [config_path, *_secrets(config)]))
        if ground.book.recovered or swept:
            ground.tell("daemon.recovered", "freehold", cut_requests=ground.book.recovered, engines_swept=swept)
        if ground.book.behind_s:
            ground.tell("daemon.clock_behind", "freehold", seconds=round(ground.book.behind_s, 3))
        await note_config(ground, config)
        keyring = Keyring(ground)
        await keyring.load()
        fleet = Fleet(config, ground, await ground.book.recent_starts(STARTS_REMEMBERED))
        doors = _listen_tcp(*config.server.address), _listen_unix(admin_socket(state))
        ground.executor.gateway = doors[0].getsockname()[:2]
        about = {"version": __version__, "config": config_digest, "url": _url(doors[0]), "pid": os.getpid()}
        front = _server(Gateway(fleet, keyring), config.server.drain_seconds, BoundedProtocol)

        def end() -> None:
            front.end()
            fleet.refuse_waiting()

        back = _server(Admin(fleet, keyring, about, end).app(), 1.0, PeerProtocol)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, end)
        ground.tell("daemon.started", "freehold", **about)
        ground.book.on_failure = end
        custody = Custody(ground, config.trail)
        keeping = asyncio.create_task(custody.keep(), name="custody")
        gc.freeze()  # what is there now stays: the collector need not look at it again
        try:
            await _until_the_end(fleet, front, back, doors)
        finally:
            keeping.cancel()
            await asyncio.wait((keeping,))
        keyring.limits.close()
        ground.tell("daemon.stopped", "freehold")
        if not ground.book.broken:
            await custody.attest()
        if ground.book.broken:
            raise FreeholdError("the book could not be written any more", hint="is the disk full? freehold doctor")


async def _until_the_end(
    fleet: Fleet, front: _Server, back: _Server, doors: tuple[socket.socket, socket.socket]
) -> None:
    """Callers go first, then the engines, then the operator's door. Raises what ended an owner before its time."""
    owning = asyncio.create_task(fleet.run())
    fronting, backing = (
        asyncio.create_task(server.serve(sockets=[door])) for server, door in zip((front, back), doors, strict=True)
    )
    try:
        await asyncio.wait((owning, fronting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        front.end()
        await asyncio.wait((fronting,))
        owning.cancel()
        await asyncio.wait((owning,))
        back.end()
        await asyncio.wait((backing,))
    if not owning.cancelled() and (error := owning.exception()):
        raise error


@asynccontextmanager
async def _ground(config: Config, state: Path, run: Path, secrets: list[Path]):  # noqa: ANN202
    book = Book(state)
    try:
        clock_ns = book.clock_ns
        machine = config.machine
        (state / "logs").mkdir(mode=0o700, exist_ok=True)
        yield Ground(
            executor=Local(run, config.policy.isolation, private=[state, *secrets]),
            book=book,
            occupancy=Occupancy(machine.name, machine.currency, machine.pico_per_hour, clock_ns()),
            clock_ns=clock_ns,
            state=state,
            run_dir=run,
            log_dir=state / "logs",
        )
    finally:
        await book.close()


def _secrets(config: Config) -> list[Path]:
    """Files outside of the state folder that no engine may read either."""
    named = (config.hub.token_file, *(each.api_key_file for each in config.endpoints.values()))
    return [Path(path) for path in named if path]


def _server(app: Any, drain_seconds: float, protocol: type[asyncio.Protocol]) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            lifespan="off",
            access_log=False,
            log_level="warning",
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=max(1, round(drain_seconds)),
            backlog=4096,
            http=protocol,
            ws="none",
        )
    )


def _listen_tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        message = f"cannot listen on {host}:{port}: {error.strerror}"
        raise FreeholdError(message, hint="server.listen in freehold.toml names the address") from None
    listening.setblocking(False)
    return listening


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def _listen_unix(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listening.bind(str(path))
    finally:
        os.umask(before)
    listening.setblocking(False)
    return listening


def main(config: Config, config_digest: str, config_path: Path) -> None:
    """Run the daemon in this process's main thread: engines are tied to the thread that starts them."""
    uvloop.run(serve(config, config_digest, config_path))
