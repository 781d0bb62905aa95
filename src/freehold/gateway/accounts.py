"""What each key may use, and its group with it: reserved before an engine is asked, settled after.

One owner, the event loop: between looking and taking nothing else runs, so no two requests get the same last token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from freehold.errors import Forbidden
from freehold.fleet.config import Group
from freehold.fleet.permission import PlaceRules
from freehold.policy.access import from_network, matches, out_of_scope
from freehold.policy.limits import Account, Bucket, Level, Reservation
from freehold.types import Grant, Key, Spent

Scope = tuple[str, ...]  # globs of endpoints
Hit = Callable[[str, str, str], None]  # which limit, a key's id, an endpoint


class _Gauge(NamedTuple):
    """A limit that answers tell of, with what of their headers is always the same."""

    bucket: Bucket
    limit: tuple[bytes, bytes]
    remaining: bytes
    reset: bytes


class Terms:
    """What holds for one key, its group's terms included."""

    def __init__(
        self, key: Key, scopes: Sequence[Scope], grants: Sequence[Grant], accounts: Sequence[Account], hit: Hit
    ) -> None:
        """`scopes`, `grants` and `accounts`: the key's, then those of its group, if it has one."""
        asked = ((grant.residency, grant.jurisdiction_not) for grant in grants)
        self.rules: PlaceRules = tuple(dict.fromkeys(rule for rule in asked if any(rule)))  # each of them holds
        self.policy = _in_words(self.rules)
        self.priority = key.grant.priority or grants[-1].priority  # its own where it says one
        self.accounts = tuple(account for account in accounts if account.limited)
        self.budgeted = any(account.budgeted for account in accounts)  # what a request costs at most must be known
        self._key, self._scopes, self._hit = key, scopes, hit
        self._may: set[str] = set()  # endpoints, as far as somebody asked for them
        self._networks = tuple(grant.networks for grant in grants if grant.networks)
        gauges = _gauges(b"requests", [a.requests for a in accounts]), _gauges(b"tokens", [a.tokens for a in accounts])
        self._gauges = tuple(filter(None, gauges))

    # who may

    def require_address(self, address: str) -> None:
        """Raises Forbidden when the key is not for callers from there."""
        for networks in self._networks:
            if not from_network(networks, address):
                self._hit("networks", self._key.id, "")
                hint = "call from one of its networks: freehold keys show NAME tells its operator which"
                raise Forbidden(f"the key `{self._key.name}` is not for callers from {address or 'there'}", hint=hint)

    def require_endpoint(self, endpoint: str) -> None:
        """Raises Forbidden when the key, or its group, is not for this endpoint, which there is."""
        if endpoint in self._may:
            return
        for scope in self._scopes:
            if not matches(scope, endpoint):
                raise out_of_scope(self._key, endpoint, scope)
        self._may.add(endpoint)

    def may_use(self, endpoint: str) -> bool:
        return all(matches(scope, endpoint) for scope in self._scopes)

    # how much

    def reserve(self, tokens: int, rate_tokens: int, pico: int, now_ns: int, endpoint: str = "") -> Reservation | None:
        """Take this from all limits of the key and its group, or from none of them. None: there are none.

        `tokens` and `pico` are what it may use at most, and budgets go by them; `rate_tokens` what it probably will,
        for the limit in a minute. Raises LimitHit, OverBudget.
        """
        accounts = self.accounts
        if not accounts:
            return None
        asked = Reservation(accounts, tokens, rate_tokens, pico, now_ns)
        for account in accounts:
            if error := account.refusal(asked):
                self._hit(error.param or "", self._key.id, endpoint)
                raise error
        for account in accounts:
            account.take(asked)
        return asked

    def headers(self, now_ns: int) -> list[tuple[bytes, bytes]]:
        """OpenAI's x-ratelimit-*, of the key or of its group: of the one that has less left."""
        told: list[tuple[bytes, bytes]] = []
        for gauges in self._gauges:
            gauge = gauges[0] if len(gauges) == 1 else min(gauges, key=lambda each: each.bucket.left(now_ns))
            left, whole_in_ns = gauge.bucket.left(now_ns)
            remaining = b"%d" % left if left > 0 else b"0"
            told += gauge.limit, (gauge.remaining, remaining), (gauge.reset, _span(whole_in_ns))
        return told

    def levels(self, now_ns: int) -> list[Level]:
        """How each limit of the key and of its group stands."""
        return [level for account in self.accounts for level in account.levels(now_ns)]


class Accounts:
    """Limits in a minute begin full with each daemon; days and months go on where the book says they stood."""

    def __init__(
        self,
        groups: Mapping[str, Group],
        keys: Iterable[Key] = (),
        spent: Iterable[Spent] = (),
        *,
        now_ns: int,
        hit: Hit = lambda *_: None,
    ) -> None:
        """`keys` in the order in which they were made. `hit` is told of every refusal."""
        self._groups = {name: (group, group.grant) for name, group in groups.items()}
        self._hit = hit
        self._of_groups = {name: Account("group", name) for name in groups}
        self._of_keys: dict[str, Account] = {}  # by the key's name
        self._terms: dict[str, Terms] = {}  # by the key's id
        keys, spent = list(keys), list(spent)
        names, rows = {key.id: key.name for key in keys}, {}
        for row in spent:
            rows.setdefault(names.get(row.key), []).append(row)
        for name, account in self._of_groups.items():
            account.grant(self._groups[name][1], [row for row in spent if row.group == name], now_ns)
        for key in keys:
            self.add(key, rows.get(key.name, ()), now_ns=now_ns)

    def add(self, key: Key, spent: Iterable[Spent] = (), *, now_ns: int) -> None:
        """A key is there now, with what all keys of its name have used.

        Keys of one name have one account: the one that takes another's place, and one made anew after its end.
        """
        own = self._of_keys.setdefault(key.name, Account("key", key.name))
        own.grant(key.grant, spent, now_ns)
        accounts, scopes, grants = [own], [key.endpoints], [key.grant]
        if key.group:
            if key.group not in self._groups:
                return  # nobody knows its limits any more: it opens nothing
            group, grant = self._groups[key.group]
            accounts.append(self._of_groups[key.group])
            scopes.append(group.endpoints)
            grants.append(grant)
        self._terms[key.id] = Terms(key, scopes, grants, accounts, self._hit)

    def levels(self, key: Key, now_ns: int) -> list[Level]:
        """How each limit of the key and of its group stands; none when its group is gone."""
        terms = self._terms.get(key.id)
        return terms.levels(now_ns) if terms else []

    def terms(self, key: Key) -> Terms:
        """Raises Forbidden for a key whose group is gone."""
        try:
            return self._terms[key.id]
        except KeyError:
            raise Forbidden(
                f"the key `{key.name}` is of the group `{key.group}`, which is not there any more",
                hint=f"put [groups.{key.group}] back into freehold.toml, or make another key",
            ) from None


def _in_words(rules: PlaceRules) -> str:
    """For records: the rules on place."""
    said = []
    for countries, laws in rules:
        said += [f"in {' '.join(countries)}"] if countries else []
        said += [f"not under {' '.join(laws)}"] if laws else []
    return "; ".join(said)


def _gauges(of: bytes, buckets: Iterable[Bucket | None]) -> tuple[_Gauge, ...]:
    limit, remaining, reset = (b"x-ratelimit-%b-%b" % (what, of) for what in (b"limit", b"remaining", b"reset"))
    return tuple(_Gauge(bucket, (limit, b"%d" % bucket.limit), remaining, reset) for bucket in buckets if bucket)


def _span(span_ns: int) -> bytes:
    """A time as OpenAI writes it: 12ms, 1s, 6m0s. Rounded up."""
    if span_ns <= 999 * 10**6:
        return b"%dms" % -(-span_ns // 10**6)
    seconds = -(-span_ns // 10**9)
    return b"%ds" % seconds if seconds < 60 else b"%dm%ds" % divmod(seconds, 60)
