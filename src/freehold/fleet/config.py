"""`freehold.toml`: what a team wants to run.

Its commented reference is docs/freehold.toml; `freehold schema` prints it as a JSON Schema.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import tomllib
from os.path import normpath
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from freehold.catalogue.own import OwnHost, OwnModel
from freehold.engines import engine
from freehold.errors import BadConfig, BadRequest, Unknown
from freehold.facts import Offer, Rate
from freehold.plan.need import Need
from freehold.policy.countries import expand
from freehold.policy.law import Acceptance, Rules
from freehold.types import PICO_PER_UNIT, Price

Seconds = Annotated[float, Meta(gt=0, le=1e7)]
Money = Annotated[float, Meta(ge=0, le=1e6)]
Count = Annotated[int, Meta(ge=1)]

_T = TypeVar("_T", bound=Struct)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_STARTED, _EXTERNAL = ("weights", "pin", "binary"), ("url", "served_model", "api_key_file", "country", "operator")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Server(_Table, frozen=True):
    """Where callers reach Freehold."""

    listen: str = "127.0.0.1:8080"
    behind_proxy: bool = False
    max_body_mib: Count = 32
    drain_seconds: Seconds = 10.0

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class Machine(_Table, frozen=True):
    """This machine: what it costs, where it stands and who runs it."""

    name: str = "local"
    hourly_price: Money = 0.0
    currency: str = "EUR"
    country: str = ""
    operator: str = ""

    @property
    def pico_per_hour(self) -> int:
        return _pico(self.hourly_price)


class Weights(_Table, frozen=True):
    """Where pulled weights lie, and how often all of them are read again."""

    folder: str = "models"
    verify_hours: Annotated[float, Meta(ge=0, le=1e5)] = 24.0  # 0: only when they look touched


class Hub(_Table, frozen=True):
    """Where `freehold pull` takes weights from."""

    url: str = "https://huggingface.co"
    token_file: str | None = None
    ca_file: str | None = None
    proxy: str | None = None


class Trail(_Table, frozen=True):
    """How long the book keeps what, and where its checkpoints go."""

    checkpoint_file: str | None = None
    checkpoint_command: tuple[str, ...] = ()  # gets each checkpoint as a line on its standard input
    checkpoint_minutes: Annotated[float, Meta(gt=0, le=1e5)] = 60.0
    keep_usage_days: Count | UnsetType = UNSET
    keep_event_days: Count | UnsetType = UNSET


class Endpoint(_Table, frozen=True):
    """A name that callers use as `model`, and what answers behind it."""

    engine: str = "llamacpp"
    model: str = ""
    weights: str | None = None
    pin: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None = None
    url: str | None = None
    served_model: str | None = None
    api_key_file: str | None = None
    country: str | None = None
    operator: str | None = None
    binary: str | None = None
    context: Count | UnsetType = UNSET
    parallel: Count = 4
    threads: Count | UnsetType = UNSET
    idle_seconds: Annotated[float, Meta(ge=0, le=1e7)] = 900.0
    start_seconds: Seconds = 600.0
    wait_seconds: Seconds = 120.0
    max_waiting: Annotated[int, Meta(ge=0)] = 1000
    request_seconds: Seconds = 600.0
    prompt_price: Money = 0.0
    completion_price: Money = 0.0
    first_question: str = "Hello"

    @property
    def price(self) -> Price:
        """Currency per million tokens is millionths per token: a million pico."""
        return Price(
            prompt_pico_per_token=_pico(self.prompt_price) // 10**6,
            completion_pico_per_token=_pico(self.completion_price) // 10**6,
        )


class Config(_Table, frozen=True):
    """The whole file."""

    server: Server = field(default_factory=Server)
    machine: Machine = field(default_factory=Machine)
    policy: Rules = field(default_factory=Rules)
    weights: Weights = field(default_factory=Weights)
    hub: Hub = field(default_factory=Hub)
    trail: Trail = field(default_factory=Trail)
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    need: Need = field(default_factory=Need)
    models: dict[str, OwnModel] = field(default_factory=dict)
    hosts: dict[str, OwnHost] = field(default_factory=dict)
    offers: dict[str, Offer] = field(default_factory=dict)
    rates: tuple[Rate, ...] = ()
    state_dir: str = ".freehold"


def digest(path: Path) -> str:
    """What the file says, in 64 hex digits: the book keeps it with every start of the daemon."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load(path: Path) -> Config:
    """Read and check the file; relative paths in it become absolute, seen from its folder. Raises BadConfig."""
    try:
        raw = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise BadConfig(f"no {path}", hint="copy docs/freehold.toml, or name another with --config") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadConfig(f"cannot read {path}: {error}") from None
    _refuse_unknown_keys(raw, path)
    try:
        config = msgspec.convert(raw, Config)
    except BadRequest as error:  # a figure out of its range, in [hosts.X.owned]
        raise BadConfig(f"{path}: [hosts]: {error}", hint=error.hint) from None
    except msgspec.ValidationError as error:
        raise BadConfig(f"{path}: {error}", hint="docs/freehold.toml shows every key with its meaning") from None
    _check_server(config.server, path)
    _check_rules(config, path)
    base = path.resolve().parent
    endpoints = {name: _checked(name, e, base, path) for name, e in config.endpoints.items()}
    return msgspec.structs.replace(
        config,
        endpoints=endpoints,
        weights=_placed(config.weights, base, "folder"),
        hub=_placed(config.hub, base, "token_file", "ca_file"),
        trail=_placed(config.trail, base, "checkpoint_file"),
        state_dir=normpath(base / config.state_dir),
    )


def schema() -> dict[str, Any]:
    return msgspec.json.schema(Config)


def _checked(name: str, endpoint: Endpoint, base: Path, path: Path) -> Endpoint:
    where = f"{path}: [endpoints.{name}]"
    if not _NAME.fullmatch(name):
        raise BadConfig(f"{where}: not a usable name", hint="letters, digits, dot, dash and underscore, 63 at most")
    try:
        engine(endpoint.engine)
    except Unknown as error:
        raise BadConfig(f"{where}: {error}", hint=error.hint) from None
    if endpoint.engine == "external":
        if not _usable(endpoint.url):
            raise BadConfig(f"{where}: engine = 'external' needs url", hint='url = "http://host:port" or "unix:/path"')
    elif not endpoint.weights:
        raise BadConfig(f"{where}: needs weights", hint='weights = "path/to/model.gguf"')
    others = _STARTED if endpoint.engine == "external" else _EXTERNAL
    if stray := [key for key in others if getattr(endpoint, key) is not None]:
        raise BadConfig(f"{where}: {', '.join(stray)} means nothing with engine = '{endpoint.engine}'")
    return _placed(endpoint, base, "weights", "api_key_file", "binary")


def _placed(table: _T, base: Path, *keys: str) -> _T:
    """With the paths under these keys made absolute, seen from the file's folder."""
    return msgspec.structs.replace(table, **{key: normpath(base / at) for key in keys if (at := getattr(table, key))})


def _usable(url: str | None) -> bool:
    try:
        parts = urlsplit(url or "")
        return bool(parts.path if parts.scheme == "unix" else parts.scheme in ("http", "https") and (parts.port or 1))
    except ValueError:
        return False


def _check_server(server: Server, path: Path) -> None:
    try:
        host, port = server.address
    except ValueError:
        port = -1
        host = ""
    if not host or not 0 <= port < 1 << 16:
        raise BadConfig(f"{path}: [server] listen = {server.listen!r} is no address", hint='write "127.0.0.1:8080"')
    if host not in LOOPBACK and not server.behind_proxy:
        raise BadConfig(
            f"{path}: [server] listen = {server.listen!r} is open to the network without TLS",
            hint="put a TLS proxy in front and say behind_proxy = true, or listen on 127.0.0.1",
        )


def _check_rules(config: Config, path: Path) -> None:
    """Countries must be countries, and no two rules contradict each other."""
    rules = config.policy
    lists = ("publisher_countries", "publisher_countries_not", "residency", "jurisdiction_not")
    named = {f"[policy] {key}": getattr(rules, key) for key in lists}
    homes = {"[policy]": rules.country, "[machine]": config.machine.country}
    homes |= {f"[endpoints.{name}]": endpoint.country for name, endpoint in config.endpoints.items()}
    named |= {f"{table} country": (country,) for table, country in homes.items() if country}
    named |= {
        f"[models.{name}] publisher_country": own.publisher_country.split("/")
        for name, own in config.models.items()
        if own.publisher_country
    }
    for where, countries in named.items():
        try:
            expand(countries)
        except BadRequest as error:
            raise BadConfig(f"{path}: {where}: {error}", hint=error.hint) from None
    if rules.use == "internal" and rules.serves_others:
        raise BadConfig(
            f"{path}: [policy] use = 'internal' and serves_others = true contradict each other",
            hint="use = 'commercial' where others are served",
        )


def _refuse_unknown_keys(raw: dict[str, Any], path: Path) -> None:
    """msgspec would refuse them too, but without the name that was probably meant."""
    tables: list[tuple[str, Any, type[Struct]]] = [("", raw, Config)]
    single = (("server", Server), ("machine", Machine), ("policy", Rules), ("need", Need))
    single += (("weights", Weights), ("hub", Hub), ("trail", Trail))
    tables += [(name, raw.get(name), kind) for name, kind in single]
    many = (("endpoints", Endpoint), ("models", OwnModel), ("hosts", OwnHost), ("offers", Offer))
    for group, kind in many:
        if isinstance(named := raw.get(group), dict):
            tables += [(f"{group}.{name}", table, kind) for name, table in named.items()]
    policy = raw.get("policy")
    accepted = policy.get("accepted") if isinstance(policy, dict) else None
    if isinstance(accepted, dict):
        tables += [(f'policy.accepted."{licence}"', table, Acceptance) for licence, table in accepted.items()]
    for where, table, kind in tables:
        for key in table if isinstance(table, dict) else ():
            if key not in kind.__struct_fields__:
                near = difflib.get_close_matches(key, kind.__struct_fields__, n=1, cutoff=0.5)
                keys = ", ".join(kind.__struct_fields__)
                raise BadConfig(
                    f"{path}: unknown key `{key}` in [{where or 'top level'}]",
                    hint=f"did you mean `{near[0]}`?" if near else f"known keys: {keys}",
                )


def _pico(amount: float) -> int:
    """Exact to the millionth of the unit, which is as fine as a price list gets."""
    return round(amount * 10**6) * (PICO_PER_UNIT // 10**6)
