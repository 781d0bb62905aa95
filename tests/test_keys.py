"""Keys from their making to their end: what they may is kept, a secret is seen once and nowhere else."""

import asyncio
import contextlib
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trails import T0_NS, a_record

from freehold.errors import BadConfig, BadKey, BadRequest, FreeholdError, OverBudget, Unknown
from freehold.fleet.config import Allowance, Group, load
from freehold.fleet.ground import Ground
from freehold.gateway.keyring import Keyring
from freehold.gateway.rundir import own_folder
from freehold.ledger.book import Book
from freehold.types import Grant, Price, Tokens

SECOND_NS = 10**9
GROUPS = {"ward": Group(tokens_per_month=1000, residency=("DE",))}
LIMITS = Allowance(requests_per_minute=60, budget_per_day=0.5, residency=("germany",), networks=("10.0.0.0/8",))


class Desk:
    """A keyring on a real book, under a clock that a test moves."""

    def __init__(self, folder: Path) -> None:
        self.now_ns = T0_NS
        self.book = Book(folder)
        there = dict.fromkeys(("state", "run_dir", "log_dir"), folder)
        self.ground = Ground(executor=None, occupancy=None, book=self.book, clock_ns=lambda: self.now_ns, **there)
        self.news = asyncio.Queue()
        self.ground.listeners.add(self.news)
        self.keys = Keyring(self.ground, GROUPS)

    def told(self) -> list[tuple[str, dict]]:
        return [((event := self.news.get_nowait()).kind, event.detail) for _ in range(self.news.qsize())]

    def find(self, secret: str):
        return self.keys.find(f"Bearer {secret}".encode())

    def opens(self, secret: str) -> bool:
        with contextlib.suppress(BadKey):
            return bool(self.find(secret))
        return False

    def reserve(self, secret: str, tokens: int, pico: int = 0):
        return self.keys.accounts.terms(self.find(secret)).reserve(tokens, 0, pico, self.now_ns)


@contextlib.asynccontextmanager
async def desk_in(folder: Path):
    desk = Desk(folder)
    try:
        await desk.keys.load()
        yield desk
    finally:
        await desk.book.close()


async def test_what_a_key_may_outlives_the_daemon(tmp_path):
    async with desk_in(tmp_path) as desk:
        key, secret = await desk.keys.create("ada", ("d*",), None, "me", group="ward", grant=LIMITS.grant)
        more = {"residency": ("DE",), "networks": ("10.0.0.0/8",)}
        assert (key.group, key.grant) == ("ward", Grant(requests_per_minute=60, pico_per_day=5 * 10**11, **more))
        ((kind, detail),) = desk.told()
        assert (kind, detail["group"], detail["requests_per_minute"]) == ("key.created", "ward", 60)
        assert (detail["residency"], detail["networks"]) == ("DE", "10.0.0.0/8")
    async with desk_in(tmp_path) as desk:
        assert desk.find(secret) == key
        assert desk.keys.accounts.terms(key).rules == ((("DE",), ()),)


async def test_what_was_used_outlives_the_daemon(tmp_path):
    async with desk_in(tmp_path) as desk:
        key, secret = await desk.keys.create("ada", (), None, "me", group="ward", grant=Grant(pico_per_month=100))
        record = a_record(key=key.id, group="ward", prompt_tokens=600, completion_tokens=100, charge_pico=60)
        desk.book.settle_request(record)
        await desk.book.flush()
    async with desk_in(tmp_path) as desk:
        for tokens, pico in ((301, 0), (0, 41)):
            with pytest.raises(OverBudget):
                desk.reserve(secret, tokens, pico)
        desk.reserve(secret, 300, 40).settle(0, 0, desk.now_ns)
        await desk.keys.revoke("ada", "me")
        _, anew = await desk.keys.create("ada", (), None, "me", grant=Grant(tokens_per_month=750, pico_per_month=90))
        with pytest.raises(OverBudget):  # a name made anew goes on with what it has used
            desk.reserve(anew, 51)
        desk.reserve(anew, 50)


async def test_rotation_with_an_overlap(tmp_path):
    async with desk_in(tmp_path) as desk:
        ends_ns = T0_NS + 10**6 * SECOND_NS
        grant = Grant(requests_per_minute=2, tokens_per_day=100)
        old, first = await desk.keys.create("ada", ("d*",), ends_ns, "me", content_days=3, group="ward", grant=grant)
        desk.reserve(first, 60)
        new, second, until_ns = await desk.keys.rotate("ada", 3600 * SECOND_NS, "me")
        assert (new.name, new.endpoints, new.grant, new.group) == (old.name, old.endpoints, old.grant, old.group)
        assert (new.content_days, new.expires_ns, until_ns) == (3, ends_ns, T0_NS + 3600 * SECOND_NS)
        assert new.id != old.id
        assert desk.told()[-1] == ("key.rotated", {"name": "ada", "replaces": old.id, "overlap_s": 3600})
        with pytest.raises(OverBudget):  # they have one account
            desk.reserve(second, 41)
        desk.reserve(second, 40)
        with pytest.raises(FreeholdError, match="2 times a minute"):
            desk.reserve(first, 0)
        with pytest.raises(BadRequest, match="in use already"):
            await desk.keys.create("ada", (), None, "me")
        desk.now_ns = until_ns - 1
        assert (desk.opens(first), desk.opens(second)) == (True, True)
        desk.now_ns = until_ns
        assert (desk.opens(first), desk.opens(second)) == (False, True)
    async with desk_in(tmp_path) as desk:
        desk.now_ns = until_ns - 1
        assert (desk.opens(first), desk.opens(second)) == (True, True)
        _, third, _ = await desk.keys.rotate("ada", 0, "me", expires_ns=until_ns + 5)
        assert (desk.opens(first), desk.opens(second), desk.opens(third)) == (False, False, True)
        desk.now_ns = until_ns + 5
        assert not desk.opens(third)


async def test_a_second_rotation_does_not_lengthen_the_first_overlap(tmp_path):
    async with desk_in(tmp_path) as desk:
        _, first = await desk.keys.create("ada", (), None, "me")
        _, second, _ = await desk.keys.rotate("ada", 60 * SECOND_NS, "me")
        _, third, _ = await desk.keys.rotate("ada", 120 * SECOND_NS, "me")
        desk.now_ns += 60 * SECOND_NS
        assert [desk.opens(secret) for secret in (first, second, third)] == [False, True, True]
        await desk.keys.revoke("ada", "me")
        assert not any(map(desk.opens, (first, second, third)))
    async with desk_in(tmp_path) as desk:
        assert not any(map(desk.opens, (first, second, third)))
        with pytest.raises(Unknown):
            await desk.keys.rotate("ada", 0, "me")


async def test_revoked_while_it_is_rotated_leaves_nothing_alive(tmp_path):
    async with desk_in(tmp_path) as desk:
        _, first = await desk.keys.create("ada", (), None, "me")
        rotating = asyncio.create_task(desk.keys.rotate("ada", 60 * SECOND_NS, "me"))
        await asyncio.sleep(0)
        await desk.keys.revoke("ada", "me")
        _, second, _ = await rotating
        assert not desk.opens(first)
        assert not desk.opens(second)
    async with desk_in(tmp_path) as desk:
        assert not desk.opens(first)
        assert not desk.opens(second)


async def test_two_rotations_at_once_leave_the_last_key_without_an_end(tmp_path):
    async with desk_in(tmp_path) as desk:
        await desk.keys.create("ada", (), None, "op")
        (_, first, until_ns), (_, second, _) = await asyncio.gather(
            desk.keys.rotate("ada", 60 * SECOND_NS, "op"), desk.keys.rotate("ada", 3600 * SECOND_NS, "op")
        )
        assert [desk.find(secret).expires_ns for secret in (first, second)] == [desk.now_ns + 3600 * SECOND_NS, None]
        assert {key.id: key.expires_ns for key in desk.keys.list()} == {
            key.id: key.expires_ns for key in (await desk.book.keys()).values()
        }
        assert until_ns == desk.now_ns + 60 * SECOND_NS


async def test_what_was_under_way_before_there_was_a_budget_frees_nothing_of_it(tmp_path):
    """Revoked and made anew with a budget: the account is the same, but they reserved nothing of this."""
    async with desk_in(tmp_path) as desk:
        _, secret = await desk.keys.create("ada", (), None, "op", grant=Grant(parallel=5))
        under_way = desk.reserve(secret, 100)
        await desk.keys.revoke("ada", "op")
        desk.now_ns += 1
        key, secret = await desk.keys.create("ada", (), None, "op", grant=Grant(tokens_per_day=100))
        assert desk.reserve(secret, 90)
        under_way.settle(10, 0, desk.now_ns)
        (level,) = desk.keys.accounts.levels(key, desk.now_ns)
        assert (level.used, level.reserved, level.left) == (10, 90, 0)
        with pytest.raises(OverBudget):
            desk.reserve(secret, 1)


BUDGETS = Grant(tokens_per_day=10**9, pico_per_day=10**12, tokens_per_month=10**9, pico_per_month=10**12)
PRICE = Price(prompt_pico_per_token=3, completion_pico_per_token=7)
HAPPENINGS = ("open", "open", "note", "settle", "later", "hold", "rotate", "crash")


class Till:
    """A desk whose requests cost money, and which is killed now and then."""

    async def begin(self, folder: Path) -> None:
        self.folder, self.number, self.lives, self.under_way, self.go = folder, 0, 0, {}, None
        self.desk = Desk(own_folder(folder / "0"))
        await self.desk.keys.load()
        self.key, self.secret = await self.desk.keys.create("ada", (), None, "op", grant=BUDGETS)

    async def open(self, size):
        self.number += 1
        most = Tokens(prompt=100 * size, completion=50)
        tokens, pico = 100 * size + 50, PRICE.charge_pico(most)
        reserved = self.desk.reserve(self.secret, tokens, pico)
        record = a_record(f"r{self.number}", key=self.key.id, started_ns=self.desk.now_ns)
        record.held_tokens, record.held_pico = tokens, pico
        self.desk.book.open_request(record, lambda _: None, PRICE)
        self.under_way[self.number] = record, reserved, most.prompt

    async def note(self, size):
        for record, _, prompt in list(self.under_way.values())[:1]:
            self.desk.book.note_progress(record.request, Tokens(prompt=prompt, completion=size))

    async def settle(self, size):
        if self.under_way:
            record, reserved, prompt = self.under_way.pop(min(self.under_way))
            record.prompt_tokens, record.completion_tokens = prompt, 5 * size
            record.charge_pico = PRICE.charge_pico(Tokens(prompt=prompt, completion=5 * size))
            record.held_tokens = record.held_pico = 0
            reserved.settle(prompt + 5 * size, record.charge_pico, self.desk.now_ns)
            self.desk.book.settle_request(record, None, lambda _: None)

    async def later(self, size):
        self.desk.now_ns += size**3 * 3600 * SECOND_NS

    async def hold(self, _):
        """The book's thread stands still in the middle of a transaction until `go` is set."""
        if not self.go:
            there, self.go = threading.Event(), threading.Event()
            self.desk.book._writer.put(lambda _, go=self.go: (there.set(), go.wait()))
            await asyncio.to_thread(there.wait)

    async def rotate(self, _):
        if not self.go:
            await self.desk.book._rotate_now()

    async def crash(self, _):
        """What is spent and reserved before is what is spent after."""
        for _ in range(3):
            await asyncio.sleep(0)
        await self.hold(0)
        assert self.go
        old, before = self.desk, self.desk.keys.accounts.levels(self.key, self.desk.now_ns)
        self.lives, self.under_way = self.lives + 1, {}
        place = self.folder / str(self.lives)
        shutil.copytree(self.folder / str(self.lives - 1), place)  # as it lies there at this moment
        self.go.set()
        self.go = None
        await old.book.close()
        self.desk = Desk(place)
        self.desk.now_ns = old.now_ns
        await self.desk.keys.load()
        after = self.desk.keys.accounts.levels(self.key, old.now_ns)
        assert [(each.used + each.reserved, each.left) for each in before] == [(each.used, each.left) for each in after]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(HAPPENINGS), st.integers(0, 7)), max_size=25))
def test_a_crash_changes_nothing_of_what_is_spent_and_held(tmp_path_factory, steps):
    """Whatever is only in the journal, or in both, counts once; days and months turn in between."""

    async def run():
        till = Till()
        await till.begin(tmp_path_factory.mktemp("money"))
        for what, size in (*steps, ("crash", 0)):
            await getattr(till, what)(size)
        await till.desk.book.close()

    asyncio.run(run())


async def test_a_group_that_is_not_there(tmp_path):
    async with desk_in(tmp_path) as desk:
        with pytest.raises(BadRequest, match="no group `wards`") as refused:
            await desk.keys.create("ada", (), None, "me", group="wards")
        assert "ward" in refused.value.hint


@pytest.mark.parametrize(
    ("lines", "says", "hints"),
    [
        (
            "request_per_minute = 1",
            "unknown key `request_per_minute` in [groups.ward]",
            "did you mean `requests_per_minute`?",
        ),
        ("residency = ['Germny']", "[groups.ward]: no country 'Germny'", "DE (Germany)"),
        ("jurisdiction_not = ['XX']", "[groups.ward]: no country 'XX'", "ISO 3166"),
        ("networks = ['10.0.0.1/8']", "[groups.ward]: no network '10.0.0.1/8'", "10.0.0.0/8"),
        ("tokens_per_day = 0", "tokens_per_day", "docs/freehold.toml"),
        ("budget_per_day = -1", "budget_per_day", "docs/freehold.toml"),
        ("priority = 101", "priority", "docs/freehold.toml"),
    ],
)
def test_what_is_wrong_with_a_group_is_said(tmp_path, lines, says, hints):
    path = tmp_path / "freehold.toml"
    path.write_text(f"[groups.ward]\n{lines}")
    with pytest.raises(BadConfig) as refused:
        load(path)
    assert says in str(refused.value)
    assert hints in refused.value.hint


# with the daemon


def grouped(team) -> None:
    team.write(demo=team.fake("max_completion_tokens = 50"))
    with (team.folder / "freehold.toml").open("a") as file:
        file.write("\n[groups.ward]\nbudget_per_month = 1\nparallel = 5\n")
    team.serve()


def test_keys_with_limits_on_the_command_line(team):
    grouped(team)
    limits = ("--group", "ward", "--rpm", "2", "--tokens-day", "100000", "--residency", "DE", "--network", "10.0.0.0/8")
    team.run("keys", "create", "far", *limits)
    assert "requests/min, 100,000 tokens/day, in DE, from 10.0.0.0/8" in team.run("keys", "list")
    assert "no network" in team.run("keys", "create", "x", "--network", "10.0.0.1/8", code=2)
    assert "priority" in team.run("keys", "create", "x", "--priority", "1000", code=2)
    assert "no group" in team.run("keys", "create", "x", "--group", "wards", code=2)
    assert "never a key" in team.run("keys", "show", "nobody", code=2)

    secret = team.run("keys", "create", "ada", *limits[:4]).split()[0]
    answer = team.post("demo", key=secret)
    assert (answer.status, answer.getheader("x-ratelimit-limit-requests")) == (200, "2")
    assert (answer.getheader("x-ratelimit-remaining-requests"), answer.read() != b"") == ("1", True)
    made = json.loads(team.run("keys", "rotate", "ada", "--overlap", "1h", "--json"))
    assert team.post("demo", key=made["secret"]).status == 200
    late = team.post("demo", key=secret)
    assert (late.status, 0 < int(late.getheader("retry-after")) <= 30) == (429, True)
    assert json.loads(late.read())["error"]["param"] == "key.requests_per_minute"
    shown = team.run("keys", "show", "ada")
    assert shown.count("ada (") == 2
    (requests,) = [line.split() for line in shown.splitlines() if "requests_per_minute" in line]
    assert requests[2:6] == ["2", "2", "0", "0"]
    (budget,) = [line.split() for line in shown.splitlines() if "budget_per_month" in line]
    assert (budget[0], budget[2:4]) == ("group", ["EUR", "1"])
    assert team.post("demo", key=team.run("keys", "create", "bob", *limits[:2], *limits[-2:]).split()[0]).status == 403
    assert {event["detail"]["limit"] for event in team.events("limit.hit")} == {"key.requests_per_minute", "networks"}


def test_many_at_once_against_a_budget_for_ten(team):
    """Each may cost 5, and does; the budget is 50. It is as spent after a crash as before."""
    demo = (
        team.fake()
        .replace("prompt_price = 1", "prompt_price = 0")
        .replace("completion_price = 2", "completion_price = 1e6")
    )
    team.write(demo=demo)
    team.serve()
    secret = team.run("keys", "create", "ada", "--budget-month", "50").split()[0]
    with ThreadPoolExecutor(40) as callers:
        asked = [callers.submit(team.post, "demo", "@@n=5,us=2000", key=secret, max_tokens=5) for _ in range(40)]
    answers = [(each.result().status, json.loads(each.result().read())) for each in asked]
    assert sorted(status for status, _ in answers) == [200] * 10 + [429] * 30
    assert {body["error"]["code"] for status, body in answers if status == 429} == {"insufficient_quota"}
    assert sum(row["charge_pico"] for row in team.records()) == 50 * 10**12
    team.kill()
    team.serve()
    assert team.post("demo", "@@n=5", key=secret, max_tokens=5).status == 429


async def test_a_thousand_at_once_against_a_budget_for_ten_as_openais_client_sees_it(team):
    demo = team.fake().replace("completion_price = 2", "completion_price = 1e6")
    team.write(demo=demo.replace("prompt_price = 1", "prompt_price = 0"))
    team.serve()
    secret = team.run("keys", "create", "ada", "--budget-day", "50").split()[0]
    refused = []

    async def ask(client):
        try:
            asked = [{"role": "user", "content": "@@n=5,us=2000"}]
            answer = await client.chat.completions.create(model="demo", max_tokens=5, messages=asked)
        except openai.RateLimitError as error:
            refused.append(error)
            return 0
        return answer.usage.completion_tokens

    async with openai.AsyncOpenAI(base_url=team.url, api_key=secret, max_retries=0, timeout=60) as client:
        used = await asyncio.gather(*(ask(client) for _ in range(1000)))
    assert (sum(used), len(refused)) == (50, 990)
    assert {(error.code, error.type, error.param) for error in refused} == {
        ("insufficient_quota", "insufficient_quota", "key.budget_per_day")
    }
    assert all(0 < int(error.response.headers["retry-after"]) <= 86_400 for error in refused)
    assert sum(row["charge_pico"] for row in team.records()) == 50 * 10**12


async def test_openais_client_comes_again_when_it_is_told_to(team):
    team.write(demo=team.fake())
    team.serve()
    secret = team.run("keys", "create", "ada", "--rpm", "60").split()[0]
    async with openai.AsyncOpenAI(base_url=team.url, api_key=secret, max_retries=0) as client:
        asked = {"model": "demo", "messages": [{"role": "user", "content": "@@n=1"}]}
        said = await asyncio.gather(
            *(client.chat.completions.create(**asked) for _ in range(64)), return_exceptions=True
        )
        refused = [error for error in said if isinstance(error, openai.RateLimitError)]
        assert len(refused) >= 1
        assert {(error.code, error.response.headers["retry-after"]) for error in refused} == {
            ("rate_limit_exceeded", "1")
        }
        began_s = time.monotonic()
        await client.with_options(max_retries=1).chat.completions.create(**asked)
        assert 0.5 < time.monotonic() - began_s < 10


def test_a_secret_is_shown_once_and_is_nowhere_else(team):
    grouped(team)
    secrets = [team.run("keys", "create", "ada", "--group", "ward").split()[0]]
    secrets.append(json.loads(team.run("keys", "rotate", "ada", "--json"))["secret"])
    unknown = f"{secrets[0][:-3]}xyz"
    assert {team.post("demo", key=key).read() != b"" for key in secrets} == {True}
    said = [team.post("demo", key=unknown).read(), team.post("no-such-model", key=secrets[0]).read()]
    said += [
        team.run(*words).encode() for words in (("keys", "list", "--all"), ("keys", "show", "ada"), ("audit", "log"))
    ]
    processes = [Path(f"/proc/{pid}") for pid in _family(team.process.pid)]
    assert len(processes) > 1  # the engine's too
    for process in processes:
        said.append((process / "cmdline").read_bytes())
        with contextlib.suppress(PermissionError):  # of who changed its rights, but by root
            said.append((process / "environ").read_bytes())
    team.end()
    said += [path.read_bytes() for path in team.folder.rglob("*") if path.is_file()]
    assert len(said) > 10
    for secret in (*secrets, unknown):
        random = secret.removeprefix("fh-").encode()
        assert not [text for text in said if random in text]


def _family(pid: int) -> list[int]:
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [pid, *(each for child in children for each in _family(child))]
