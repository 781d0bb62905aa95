"""The daemon: everything put together, from the lock on its state to the last engine gone."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from freehold import __version__
from freehold.errors import FreeholdError
from freehold.executors.keyring import leave_session_keyring
from freehold.executors.local import Local, sweep
from freehold.fleet.adapters import read_rosters
from freehold.fleet.checks import LOOPBACK, address
from freehold.fleet.config import Config, Server
from freehold.fleet.fleet import Fleet
from freehold.fleet.ground import Ground
from freehold.fleet.occupancy import Occupancy
from freehold.fleet.replica import STARTS_REMEMBERED
from freehold.fleet.starting import remove_folder
from freehold.gateway import tls
from freehold.gateway.admin import Admin
from freehold.gateway.app import Gateway
from freehold.gateway.custody import Custody, note_config
from freehold.gateway.desk import Desk
from freehold.gateway.exposition import Exposition, metrics_app
from freehold.gateway.fast import FastProtocol
from freehold.gateway.keyring import Keyring
from freehold.gateway.logs import write_json
from freehold.gateway.protocol import SWEEP_S, BoundedProtocol, PeerProtocol, fits
from freehold.gateway.rundir import admin_socket, lock, own_folder, run_dir
from freehold.ledger.book import Book

_Work = Coroutine[Any, Any, None]


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
        swept = _sweep_run(run)
        ground = await stack.enter_async_context(_ground(config, state, run, [config_path, *_secrets(config)]))
        _tell_before(ground, swept)
        await note_config(ground, config)
        keyring = Keyring(ground, config.groups)
        await keyring.load()
        rosters = read_rosters(await ground.book.adapters())
        fleet = Fleet(config, ground, await ground.book.recent_starts(STARTS_REMEMBERED), rosters)
        doors = _listen_tcp("listen", config.server.listen), _listen_unix(admin_socket(state))
        ground.executor.gateway = doors[0].getsockname()[:2]
        secured = tls.certificate(config.server)
        url = _url(doors[0], secured, "/v1")
        about = {"version": __version__, "config": config_digest, "url": url, "pid": os.getpid()}
        desk = Desk(fleet, keyring)
        exposition = Exposition(desk.metrics, fleet, keyring.limits)
        front = _front(Gateway(desk), config.server, ground, secured)

        def end() -> None:
            front.end()
            fleet.refuse_waiting()

        back = _server(Admin(fleet, keyring, exposition, about, end).app(), 1.0, PeerProtocol)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, end)
        custody = Custody(ground, config.trail)
        beside: list[_Work] = [custody.keep(), desk.tick(), _sweep(front)]
        if secured:
            beside.append(secured.watch(ground))
        if config.server.metrics:
            about["metrics"], scraping = _scraped(exposition, config.server, secured)
            beside.append(scraping)
        ground.tell("daemon.started", "freehold", **about)
        ground.book.on_failure = end
        gc.freeze()  # what is there now stays: the collector need not look at it again
        async with _running(beside):
            await _until_the_end(desk, front, back, doors)
        keyring.limits.close()
        ground.tell("daemon.stopped", "freehold")
        if not ground.book.broken:
            await custody.attest()
        if ground.book.broken:
            raise FreeholdError("the book could not be written any more", hint="is the disk full? freehold doctor")


def _sweep_run(run: Path) -> int:
    """Clear away what a daemon left that was killed; how many engines were still there."""
    swept = sweep(run)
    for left in run.iterdir():  # their sockets' folders
        if left.is_dir():
            remove_folder(left)
    return swept


def _front(gateway: Gateway, server: Server, ground: Ground, secured: tls.Certificate | None) -> _Server:
    """Where callers come in: by the fast path where it is wanted and this uvicorn is one it knows."""
    quick = server.fast_path and fits()
    if server.fast_path and not quick:
        ground.tell("gateway.fast_path_off", "freehold", uvicorn=uvicorn.__version__)
    kind = FastProtocol if quick else BoundedProtocol
    protocol: Any = type(kind.__name__, (kind,), {"limits": server, "gateway": gateway})
    return _server(gateway, server.drain_seconds, protocol, idle_s=server.idle_seconds, secured=secured)


def _scraped(exposition: Exposition, server: Server, secured: tls.Certificate | None) -> tuple[str, _Work]:
    """Where Prometheus comes in: beyond loopback over TLS, where there is a certificate."""
    door = _listen_tcp("metrics", server.metrics)
    over = None if address(server.metrics)[0] in LOOPBACK else secured
    serving = _server(metrics_app(exposition), 1.0, BoundedProtocol, secured=over)
    return _url(door, over, "/metrics"), serving.serve(sockets=[door])


@asynccontextmanager
async def _running(works: list[_Work]):  # noqa: ANN202
    """Beside what is in the block, and no longer."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _tell_before(ground: Ground, swept: int) -> None:
    """What there is to say of the time before this start."""
    if ground.book.recovered or swept:
        ground.tell("daemon.recovered", "freehold", cut_requests=ground.book.recovered, engines_swept=swept)
    if ground.book.behind_s:
        ground.tell("daemon.clock_behind", "freehold", seconds=round(ground.book.behind_s, 3))


async def _sweep(front: _Server) -> None:
    """Until cancelled: connections that take too long, or wait for nothing, end."""
    while True:
        await asyncio.sleep(SWEEP_S)
        now_s = asyncio.get_running_loop().time()
        for connection in tuple(front.server_state.connections):
            if isinstance(connection, BoundedProtocol):
                connection.sweep(now_s)


async def _until_the_end(desk: Desk, front: _Server, back: _Server, doors: tuple[socket.socket, socket.socket]) -> None:
    """Callers go first, then the engines, then the operator's door. Raises what ended an owner before its time."""
    owning = asyncio.create_task(desk.fleet.run())
    fronting, backing = (
        asyncio.create_task(server.serve(sockets=[door])) for server, door in zip((front, back), doors, strict=True)
    )
    try:
        await asyncio.wait((owning, fronting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        front.end()
        await asyncio.wait((fronting,))
        desk.cut()
        await desk.fleet.save_counts(final=True)
        owning.cancel()
        await asyncio.wait((owning,))
        back.end()
        await asyncio.wait((backing,))
    if not owning.cancelled() and (error := owning.exception()):
        raise error


@asynccontextmanager
async def _ground(config: Config, state: Path, run: Path, secrets: list[Path]):  # noqa: ANN202
    book = Book(state, power_loss=config.server.durability == "power-loss")
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
            engines_dir=state / "engines",
        )
    finally:
        await book.close()


def _secrets(config: Config) -> list[Path]:
    """Files outside of the state folder that no engine may read either."""
    named = (
        config.hub.token_file,
        config.server.tls_key,
        *(place.api_key_file for each in config.endpoints.values() for place in each.places),
    )
    return [Path(path) for path in named if path]


def _server(
    app: Any,
    drain_seconds: float,
    protocol: type[asyncio.Protocol],
    *,
    idle_s: float = 75.0,
    secured: tls.Certificate | None = None,
) -> _Server:
    config = uvicorn.Config(
        app,
        lifespan="off",
        access_log=False,
        log_config=None,  # what uvicorn says goes where all goes
        log_level="warning",
        server_header=False,
        date_header=False,
        proxy_headers=False,  # whom to believe is the desk's to know
        timeout_keep_alive=round(idle_s),
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
        backlog=4096,
        http=protocol,
        ws="none",
    )
    config.load()
    config.ssl = secured.context if secured else None  # ours, which takes a renewed certificate while it serves
    return _Server(config)


def _listen_tcp(key: str, written: str) -> socket.socket:
    host, port = address(written)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        message = f"cannot listen on {host}:{port}: {error.strerror}"
        raise FreeholdError(message, hint=f"server.{key} in freehold.toml names the address") from None
    listening.setblocking(False)
    return listening


def _url(listening: socket.socket, secured: tls.Certificate | None, path: str) -> str:
    host, port = listening.getsockname()[:2]
    return f"http{'s' if secured else ''}://{f'[{host}]' if ':' in host else host}:{port}{path}"


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
    write_json()
    uvloop.run(serve(config, config_digest, config_path))
