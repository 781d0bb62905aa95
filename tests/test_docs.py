"""The documents say what the code does: every key, option, error, route and event is in them."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
import pytest
from click.testing import CliRunner
from msgspec import Struct

from freehold import errors
from freehold.catalogue.own import OwnHost, OwnModel
from freehold.cli.main import COMMANDS, cli
from freehold.errors import FreeholdError
from freehold.facts import Offer, Rate
from freehold.fleet.config import Config, Endpoint, Group, Hub, Machine, Place, Server, Trail, Weights, load
from freehold.gateway.admin import Admin
from freehold.gateway.app import ROUTES
from freehold.gateway.desk import KINDS
from freehold.plan.cost import Owned
from freehold.plan.need import Need
from freehold.policy.law import Acceptance, Rules
from freehold.policy.lifecycle import State

ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
CONFIGURATION = ROOT / "docs" / "freehold.toml"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in REFERENCE.splitlines() if line.startswith("| `")
]


def commands(group: click.Group, name: str):
    for each in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), each)
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {each}")
        else:
            yield f"{name} {each}", command


@pytest.mark.parametrize(("name", "command"), [*commands(cli, "freehold")])
def test_every_command_is_in_the_reference_with_its_options_and_no_others(name, command):
    (documented,) = [row[1] for row in ROWS if row[0] == f"`{name}`"]
    options = {o for p in command.params if isinstance(p, click.Option) for o in p.opts}
    arguments = {p.make_metavar(click.Context(command)) for p in command.params if isinstance(p, click.Argument)}
    arguments = {re.sub(r"\{.*\}", "SHELL", a) for a in arguments}
    assert set(re.findall(r"`([^`]+)`", documented)) == options | arguments


def test_the_reference_has_no_command_that_is_not_there():
    there = {name for name, _ in commands(cli, "freehold")}
    assert {row[0].strip("`") for row in ROWS if row[0].startswith("`freehold ")} == there
    assert {name.split()[1] for name in there} == set(COMMANDS)


def test_every_error_is_in_the_reference_with_its_codes():
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
    expected = {
        each.__name__: [f"`{each.code}`" if each.code else "null", str(each.status), str(each.exit_code)]
        for each in classes
    }
    names = {f"`{each}`" for each in expected}
    assert {row[0].strip("`"): row[1:4] for row in ROWS if row[0] in names} == expected


def test_every_route_is_in_the_reference():
    front = {(route, "POST" if route in KINDS else "GET") for route in ROUTES}
    back = {(r.path, m) for r in Admin(*[None] * 5).app().routes for m in r.methods - {"HEAD"}}
    assert {(row[0].strip("`"), row[1]) for row in ROWS if row[0].startswith("`/")} == front | back


def kinds_told():
    """The first argument of every call of `tell`, as far as it is written there."""
    for path in (ROOT / "src" / "freehold").rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            if getattr(call.func, "attr", getattr(call.func, "id", "")) in ("tell", "report") and call.args:
                told = call.args[call.func.id == "report" if isinstance(call.func, ast.Name) else 0]
                yield from (n.value for n in ast.walk(told) if isinstance(n, ast.Constant) and "." in str(n.value))


def test_every_event_is_in_the_reference():
    told = {kind for kind in kinds_told() if not kind.endswith(".")} | {f"replica.{state}" for state in get_args(State)}
    documented = {kind for row in ROWS for kind in re.findall(r"`([a-z]+\.[a-z_]+)`", row[0])}
    assert documented == told


ELSEWHERE = {  # keys that have a table of their own, or that another table answers for
    Rules: {"accepted"},
    OwnHost: {"owned"},
    Owned: {"card", "cards", "source"},  # the host says
    Offer: {"id"},  # the table's name
}
TABLES = {
    "server": Server,
    "machine": Machine,
    "policy": Rules,
    "policy.accepted.": Acceptance,
    "weights": Weights,
    "hub": Hub,
    "trail": Trail,
    "endpoints.": Endpoint,
    "groups.": Group,
    "need": Need,
    "models.": OwnModel,
    "hosts.": OwnHost,
    "hosts.ward.owned": Owned,
    "offers.": Offer,
}


def keys_of(table: type[Struct]) -> set[str]:
    return set(table.__struct_fields__) - ELSEWHERE.get(table, set())


def defaults(table: type[Struct]) -> dict[str, Any]:
    """What is left out: the default of every key that has one."""
    values = {each.name: each.default for each in msgspec.structs.fields(table) if each.name in keys_of(table)}
    absent = (None, msgspec.UNSET, msgspec.NODEFAULT)
    return json.loads(json.dumps({key: value for key, value in values.items() if value not in absent}))


def documented(raw: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The tables of this name; of a name that ends with a dot, all that begin so."""
    *parents, last = name.split(".")
    for parent in parents:
        raw = raw[parent]
    return [raw[last]] if last else [*raw.values()]


def test_the_configuration_reference_has_every_key_and_its_default():
    raw = tomllib.loads(CONFIGURATION.read_text())
    assert set(raw) == set(Config.__struct_fields__)
    assert raw["state_dir"] == Config().state_dir
    found = [(name, table, documented(raw, name)) for name, table in TABLES.items()]
    several = raw["endpoints"]["several"]["replicas"]
    for name, table, tables in (*found, ("rates", Rate, raw["rates"]), ("replicas", Place, several)):
        said = {key for each in tables for key in each}
        assert said - ELSEWHERE.get(table, set()) == keys_of(table), name
        assert {key: tables[0][key] for key in defaults(table)} == defaults(table), name


def test_every_key_of_the_configuration_reference_has_a_comment():
    explained = re.findall(r"^# .+\n(\w+) = ", CONFIGURATION.read_text(), re.MULTILINE)
    keys = [key for table in (*TABLES.values(), Rate, Place) for key in keys_of(table)]
    assert sorted(explained) == sorted([*keys, "state_dir"])


@pytest.mark.parametrize("path", [CONFIGURATION, ROOT / "freehold.toml"], ids=["reference", "demo"])
def test_the_configurations_shipped_load(path):
    assert load(path).endpoints


GUIDES = {
    "decide": (ROOT / "README.md").read_text().partition("## A tour")[0] + (ROOT / "docs" / "decide.md").read_text(),
    "scores": (ROOT / "docs" / "scores.md").read_text(),
}
FILES = {"toml": "freehold.toml", "csv": "house.csv"}


@pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
def test_a_guide_shows_what_its_commands_print(tmp_path, monkeypatch, guide):
    """Each toml or csv block is the file for what follows; `…` stands for anything; columns may be narrower."""
    monkeypatch.chdir(tmp_path)
    Path("freehold.toml").touch()
    for kind, text in re.findall(r"```(toml|csv|console)\n(.+?)```", guide, re.DOTALL):
        if kind in FILES:
            Path(FILES[kind]).write_text(text)
        elif "this machine  " not in text:
            for asked in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                shows_what_it_prints(*asked.splitlines())


def shows_what_it_prints(command: str, *shown: str) -> None:
    result = CliRunner().invoke(cli, shlex.split(command)[1:])
    assert isinstance(result.exception, FreeholdError | SystemExit | None), result.output
    error = result.exception if isinstance(result.exception, FreeholdError) else None
    assert shown or not error, f"{command}: {error}"
    said = f"{result.output}\nerror: {error}\n hint: {error.hint}" if error else result.output
    printed = [" ".join(line.split()) for line in said.splitlines()]
    for line in filter(None, shown):
        pattern = ".*".join(re.escape(" ".join(part.split())) for part in line.split("…"))
        assert any(re.search(pattern, each) for each in printed), f"{command}: {line}\n{said}"


def test_the_schema_printed_is_that_of_the_types():
    assert json.loads(CliRunner().invoke(cli, ["schema"]).stdout) == json.loads(
        msgspec.json.encode(msgspec.json.schema(Config))
    )


def test_the_readme_has_the_rooms_as_they_are():
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "tools" / "rooms.py")
    rooms = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rooms)
    readme = (ROOT / "README.md").read_text()
    assert readme == rooms.renewed(readme), "run tools/rooms.py"
    there = {p.stem for p in (ROOT / "src" / "freehold").iterdir() if p.is_dir() or p.suffix == ".py"}
    assert set(rooms.FLOORS) == {name for name in there if not name.startswith("__")}


LOCKS = ("requirements.lock", "requirements-test.lock")


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_names_packages_and_hashes_and_nothing_else(name):
    line = re.compile(r"[a-z0-9.-]+==[\w.]+( ; [\w .<>='!()]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
    assert [each for each in (ROOT / name).read_text().splitlines() if not line.fullmatch(each)] == []


def test_the_test_lock_is_the_lock_and_more():
    base, more = (set(re.findall(r"^\S+==\S+", (ROOT / name).read_text(), re.MULTILINE)) for name in LOCKS)
    assert base < more


def test_links_between_documents_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
