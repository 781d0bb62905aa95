"""Whether policy lets an endpoint be served: ruled once, from facts and rules; asked at each start and each request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from urllib.parse import urlsplit

from msgspec.structs import replace

from freehold.catalogue import Catalogue, load, match
from freehold.catalogue.own import merge
from freehold.catalogue.places import operator
from freehold.errors import BadConfig, Refused, Unknown
from freehold.facts import Model, Provider
from freehold.fleet.checks import LOOPBACK
from freehold.fleet.config import Config, Endpoint
from freehold.fleet.ground import Ground
from freehold.policy import law
from freehold.types import Objection, Ruling

_NEVER_NS = 1 << 63
_LAST_DAY = date.max - timedelta(days=1)  # the day after must be one


# What each of several rules asks of a replica: countries it must be in, laws its operator must not be under.
PlaceRules = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
Site = tuple[str, Provider | None]  # where a replica stands, and who runs it


class Permission:
    """The ruling on one endpoint, and that on the day after an acceptance it rests on has ended."""

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        rule: Callable[[str], Ruling],
        ground: Ground,
        digests: tuple[str, ...],
        *,
        sites: Sequence[Site] = (),
        rules: law.Rules | None = None,
    ) -> None:
        """`digests`: of the files that are the endpoint's model; (): nobody says. `sites`: of its replicas."""
        self.digests = digests
        self._sites, self._rules = sites, rules or law.Rules()
        self._name, self._endpoint, self._ground = name, endpoint, ground
        self._ruling = self._after = rule(_day(ground.clock_ns()))
        self._ends_ns = _NEVER_NS
        self._told = False
        if self._ruling.until:
            after = min(date.fromisoformat(self._ruling.until), _LAST_DAY) + timedelta(days=1)
            self._ends_ns = int(datetime.combine(after, time(), UTC).timestamp()) * 10**9
            self._after = rule(after.isoformat())

    def refusal(self, now_ns: int) -> Refused | None:
        """Why it may not be asked now, or None. It is on every request's way: a comparison. The first no is told."""
        ruling = self._ruling if now_ns < self._ends_ns else self._after
        if not ruling.objections:
            return None
        error = Refused(
            f"policy refuses `{self._name}`: {'; '.join(map(law.in_words, ruling.objections))}",
            hint="; ".join(dict.fromkeys(each.hint for each in ruling.objections if each.hint)),
            param="model",
        )
        if not self._told:
            self._told = True
            rules = ", ".join(dict.fromkeys(each.rule for each in ruling.objections))
            self._ground.tell("policy.refused", self._name, rules=rules, reason=str(error), model=self._endpoint.model)
        return error

    def objections(self, replica: int, asked: PlaceRules) -> list[Objection]:
        """Why this replica is not where policy, and whoever asks, allow; none where it is."""
        each = (replace(self._rules, residency=countries, jurisdiction_not=laws) for countries, laws in asked)
        rulings = [law.judge_place(*self._sites[replica], rules) for rules in (self._rules, *each)]
        return [objection for ruling in rulings for objection in ruling.objections]

    def require(self) -> None:
        """At each start: raises Refused, or says in the book what allows it and what it obliges to."""
        now_ns = self._ground.clock_ns()
        self._told = False
        if error := self.refusal(now_ns):
            raise error
        ruling = self._ruling if now_ns < self._ends_ns else self._after
        if self._endpoint.model:
            self._ground.tell(
                "policy.allowed", self._name, model=self._endpoint.model, accepted=ruling.accepted or None,
                until=ruling.until or None, duties="\n".join(ruling.duties) or None,
            )  # fmt: skip


def permissions(config: Config, ground: Ground) -> dict[str, Permission]:
    """One for each endpoint. Raises BadConfig for a model that the catalogue does not know."""
    asked = config.machine.operator or any(
        each.model or any(place.operator for place in each.places) for each in config.endpoints.values()
    )
    catalogue = merge(load(), config.models, config.offers, config.rates) if asked else Catalogue()
    made = {}
    for name, endpoint in config.endpoints.items():
        digests = _model(name, endpoint.model, catalogue).digests if endpoint.model else ()
        sites, rules = _sites(name, config, catalogue), replace(config.policy, unreviewed="refuse")
        rule = partial(_rule, name, config, catalogue, sites)
        made[name] = Permission(name, endpoint, rule, ground, digests, sites=sites, rules=rules)
    return made


def _rule(name: str, config: Config, catalogue: Catalogue, sites: Sequence[Site], today: str) -> Ruling:
    """The model's ruling, and that on a place where it may be served: any one of its replicas'."""
    endpoint, rules = config.endpoints[name], replace(config.policy, unreviewed="refuse")
    if not endpoint.model:
        of_model = law.unnamed_model() if config.policy.asks_for_model else Ruling()
    else:
        model, licences = _model(name, endpoint.model, catalogue), {each.id: each for each in catalogue.licences}
        of_model = law.judge_model(model, law.licence_of(model, licences), rules, today)
    places = [law.judge_place(*site, rules) for site in sites]
    return law.join(of_model, next((place for place in places if place.allowed), places[0]))


def _model(name: str, text: str, catalogue: Catalogue) -> Model:
    """By its own name only: a copy may have the same dimensions, and another licence."""
    where = f"[endpoints.{name}] model"
    try:
        found = match(catalogue, text)
    except Unknown as error:
        raise BadConfig(f"{where}: {error}", hint=error.hint) from None
    if not found.exact:
        raise BadConfig(f"{where}: the catalogue has no {text!r}", hint=f"if that is what it is: {found.model.id}")
    return found.model


def _sites(name: str, config: Config, catalogue: Catalogue) -> list[Site]:
    """Where each replica's machine stands, and who runs it. Of another machine than this, only what was said."""
    endpoint = config.endpoints[name]
    sites: list[Site] = []
    for place in endpoint.places:
        here = endpoint.engine != "external" or _is_here(place.url)
        country = place.country or (config.machine.country if here else "")
        run_by = config.machine.operator if here and place.operator is None else place.operator
        if run_by is None:
            sites.append((country, Provider(id="", name=f"whoever runs `{name}`")))  # its url is not for callers
        else:
            sites.append((country, operator(catalogue, run_by)))
    return sites


def _is_here(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "unix" or parts.hostname in LOOPBACK


def _day(now_ns: int) -> str:
    return datetime.fromtimestamp(now_ns / 1e9, UTC).date().isoformat()
