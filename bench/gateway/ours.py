"""Freehold itself, in front of the same upstream with everything switched on.

Limits of the key and of its group, budgets, residency, metering, journal and book, all set far above what a run needs.
"""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import wire
from processes import end, spawn

from freehold.cli.daemon import Daemon
from freehold.gateway.rundir import run_dir

REPOSITORY = Path(__file__).parents[2]
LIMITS = {
    "requests_per_minute": 10**9,
    "tokens_per_minute": 10**12,
    "parallel": 10**5,
    "tokens_per_day": 10**14,
    "tokens_per_month": 10**15,
}
PLAIN = """
[server]
listen = "127.0.0.1:0"
drain_seconds = 1
{server}
[policy]
residency = ["DE"]
jurisdiction_not = ["US"]
[endpoints.bench]
engine = "external"
url = "{upstream}"
country = "DE"
operator = "stackit"
prompt_price = 0.5
completion_price = 1.5
"""
BUDGETS = {"budget_per_day": 10**6, "budget_per_month": 10**6}
EVERYTHING = f"""{PLAIN}context = 131072
max_completion_tokens = 4096
[groups.team]
residency = ["DE"]
jurisdiction_not = ["US"]
networks = ["127.0.0.0/8"]
{{limits}}
"""


@contextlib.contextmanager
def served(
    name: str, engine: wire.Gateway, scratch: Path, *, fast_path=True, commit: str | None = None
) -> Iterator[wire.Gateway]:
    """A daemon in a temporary folder. One of another commit has an endpoint and a key only, which older ones know too.

    Raises RuntimeError when it does not start.
    """
    source, everything = (_exported(commit, scratch), False) if commit else (REPOSITORY, True)
    server = f"fast_path = {str(fast_path).lower()}" if everything else ""
    limits = "\n".join(f"{key} = {value}" for key, value in (LIMITS | BUDGETS).items())
    with tempfile.TemporaryDirectory(prefix="freehold-bench-") as parent:
        folder = Path(parent)
        text = EVERYTHING if everything else PLAIN
        (folder / "freehold.toml").write_text(text.format(server=server, upstream=engine.url, limits=limits))
        env = {"PYTHONPATH": str(source / "src")}
        log = scratch / "logs" / f"{name}.log"
        log.unlink(missing_ok=True)
        process = spawn([sys.executable, "-m", "freehold", "serve"], log, env=env, cwd=folder)
        try:
            daemon = Daemon(folder / ".freehold")
            _wait_for(daemon, process, log)
            gateway = wire.Gateway(
                name=name,
                version=_version(source, commit),
                port=urlsplit(daemon.ask("GET", "/status")["url"]).port,
                pid=process.pid,
                key=_key(daemon, everything=everything),
                state=folder / ".freehold",
            )
            wire.wait_for(gateway, process, 10)
            yield gateway
        finally:
            end(process, patience_s=60)  # it writes its book to the end
            shutil.rmtree(run_dir(folder / ".freehold"), ignore_errors=True)


def _wait_for(daemon: Daemon, process: subprocess.Popen, log: Path) -> None:
    while not daemon.running():
        if process.poll() is not None:
            raise RuntimeError(f"the daemon ended:\n{log.read_text()}")
        time.sleep(0.05)


def _key(daemon: Daemon, *, everything: bool) -> str:
    ask: dict = {"name": "bench", "endpoints": ["bench"]}
    if everything:
        ask |= {"group": "team", "limits": LIMITS | BUDGETS}
    made = daemon.ask("POST", "/keys", ask)
    held = made["key"]
    if everything and not (held["group"] == "team" and held["grant"]["requests_per_minute"]):
        raise RuntimeError(f"the key has no limits: {held}")
    return made["secret"]


def _exported(commit: str, scratch: Path) -> Path:
    """The sources of that commit."""
    folder = scratch / "versions" / commit
    if not folder.exists():
        folder.mkdir(parents=True)
        archive = ["git", "archive", commit, "src"]
        packed = subprocess.run(archive, cwd=REPOSITORY, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x"], cwd=folder, input=packed, check=True)
    return folder


def _version(source: Path, commit: str | None) -> str:
    """Its version and commit; `+` when the tree has changed since."""
    describe = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    said = subprocess.run(describe, cwd=REPOSITORY, check=False, capture_output=True, text=True)  # or it is no checkout
    asked = "import freehold; print(freehold.__version__)"
    env = {**os.environ, "PYTHONPATH": str(source / "src")}
    number = subprocess.run([sys.executable, "-c", asked], env=env, capture_output=True, text=True, check=True)
    return f"{number.stdout.strip()} {commit or said.stdout.strip()}".strip()


def records(gateway: wire.Gateway) -> dict[str, int]:
    """What its book holds, by outcome."""
    Daemon(gateway.state).ask("POST", "/flush", timeout_s=300)
    with contextlib.closing(sqlite3.connect(f"file:{gateway.state}/book.db?mode=ro", uri=True)) as book:
        asked = "select outcome, count(*) from usage where kind != 'probe' group by outcome"
        return dict(book.execute(asked))
