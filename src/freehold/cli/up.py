"""`freehold up`: from nothing to an answer, shown stage by stage."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

if TYPE_CHECKING:
    from freehold.cli.daemon import Daemon
    from freehold.fleet.config import Config

_DAEMON_STARTS_S = 20
_ANSWER_S = 600
_KEY_NAME = "first"


@click.command
@click.argument("endpoint", nargs=-1)
@click.option("--full", is_flag=True, help="Read and hash all weights again, however untouched they look.")
@click.pass_obj
def command(config_path: Path, endpoint: tuple[str, ...], *, full: bool) -> None:
    """Bring endpoints up and ask one question.

    Starts the daemon if need be, then ENDPOINTs (default: all), showing each stage.
    """
    from freehold.cli.daemon import project
    from freehold.cli.stages import bring_up
    from freehold.errors import BadConfig
    from freehold.fleet.config import digest

    config, daemon = project(config_path)
    if not config.endpoints:
        raise BadConfig(f"{config_path} names no endpoint", hint="docs/freehold.toml shows how")
    _show_machine(config)
    if not daemon.running():
        _start_daemon(config_path, config, daemon)
    status = daemon.ask("GET", "/status")
    if status["config"] != digest(config_path):
        click.echo(f"NOTE: the daemon runs an older {config_path}; freehold down, then up, takes the new one")
    up, failure = bring_up(daemon, list(endpoint), full=full)
    if up:
        asked = config.endpoints[up[0]].first_question if up[0] in config.endpoints else "Hello"
        _show_question(config, daemon, status["url"], up[0], asked)
    if failure:
        raise failure


def _show_question(config: Config, daemon: Daemon, url: str, endpoint: str, question: str) -> None:
    secret, lasting = _key(daemon)
    body = json.dumps({"model": endpoint, "stream": True, "messages": [{"role": "user", "content": question}]})
    _show_door(url, secret if lasting else None, body)
    try:
        click.echo(f"asked     {question}\nanswer    ", nl=False)
        request = _ask(url, config.server.tls_certificate, secret, body)
    finally:
        if not lasting:
            daemon.ask("DELETE", f"/keys/{_temporary_name()}")
    _show_record(config, daemon, request)


def _show_machine(config: Config) -> None:
    from freehold.cli.stages import show
    from freehold.fleet.host import probe

    host = probe()
    gib = 1 << 30
    cards = ", ".join(f"{g.name} {g.memory_bytes / gib:.1f} GiB" for g in host.gpus) or "no NVIDIA card"
    memory = f"{host.memory_bytes / gib:.1f} GiB memory ({host.available_bytes / gib:.1f} GiB available)"
    show(config.machine.name, "machine", f"{host.cpu}, {host.cores} cores, {memory}, {cards}")


def _start_daemon(config_path: Path, config: Config, daemon: Daemon) -> None:
    from freehold.cli.logs import readable
    from freehold.errors import NoDaemon
    from freehold.gateway.rundir import own_folder

    logs = own_folder(own_folder(Path(config.state_dir)) / "logs")
    with (logs / "daemon.log").open("ab") as log:
        began = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "freehold", "--config", str(config_path.resolve()), "serve"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
        )  # fmt: skip
    deadline = time.monotonic() + _DAEMON_STARTS_S
    while not daemon.running():
        if process.poll() is not None or time.monotonic() > deadline:
            log = (logs / "daemon.log").read_bytes()[began:].decode(errors="replace").strip()
            said = "\n".join(line for each in log.splitlines() for line in readable(each))
            error = NoDaemon(f"the daemon did not start: {said or 'it said nothing'}", hint="freehold logs")
            error.exit_code = process.returncode or error.exit_code
            raise error
        time.sleep(0.02)


def _key(daemon: Daemon) -> tuple[str, bool]:
    """A key to ask with, and whether it lasts: the first one is the team's, later ones live for this question only."""
    if not daemon.ask("GET", "/keys"):
        return daemon.ask("POST", "/keys", {"name": _KEY_NAME})["secret"], True
    return daemon.ask("POST", "/keys", {"name": _temporary_name(), "expires_s": 600})["secret"], False


def _temporary_name() -> str:
    return f"up-{os.getpid()}"


def _show_door(base: str, secret: str | None, body: str) -> None:
    key = f"{secret}   shown once: keep it" if secret else "one you have, or a new one: freehold keys create NAME"
    auth = secret or "$FREEHOLD_KEY"
    quoted = body.replace("'", "'\\''")
    click.echo(f"\nbase URL  {base}\nkey       {key}\n")
    click.echo(f"curl -N {base}/chat/completions -H 'Content-Type: application/json' \\")
    click.echo(f"  -H \"Authorization: Bearer {auth}\" \\\n  -d '{quoted}'\n")


def _ask(base: str, certificate: str | None, secret: str, body: str) -> str:
    """Ask as that line does, show the answer as it comes, and return the request's id."""
    from freehold.cli.tables import printable
    from freehold.errors import EngineFailed

    url = urlsplit(base)
    connection = _connection(url.netloc, certificate if url.scheme == "https" else None)
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    try:
        connection.request("POST", f"{url.path}/chat/completions", body, headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise EngineFailed(f"the question got {answer.status}: {answer.read().decode(errors='replace')}")
        for line in answer:
            if line.startswith(b"data: {"):
                frame = json.loads(line[6:])
                if "error" in frame:
                    raise EngineFailed(frame["error"]["message"])
                click.echo(printable(_delta(frame)), nl=False)
    except (OSError, http.client.HTTPException) as error:
        raise EngineFailed(f"the answer broke off: {error}") from None
    click.echo()
    return answer.headers["x-request-id"]


def _connection(netloc: str, certificate: str | None) -> http.client.HTTPConnection:
    """With TLS it is the configured certificate that must answer, whatever name it is for and whoever signed it."""
    if certificate is None:
        return http.client.HTTPConnection(netloc, timeout=_ANSWER_S)
    leaf, end, _ = Path(certificate).read_text().partition("-----END CERTIFICATE-----")
    context = ssl.create_default_context(cadata=leaf + end)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return http.client.HTTPSConnection(netloc, timeout=_ANSWER_S, context=context)


def _delta(frame: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in frame.get("choices", ()))


def _show_record(config: Config, daemon: Daemon, request_id: str) -> None:
    from freehold.cli.tables import money
    from freehold.errors import EngineFailed
    from freehold.ledger import report

    daemon.ask("POST", "/flush")
    with report.reading(Path(config.state_dir)) as book:
        record = report.request(book, request_id)
    if record is None:
        return
    if record["outcome"] != "ok":
        raise EngineFailed("the answer did not come to its end", hint=f"freehold logs {record['endpoint']}")
    currency = config.machine.currency
    charged, cost = (money(record[account], currency, 9) for account in ("charge_pico", "machine_pico"))
    tokens = f"{record['prompt_tokens']} prompt + {record['completion_tokens']} completion tokens"
    click.echo(f"\nusage     {tokens}, {record['outcome']}")
    click.echo(f"time      {record['first_byte_ms']:.1f} ms to the first byte, {record['total_ms']:.1f} ms in all")
    click.echo(f"price     {charged} by the price list, {cost} of the machine's time")
    click.echo("\nThe daemon goes on in the background: freehold ps, freehold usage, freehold down")
