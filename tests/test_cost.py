"""What a machine costs and who used it: a simulated day through the real account, book and command line; and any other
sequence of starts, requests and stops, against an account kept in fractions."""

import heapq
import json
import random
from collections import Counter, defaultdict
from fractions import Fraction
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from freehold.fleet.occupancy import Occupancy
from freehold.ledger.book import Book
from freehold.policy.price import NS_PER_HOUR, machine_pico
from freehold.types import Price, Tokens, UsageRecord

SECOND_NS = 10**9
BEGAN_NS = 1_794_000_123_456_789_012  # not on a full hour
PRICE = Price(prompt_pico_per_token=300_000, completion_pico_per_token=1_200_000)


class Day:
    """A machine's day in simulated time: `at` plans what happens, `run` lets it happen and keeps the book."""

    def __init__(self, book: Book, began_ns: int, pico_per_hour: int, chance: random.Random) -> None:
        self.book, self.chance, self.now_ns = book, chance, began_ns
        self.account = Occupancy("local", "EUR", pico_per_hour, began_ns)
        self.records: list[UsageRecord] = []
        self._agenda: list = []
        self._number = count()

    def at(self, after_s: float, do, *args) -> None:
        heapq.heappush(self._agenda, (self.now_ns + round(after_s * SECOND_NS), next(self._number), do, args))

    def run(self, until_ns: int) -> None:
        while self._agenda and self._agenda[0][0] <= until_ns:
            self.now_ns, _, do, args = heapq.heappop(self._agenda)
            do(*args)
        self.now_ns = until_ns
        self.save()

    def save(self, every_s: float = 0) -> None:
        self.book.save_occupancy(*self.account.take(self.now_ns))
        if every_s:
            self.at(every_s, self.save, every_s)

    def enter(self, endpoint: str, phase: str | None) -> None:
        self.account.enter(endpoint, phase, self.now_ns)

    def use(self, endpoint: str, after_s: float, requests: int) -> None:
        """From cold: a start, requests that overlap, an hour of idleness, a stop."""
        ready_s = after_s + self.chance.uniform(2, 90)
        self.at(after_s, self.enter, endpoint, "starting")
        self.at(ready_s, self.enter, endpoint, "idle")
        last_s = ready_s
        for _ in range(requests):
            begins_s, lasts_s = ready_s + self.chance.expovariate(1 / 600), self.chance.uniform(0.05, 120)
            last_s = max(last_s, begins_s + lasts_s)
            self.at(begins_s, self.ask, endpoint, lasts_s)
        self.at(last_s + 3600, self.enter, endpoint, "stopping")
        self.at(last_s + 3601.5, self.enter, endpoint, None)

    def ask(self, endpoint: str, lasts_s: float) -> None:
        request = f"{endpoint}-{next(self._number)}-{self.now_ns}"
        record = UsageRecord(
            request=request, key="k", endpoint=endpoint, kind="chat", stream=True, started_ns=self.now_ns
        )
        self.book.open_request(record)
        self.at(lasts_s, self.answer, record, self.account.hold(endpoint, self.now_ns))

    def answer(self, record: UsageRecord, mark: float) -> None:
        tokens = Tokens(prompt=self.chance.randrange(1, 4000), completion=self.chance.randrange(1, 900))
        asked = {name: getattr(record, name) for name in ("request", "key", "endpoint", "kind", "stream", "started_ns")}
        self.records.append(
            UsageRecord(
                **asked,
                outcome="ok",
                prompt_tokens=tokens.prompt,
                completion_tokens=tokens.completion,
                charge_pico=PRICE.charge_pico(tokens),
                machine_pico=self.account.release(record.endpoint, mark, self.now_ns),
            )
        )
        self.book.settle_request(self.records[-1])


async def test_a_day_adds_up(team):
    """Two daemons one after the other, at two prices, with half an hour in between that nobody pays for."""
    team.write(demo=team.fake())
    team.state.mkdir()
    chance = random.Random(7)
    book = Book(team.state)
    prices = (int(2.49 * 10**12), 3_333_333_333_333)  # an hour; the second divides by nothing
    half_ns = 12 * 3600 * SECOND_NS
    days = []
    for number, price in enumerate(prices):
        day = Day(book, BEGAN_NS + number * (half_ns + 1800 * SECOND_NS), price, chance)
        day.at(5, day.save, 300)
        for endpoint in ("small", "large", "night"):
            for after_s in (chance.uniform(0, 3 * 3600), chance.uniform(7 * 3600, 8 * 3600)):
                day.use(endpoint, after_s, requests=60)
        day.run(day.now_ns + half_ns - number)
        days.append(day)
    await book.close()

    found = json.loads(team.run("usage", "--cost", "--json"))
    assert found["difference_pico"] == 0
    host_pico = sum(Fraction(price * (half_ns - number), NS_PER_HOUR) for number, price in enumerate(prices))
    assert found["machine_pico"] == found["occupied_pico"] == sum(row["pico"] for row in found["occupancy"])
    assert 0 <= host_pico - found["machine_pico"] < len(prices)  # each tenure is rounded down once, to the pico
    assert sum(row["lasted_ns"] for row in found["occupancy"]) == 2 * half_ns - 1
    phases = {(row["endpoint"], row["phase"]) for row in found["occupancy"]}
    every = {
        (name, phase) for name in ("small", "large", "night") for phase in ("starting", "serving", "idle", "stopping")
    }
    assert phases == every | {("", "vacant")}

    records = [record for day in days for record in day.records]
    assert len(records) == sum(row["requests"] for row in found["endpoints"]) == 720
    assert found["charged_pico"] == sum(record.charge_pico for record in records)
    for name in ("small", "large", "night"):
        shares = sum(record.machine_pico for record in records if record.endpoint == name)
        serving = next(
            row["pico"] for row in found["occupancy"] if (row["endpoint"], row["phase"]) == (name, "serving")
        )
        assert abs(shares - serving) <= len(records)

    said = team.run("usage", "--cost")
    assert "difference       EUR 0.000000" in said
    assert f"{(2 * half_ns - 1) / SECOND_NS:,.3f} host-seconds at EUR 2.490000 and EUR 3.333333 an hour" in said
    assert "vacant" in said
    rows = team.run("usage", "--cost", "--csv").splitlines()
    assert rows[0] == "endpoint,phase,lasted_ns,pico"
    assert sum(int(row.rsplit(",", 1)[1]) for row in rows[1:]) == found["machine_pico"]


class Both:
    """The account, and the same one kept the slow way and without rounding."""

    def __init__(self, pico_per_hour: int) -> None:
        self.now_ns = BEGAN_NS
        self.account = Occupancy("local", "EUR", pico_per_hour, BEGAN_NS)
        self.marks: dict[str, list[float]] = {name: [] for name in "abc"}
        self.shares: Counter[str] = Counter()
        self.rows: list[tuple] = []
        self._pico_per_ns = Fraction(pico_per_hour, NS_PER_HOUR)
        self._phases: dict[str, str] = {}
        self.costs: dict[tuple[str, str], Fraction] = defaultdict(Fraction)

    def pass_time(self, lasted_ns: int) -> None:
        self.now_ns += lasted_ns
        here = list(self._phases.items()) or [("", "vacant")]
        for each in here:
            self.costs[each] += self._pico_per_ns * lasted_ns / len(here)

    def enter(self, name: str, phase: str | None = None) -> None:
        self.account.enter(name, phase, self.now_ns)
        if phase is None:
            self._phases.pop(name, None)
        else:
            self._phases[name] = phase

    def hold(self, name: str) -> None:
        self.marks[name].append(self.account.hold(name, self.now_ns))
        self._phases[name] = "serving"

    def release(self, name: str) -> None:
        if self.marks[name]:
            self.shares[name] += self.account.release(name, self.marks[name].pop(), self.now_ns)
            if not self.marks[name] and self._phases.get(name) == "serving":
                self._phases[name] = "idle"

    def take(self, _: str = "") -> tuple:
        tenure, rows = self.account.take(self.now_ns)
        self.rows += rows
        return tenure


PHASES = st.sampled_from(["starting", "idle", "stopping", None])
STEPS = st.tuples(
    st.integers(0, 3 * NS_PER_HOUR) | st.integers(0, 1000),  # nanoseconds that pass before it
    st.sampled_from("abc"),
    st.tuples(st.just("enter"), PHASES) | st.sampled_from([("hold",), ("release",), ("take",)]),
)


@given(st.lists(STEPS, max_size=40), st.integers(0, 10**13))
def test_any_sequence_adds_up(steps, pico_per_hour):
    both = Both(pico_per_hour)
    for lasted_ns, name, (what, *phase) in steps:
        both.pass_time(lasted_ns)
        getattr(both, what)(name, *phase)
    for name, held in both.marks.items():
        while held:
            both.release(name)
    tenure = both.take()

    elapsed_ns = both.now_ns - BEGAN_NS
    assert tenure[-1] == elapsed_ns
    assert sum(lasted_ns for *_, lasted_ns, _ in both.rows) == elapsed_ns
    assert sum(pico for *_, pico in both.rows) == machine_pico(pico_per_hour, elapsed_ns)
    assert all(hour_ns % NS_PER_HOUR == 0 and lasted_ns <= NS_PER_HOUR for *_, hour_ns, lasted_ns, _ in both.rows)

    costs: Counter[tuple[str, str]] = Counter()
    for _, endpoint, phase, _, _, pico in both.rows:
        costs[endpoint, phase] += pico
    roundings = 2 * (len(steps) + elapsed_ns // NS_PER_HOUR + 1)  # time is cut by steps and by full hours
    for what in {*costs, *both.costs}:
        assert abs(costs[what] - both.costs[what]) <= roundings
    for name in "abc":
        assert abs(both.shares[name] - costs[name, "serving"]) <= len(steps) + 1
