"""`freehold.toml`: what a team wants to run.

Its commented reference is docs/freehold.toml; `freehold schema` prints it as a JSON Schema.
"""

from __future__ import annotations

import hashlib
import tomllib
from os.path import normpath
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from freehold.catalogue.own import OwnHost, OwnModel
from freehold.errors import BadConfig, BadRequest
from freehold.facts import Offer, Rate
from freehold.fleet.checks import address, check, refuse_unknown_keys
from freehold.plan.need import Need
from freehold.policy.access import network
from freehold.policy.countries import code
from freehold.policy.law import Rules
from freehold.types import PICO_PER_UNIT, Grant, Options, Price

Seconds = Annotated[float, Meta(gt=0, le=1e7)]
Money = Annotated[float, Meta(ge=0, le=1e6)]
Count = Annotated[int, Meta(ge=1)]

_T = TypeVar("_T", bound=Struct)
DEFAULT_PARALLEL = 4  # of llama.cpp, where each request has a cache of its own
PAGED_PARALLEL = 64  # of engines whose requests share one cache
DEFAULT_CONTEXT = 8192
ADAPTERS_AT_LAUNCH = 8  # of an engine that sets nothing aside for them


class _Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Server(_Table, frozen=True):
    """Where callers reach Freehold."""

    listen: str = "127.0.0.1:8080"
    tls_certificate: str | None = None
    tls_key: str | None = None
    behind_proxy: bool = False
    trusted_proxies: tuple[str, ...] = ()
    max_body_mib: Count = 32
    max_header_kib: Count = 64
    header_seconds: Seconds = 30.0
    body_seconds: Seconds = 300.0
    idle_seconds: Seconds = 75.0
    drain_seconds: Seconds = 10.0
    durability: Literal["crash", "power-loss"] = "crash"
    fast_path: bool = True
    metrics: str = ""
    log_requests: bool = False

    @property
    def address(self) -> tuple[str, int]:
        return address(self.listen)


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


class Allowance(_Table, frozen=True):
    """What may be used, and where."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    parallel: Count | None = None
    tokens_per_day: Count | None = None
    tokens_per_month: Count | None = None
    budget_per_day: Money | None = None
    budget_per_month: Money | None = None
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    residency: tuple[str, ...] = ()
    jurisdiction_not: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()

    @property
    def grant(self) -> Grant:
        """Raises BadRequest for a country or a network that is none."""
        day, month = self.budget_per_day, self.budget_per_month
        return Grant(
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            parallel=self.parallel,
            tokens_per_day=self.tokens_per_day,
            tokens_per_month=self.tokens_per_month,
            pico_per_day=None if day is None else _pico(day),
            pico_per_month=None if month is None else _pico(month),
            priority=self.priority,
            residency=tuple(map(code, self.residency)),
            jurisdiction_not=tuple(map(code, self.jurisdiction_not)),
            networks=tuple(map(network, self.networks)),
        )


class Group(Allowance, frozen=True):
    """What keys of this group may use, all of them together."""

    endpoints: tuple[str, ...] = ("*",)


class Place(_Table, frozen=True):
    """One of several servers of an external endpoint."""

    url: str
    api_key_file: str | None = None
    country: str | None = None
    operator: str | None = None


class Endpoint(_Table, frozen=True):
    """A name that callers use as `model`, and what answers behind it."""

    engine: str = "llamacpp"
    model: str = ""
    weights: str | None = None
    pin: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None = None
    url: str | None = None
    replicas: Annotated[int, Meta(ge=1, le=64)] | tuple[Place, ...] = 1
    served_model: str | None = None
    api_key_file: str | None = None
    country: str | None = None
    operator: str | None = None
    binary: str | None = None
    version: str = ""
    context: Count | Literal["auto"] | UnsetType = UNSET
    parallel: Count | UnsetType = UNSET
    threads: Count | UnsetType = UNSET
    tensor_parallel: Count = 1
    pipeline_parallel: Count = 1
    expert_parallel: bool = False
    card_share: Annotated[float, Meta(gt=0, le=1)] | UnsetType = UNSET
    batched_tokens: Count | UnsetType = UNSET
    kv_dtype: Literal["", "bf16", "fp16", "fp8", "nvfp4"] = ""
    prefix_caching: bool = True
    speculative: Literal["", "ngram", "draft", "mtp"] = ""
    draft: str | None = None
    draft_tokens: Annotated[int, Meta(ge=1, le=64)] = 3
    tool_parser: str = ""
    reasoning_parser: str = ""
    chat_template: str | None = None
    max_loras: Annotated[int, Meta(ge=0, le=1000)] | UnsetType = UNSET
    max_lora_rank: Annotated[int, Meta(ge=1, le=512)] = 64
    arguments: tuple[str, ...] = ()
    idle_seconds: Annotated[float, Meta(ge=0, le=1e7)] = 900.0
    start_seconds: Seconds = 600.0
    wait_seconds: Seconds = 120.0
    max_waiting: Annotated[int, Meta(ge=0)] = 1000
    request_seconds: Seconds = 600.0
    first_byte_seconds: Seconds = 600.0
    stall_seconds: Seconds = 120.0
    max_completion_tokens: Count | UnsetType = UNSET
    fallback: tuple[str, ...] = ()
    cache_salt: bool | UnsetType = UNSET
    embeddings: bool = False
    prompt_price: Money = 0.0
    completion_price: Money = 0.0
    first_question: str = "Hello"

    @property
    def slots(self) -> int | None:
        """Requests that one replica answers at once; None: as many as come."""
        if self.engine == "external":
            return self.parallel or None
        alone = 1 if self.embeddings else DEFAULT_PARALLEL  # see checks.py
        return self.parallel or (alone if self.engine == "llamacpp" else PAGED_PARALLEL)

    @property
    def embeds(self) -> bool:
        """It may: nobody says what somebody else's server does."""
        return self.embeddings or self.engine == "external"

    @property
    def places(self) -> tuple[Place, ...]:
        """The servers of an external endpoint."""
        alone = Place(url=self.url or "", api_key_file=self.api_key_file, country=self.country, operator=self.operator)
        return (alone,) if isinstance(self.replicas, int) else self.replicas

    def replica_names(self, name: str) -> list[str]:
        """`name`: the endpoint's."""
        count = self.replicas if isinstance(self.replicas, int) else len(self.replicas)
        return [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]

    @property
    def options(self) -> Options:
        said = {name: getattr(self, name) for name in Options.__struct_fields__}
        return Options(**said | {"chat_template": self.chat_template or "", "max_loras": self.max_loras or 0})

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
    groups: dict[str, Group] = field(default_factory=dict)
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
    refuse_unknown_keys(raw, Config, path)
    try:
        config = msgspec.convert(raw, Config)
    except BadRequest as error:  # a figure out of its range, in [hosts.X.owned]
        raise BadConfig(f"{path}: [hosts]: {error}", hint=error.hint) from None
    except msgspec.ValidationError as error:
        raise BadConfig(f"{path}: {error}", hint="docs/freehold.toml shows every key with its meaning") from None
    check(config, path)
    base = path.resolve().parent
    endpoints = {name: _placed_endpoint(each, base) for name, each in config.endpoints.items()}
    return msgspec.structs.replace(
        config,
        server=_placed(config.server, base, "tls_certificate", "tls_key"),
        endpoints=endpoints,
        weights=_placed(config.weights, base, "folder"),
        hub=_placed(config.hub, base, "token_file", "ca_file"),
        trail=_placed(config.trail, base, "checkpoint_file"),
        state_dir=normpath(base / config.state_dir),
    )


def schema() -> dict[str, Any]:
    return msgspec.json.schema(Config)


def _placed_endpoint(endpoint: Endpoint, base: Path) -> Endpoint:
    if not isinstance(endpoint.replicas, int):
        replicas = tuple(_placed(place, base, "api_key_file") for place in endpoint.replicas)
        endpoint = msgspec.structs.replace(endpoint, replicas=replicas)
    return _placed(endpoint, base, "weights", "api_key_file", "binary", "draft", "chat_template")


def _placed(table: _T, base: Path, *keys: str) -> _T:
    """With the paths under these keys made absolute, seen from the file's folder."""
    return msgspec.structs.replace(table, **{key: normpath(base / at) for key in keys if (at := getattr(table, key))})


def _pico(amount: float) -> int:
    """Exact to the millionth of the unit, which is as fine as a price list gets."""
    return round(amount * 10**6) * (PICO_PER_UNIT // 10**6)
