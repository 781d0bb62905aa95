"""What `freehold.toml` may not say: checked when it is read, each with its place in the file and what to do."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct
from msgspec.structs import fields

from freehold.engines import Launchable, engine
from freehold.errors import BadConfig, BadRequest, Unknown
from freehold.policy.access import network
from freehold.policy.countries import expand

if TYPE_CHECKING:
    from freehold.fleet.config import Config, Endpoint, Server

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_EXTERNAL = ("url", "served_model", "api_key_file", "country", "operator", "cache_salt")
# Keys that not every engine heeds: see engines.base.Launchable.takes.
_SOME = (
    *("version", "threads", "tensor_parallel", "pipeline_parallel", "expert_parallel", "card_share", "batched_tokens"),
    *("kv_dtype", "prefix_caching", "speculative", "draft", "draft_tokens", "tool_parser", "reasoning_parser"),
    *("chat_template", "embeddings", "max_loras", "max_lora_rank"),
)
# Keys of engines that Freehold starts, which mean nothing elsewhere.
_STARTED = ("weights", "pin", "binary", "arguments", *_SOME)


def check(config: Config, path: Path) -> None:
    """Raises BadConfig."""
    _check_server(config.server, path)
    _check_rules(config, path)
    for name, group in config.groups.items():
        where = _named(path, "groups", name)
        try:
            _ = group.grant
        except BadRequest as error:
            raise BadConfig(f"{where}: {error}", hint=error.hint) from None
    for name, endpoint in config.endpoints.items():
        _check_endpoint(_named(path, "endpoints", name), name, endpoint, config.endpoints)


def address(written: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:8080". Raises ValueError."""
    host, _, port = written.rpartition(":")
    return host.strip("[]"), int(port)


def _named(path: Path, table: str, name: str) -> str:
    where = f"{path}: [{table}.{name}]"
    if not _NAME.fullmatch(name):
        raise BadConfig(f"{where}: not a usable name", hint="letters, digits, dot, dash and underscore, 63 at most")
    return where


def _check_endpoint(where: str, name: str, endpoint: Endpoint, endpoints: dict[str, Endpoint]) -> None:
    try:
        kind = engine(endpoint.engine)
    except Unknown as error:
        raise BadConfig(f"{where}: {error}", hint=error.hint) from None
    external = endpoint.engine == "external"
    if external and not all(_usable(place.url) for place in endpoint.places):
        raise BadConfig(f"{where}: engine = 'external' needs url", hint='url = "http://host:port" or "unix:/path"')
    if not external and not endpoint.weights:
        raise BadConfig(f"{where}: needs weights", hint='weights = "path/to/model.gguf"')
    defaults = {field.name: field.default for field in fields(type(endpoint))}
    others = _STARTED
    if isinstance(kind, Launchable):
        others = (*_EXTERNAL, *(key for key in _SOME if key not in kind.takes))
    if stray := [key for key in others if getattr(endpoint, key) != defaults[key]]:
        raise BadConfig(f"{where}: {', '.join(stray)} means nothing with engine = '{endpoint.engine}'")
    _check_pairs(where, endpoint)
    _check_replicas(where, name, endpoint, endpoints)
    for other in endpoint.fallback:
        if other not in endpoints or other == name:
            what = "is this endpoint itself" if other == name else "is no endpoint"
            there_are = ", ".join(sorted(endpoints.keys() - {name})) or "no others"
            raise BadConfig(f"{where} fallback: `{other}` {what}", hint=f"there are: {there_are}")


def _check_pairs(where: str, endpoint: Endpoint) -> None:
    """Keys that go together, or not."""
    if endpoint.engine == "external" and endpoint.context == "auto":
        raise BadConfig(f"{where}: context = 'auto' needs an engine that Freehold starts", hint="name the tokens")
    if (endpoint.draft is not None) != (endpoint.speculative == "draft"):
        raise BadConfig(
            f"{where}: draft and speculative = 'draft' go together", hint="draft = the small model's weights"
        )
    if endpoint.draft_tokens != type(endpoint)().draft_tokens and not endpoint.speculative:
        raise BadConfig(f"{where}: draft_tokens means nothing without speculative", hint='speculative = "ngram"')
    if endpoint.embeddings and endpoint.engine == "llamacpp" and (endpoint.slots or 0) > 1:
        # llama.cpp b11549 computes texts of other lengths together, and gets their vectors wrong: cosines of 0.7
        raise BadConfig(f"{where}: with embeddings llama.cpp answers one request at a time", hint="parallel = 1")


def _check_replicas(where: str, name: str, endpoint: Endpoint, endpoints: dict[str, Endpoint]) -> None:
    several = not isinstance(endpoint.replicas, int)
    if several != (endpoint.engine == "external") and endpoint.replicas != 1:
        how = "[[endpoints.NAME.replicas]] tables" if not several else "a number of replicas, as in replicas = 2"
        raise BadConfig(f"{where}: engine = '{endpoint.engine}' takes {how}", hint="docs/freehold.toml shows both")
    if several and not endpoint.places:
        raise BadConfig(f"{where}: replicas is empty", hint="one server: url = ..., several: a table for each")
    alone = ("url", "api_key_file", "country", "operator")
    if several and (twice := [key for key in alone if getattr(endpoint, key) is not None]):
        raise BadConfig(
            f"{where}: {', '.join(twice)} beside replicas", hint="one server: here; several: in each table of replicas"
        )
    if len(names := endpoint.replica_names(name)) > 1 and (taken := set(names) & endpoints.keys()):
        raise BadConfig(
            f"{where}: its replicas are called {name}-1, {name}-2 and so on, and `{min(taken)}` is an endpoint",
            hint="give one of the two another name",
        )


def _usable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            return bool(parts.path)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _check_server(server: Server, path: Path) -> None:
    if bool(server.tls_certificate) != bool(server.tls_key):
        missing = "tls_key" if server.tls_certificate else "tls_certificate"
        raise BadConfig(f"{path}: [server] {missing} is missing", hint="TLS needs tls_certificate and tls_key, as PEM")
    _check_door("listen", server.listen, server, path)
    if server.metrics:
        _check_door("metrics", server.metrics, server, path)
    for each in server.trusted_proxies:
        try:
            network(each)
        except BadRequest as error:
            raise BadConfig(f"{path}: [server] trusted_proxies: {error}", hint=error.hint) from None


def _check_door(key: str, written: str, server: Server, path: Path) -> None:
    try:
        host, port = address(written)
    except ValueError:
        host, port = "", -1
    if not host or not 0 <= port < 1 << 16:
        raise BadConfig(f"{path}: [server] {key} = {written!r} is no address", hint='write "127.0.0.1:8080"')
    if host not in LOOPBACK and not server.behind_proxy and not server.tls_certificate:
        raise BadConfig(
            f"{path}: [server] {key} = {written!r} is open to the network without TLS",
            hint="name tls_certificate and tls_key, say behind_proxy = true behind a TLS proxy, or use 127.0.0.1",
        )


def _check_rules(config: Config, path: Path) -> None:
    """Countries must be countries, and no two rules contradict each other."""
    rules = config.policy
    lists = ("publisher_countries", "publisher_countries_not", "residency", "jurisdiction_not")
    named = {f"[policy] {key}": getattr(rules, key) for key in lists}
    homes = {"[policy]": rules.country, "[machine]": config.machine.country}
    for name, endpoint in config.endpoints.items():
        homes |= {f"[endpoints.{name}]": endpoint.country}
        several = () if isinstance(endpoint.replicas, int) else endpoint.replicas
        homes |= {f"[endpoints.{name}] replicas {n}": each.country for n, each in enumerate(several, 1)}
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


def refuse_unknown_keys(table: Any, kind: type[Struct], path: Path, where: str = "") -> None:
    """msgspec would refuse them too, but without the name that was probably meant."""
    if not isinstance(table, dict):
        return  # msgspec says so
    for key in table:
        if key not in kind.__struct_fields__:
            near = difflib.get_close_matches(key, kind.__struct_fields__, n=1, cutoff=0.5)
            keys = ", ".join(kind.__struct_fields__)
            raise BadConfig(
                f"{path}: unknown key `{key}` in [{where or 'top level'}]",
                hint=f"did you mean `{near[0]}`?" if near else f"known keys: {keys}",
            )
    for field in msgspec.structs.fields(kind):
        below, inner = table.get(field.name), _struct_in(field.type)
        if below is None or inner is None:
            continue
        at = f"{where}.{field.name}" if where else field.name
        if isinstance(below, list):
            for each in below:
                refuse_unknown_keys(each, inner, path, at)
        elif isinstance(below, dict) and get_origin(field.type) is dict:
            for name, each in below.items():
                written = name if _BARE_KEY.fullmatch(name) else f'"{name}"'
                refuse_unknown_keys(each, inner, path, f"{at}.{written}")
        else:
            refuse_unknown_keys(below, inner, path, at)


def _struct_in(kind: Any) -> type[Struct] | None:
    """The table that a field of this type holds, or each of its items."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        return kind
    return next(filter(None, map(_struct_in, get_args(kind))), None)
