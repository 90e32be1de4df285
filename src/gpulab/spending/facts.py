"""From facts to a timeline. Hides who is believed about an end and where a price comes from; collects what does not fit."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import NamedTuple

from gpulab.model.discrepancy import Discrepancy, DiscrepancyKind
from gpulab.model.fact import LINUX, Fact, FactKind, Source, root_disk_of
from gpulab.model.market import Market
from gpulab.model.moment import read_moment
from gpulab.model.statement import Category, StatementRead
from gpulab.model.timeline import (
    NO_PRICES,
    EndedBy,
    InstanceLife,
    PriceSeries,
    Run,
    Timeline,
    VolumeLife,
)

_BELIEVED = {Source.AWS: 0, Source.AGENT: 1, Source.LAPTOP: 2}
_SEEN_TO_BEGIN = {Source.AWS: 0, Source.LAPTOP: 1, Source.AGENT: 2}
_MARKETS = {market.value: market for market in Market}
_ENDERS = {by.value: by for by in EndedBy}

# EC2 writes a point for every place about daily (p2 and p3, December 2019 to March 2020: 99 % within 24.1 h), so an older
# one at a launch means that nobody was looking.
_STALE = timedelta(days=2)

# Exact sums can be made of these; a slip such as 1E+999999 has a million digits.
_USUAL = range(-40, 15)
_LONGEST_AMOUNT = 60
_MOST_DIGITS = 15
_LONGEST_USE_S = 10 * 366 * 86400

# EC2 takes seconds from the launch to running. Who sees it running only later than this, looked late (the network was away), or at
# a restart; what was billed began earlier, and the launch time is the nearer one of the two.
_BOOTS_WITHIN = timedelta(minutes=2)

# An end that was foreseen and did not come: the agent tells that it has run on for longer than an end may take.
_ENDS_WITHIN = timedelta(minutes=2)

# A disk that was seen to go so much later than its instance was not seen to go, but to be gone.
_DISK_GOES_WITHIN = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class LaunchRecord:
    """
    What is known of a launched instance besides its costs.

    Attributes:
        owner: Empty when the account is one person's own.
        gpus: `None` when nobody wrote it down.
        on_demand_usd_per_hour: The same type on demand at launch; `None` when unknown.
        expires_at: Its planned end, as it was moved last; `None` when unknown.
    """

    instance_id: str
    launch_id: str
    name: str
    owner: str
    course: str
    lab: str
    zone: str
    instance_type: str
    market: Market
    launched_at: datetime
    gpus: int | None = None
    on_demand_usd_per_hour: Decimal | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """
    One attempt to have an instance launched at one place; it costs nothing by itself.

    Attributes:
        instance_id: What came of it; empty when nothing did.
    """

    token: str
    launch_id: str
    at: datetime
    zone: str
    instance_type: str
    instance_id: str = ""


class Usage(NamedTuple):
    """How an instance was used over a span; see `model.fact.usage`."""

    instance_id: str
    begins_at: datetime
    seconds: int
    idle_seconds: int

    @property
    def until(self) -> datetime:
        """Its end; a span that no instance lives is cut."""
        return self.begins_at + timedelta(seconds=min(self.seconds, _LONGEST_USE_S))


@dataclass(frozen=True)
class LedgerReading:
    """
    All that a ledger's facts say.

    Attributes:
        launches: By instance id.
        asked: Attempts, by the moment at which they were written down.
        statements: AWS's own, by the moment at which they were read first.
        usage: Spans as the agents wrote them.
        problems: What does not fit together; the timeline has everything else.
    """

    timeline: Timeline = field(default_factory=Timeline)
    launches: Mapping[str, LaunchRecord] = field(default_factory=dict)
    asked: tuple[Asked, ...] = ()
    statements: tuple[StatementRead, ...] = ()
    usage: tuple[Usage, ...] = ()
    problems: tuple[Discrepancy, ...] = ()


def timeline_of(facts: Iterable[Fact]) -> LedgerReading:
    """
    Read facts, in any order, into a timeline.

    An end that several sources saw is one end: AWS's word counts before the instance's, and that before the laptop's.
    A spot run is priced by the price facts of its zone and type; where they begin too late, by the price of its launch.
    """
    return _Reader(facts).read()


class _Reader:
    def __init__(self, facts: Iterable[Fact]) -> None:
        self._problems: list[Discrepancy] = []
        self._by_kind: dict[FactKind, dict[str, list[Fact]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for fact in facts:
            self._by_kind[fact.kind][fact.subject].append(fact)
        self._spans = {key: self._usage(key, said) for key, said in self._of(FactKind.USAGE)}

    def read(self) -> LedgerReading:
        series = self._price_series()
        launches = {key: self._launch(key, facts) for key, facts in self._of(FactKind.LAUNCHED)}
        known = {key: launch for key, launch in launches.items() if launch is not None}
        instances = {key: self._instance(launch, series) for key, launch in known.items()}
        self._name_unlaunched(known)
        timeline = Timeline(
            tuple(instances.values()),
            tuple(self._volumes(instances)),
        )
        return LedgerReading(
            timeline,
            known,
            asked=self._asked(known),
            statements=self._statements(),
            usage=tuple(span for spans in self._spans.values() for span in spans),
            problems=tuple(self._problems),
        )

    def _of(self, kind: FactKind) -> Iterable[tuple[str, list[Fact]]]:
        return self._by_kind[kind].items()

    def _facts(self, kind: FactKind, subject: str) -> list[Fact]:
        return self._by_kind[kind].get(subject, [])

    def _complain(self, kind: DiscrepancyKind, subject: str, cause: str) -> None:
        self._problems.append(Discrepancy(kind, subject, cause))

    def _price_series(self) -> dict[str, PriceSeries]:
        found = {}
        for place, facts in self._of(FactKind.PRICE):
            points: dict[datetime, Decimal] = {}
            for fact in facts:
                usd = self._decimal(fact, "usd_per_hour")
                if usd is not None:
                    points[fact.at] = max(usd, points.get(fact.at, usd))
            at = tuple(sorted(points))
            found[place] = PriceSeries(at, tuple(points[moment] for moment in at))
        return found

    def _launch(self, instance_id: str, facts: list[Fact]) -> LaunchRecord | None:
        best = _most_believed(facts)
        said = _merged_details(facts, _seen_to_begin)
        try:
            market = _MARKETS[said["market"]]
            zone, instance_type = said["zone"], said["instance_type"]
        except KeyError:
            self._unreadable(best)
            return None
        return LaunchRecord(
            instance_id=instance_id,
            launch_id=said.get("launch_id", ""),
            name=said.get("name", ""),
            owner=said.get("owner", ""),
            course=said.get("course", ""),
            lab=said.get("lab", ""),
            zone=zone,
            instance_type=instance_type,
            market=market,
            launched_at=self._launched_at(instance_id, facts),
            gpus=_whole(said.get("gpus", "")),
            on_demand_usd_per_hour=_amount(said.get("on_demand_usd_per_hour")),
            expires_at=self._planned_end(instance_id) or read_moment(said.get("expires_at")),
        )

    def _launched_at(self, instance_id: str, facts: list[Fact]) -> datetime:
        """
        Take the first moment that somebody else than the instance itself has seen.

        Its own word counts where there is no other, and before a stop, since EC2 overwrites the launch time at a restart.
        """
        seen = [fact for fact in facts if fact.source is not Source.AGENT]
        first = min(fact.at for fact in seen or facts)
        if not seen or len(seen) == len(facts) or any(f.source is Source.LAPTOP for f in seen):
            return first
        stops = [fact.at for fact in self._facts(FactKind.ENDED, instance_id)]
        told = {fact.at for fact in facts if fact.source is Source.AGENT}
        return min(
            at for at in {first, *told} if at == first or any(at <= s <= first for s in stops)
        )

    def _planned_end(self, instance_id: str) -> datetime | None:
        moved = self._facts(FactKind.EXTENDED, instance_id)
        newest = max(moved, key=lambda fact: fact.at, default=None)
        return read_moment(newest.details.get("until")) if newest else None

    def _instance(self, launch: LaunchRecord, series: Mapping[str, PriceSeries]) -> InstanceLife:
        said = _merged_details(self._facts(FactKind.LAUNCHED, launch.instance_id), _seen_to_begin)
        address = self._facts(FactKind.ADDRESS, launch.instance_id)
        return InstanceLife(
            id=launch.instance_id,
            owner=launch.owner or None,
            instance_type=launch.instance_type,
            zone=launch.zone,
            market=launch.market,
            runs=self._runs(launch),
            prices=self._prices(launch, _amount(said.get("usd_per_hour")), series),
            has_public_ipv4=bool(address),
            ipv4_usd_per_hour=_amount(_merged_details(address).get("usd_per_hour")),
        )

    def _prices(
        self, launch: LaunchRecord, seen: Decimal | None, series: Mapping[str, PriceSeries]
    ) -> PriceSeries:
        """Take the place's history; where it is blind at the launch, the price seen then."""
        at_launch = NO_PRICES if seen is None else PriceSeries((launch.launched_at,), (seen,))
        if launch.market is Market.ON_DEMAND:
            return at_launch
        place = f"{launch.zone}/{launch.instance_type}/{LINUX}"
        history = series.get(place, NO_PRICES)
        before = bisect_right(history.at, launch.launched_at)
        if before and (seen is None or history.at[before - 1] >= launch.launched_at - _STALE):
            return history
        if before and history.usd[before - 1] == seen:
            return history
        if not history.at and seen is not None:
            cause = "no spot price was saved while it ran; it is charged at the price of its launch"
            self._complain(DiscrepancyKind.PRICE_GAP, launch.instance_id, cause)
        return _joined(at_launch, history, launch.launched_at)

    def _runs(self, launch: LaunchRecord) -> tuple[Run, ...]:
        seen = sorted(f.at for f in self._facts(FactKind.STARTED, launch.instance_id))
        # A restart gives an instance a new launch time, so a later launch of the same instance is a start.
        told = [fact.at for fact in self._facts(FactKind.LAUNCHED, launch.instance_id)]
        starts = sorted([*told, *seen])
        ends = sorted(self._ends(launch.instance_id), key=lambda fact: fact.at)
        runs: list[Run] = []
        begin: datetime | None = launch.launched_at
        while begin is not None:
            later = [fact for fact in ends if fact.at >= begin]
            restart = next((at for at in starts if later and at > later[0].at), None)
            found = [fact for fact in later if restart is None or fact.at < restart]
            runs.append(self._run(launch, _running_from(begin, seen, later), found))
            begin = restart
        return tuple(runs)

    def _ends(self, instance_id: str) -> list[Fact]:
        """Leave out the ends that somebody foresaw or guessed and that the instance outlived, by its agent's own count."""
        facts = self._facts(FactKind.ENDED, instance_id)
        spans = self._spans.get(instance_id, ())
        return [fact for fact in facts if not any(_is_outlived(fact, span) for span in spans)]

    def _run(self, launch: LaunchRecord, begin: datetime, seen: list[Fact]) -> Run:
        if not seen:
            return Run(begin)
        end = _most_believed(seen)
        named = [fact.details["by"] for fact in sorted(seen, key=_belief) if "by" in fact.details]
        if named and named[0] in _ENDERS:
            return Run(begin, end.at, _ENDERS[named[0]])
        if launch.market is Market.SPOT and end.at - begin < timedelta(hours=1):
            cause = "nobody knows who ended it in its first hour; it is charged as ended by the user, and free if AWS did"
            self._complain(DiscrepancyKind.ENDED_BY_UNKNOWN, launch.instance_id, cause)
        return Run(begin, end.at, EndedBy.USER)

    def _volumes(self, instances: Mapping[str, InstanceLife]) -> Iterable[VolumeLife]:
        outlives, known = self._disks_outlive(instances), self._with_known_root_disk()
        for volume_id, facts in self._of(FactKind.VOLUME):
            first, said = _most_believed(facts), _merged_details(facts)
            size = _amount(said.get("size_gb"))
            if size is None:
                self._unreadable(first)
                continue
            instance = instances.get(said.get("instance_id", ""))
            if instance and volume_id == root_disk_of(instance.id) and instance.id in known:
                continue
            yield VolumeLife(
                id=volume_id,
                owner=said.get("owner") or (instance.owner if instance else None),
                type=said.get("type", ""),
                size_gb=size,
                usd_per_gb_month=_amount(said.get("usd_per_gb_month")),
                created_at=first.at,
                deleted_at=self._deleted_at(volume_id, first.at, said, instance, outlives),
                instance_id=said.get("instance_id", ""),
            )

    def _deleted_at(
        self,
        volume_id: str,
        created_at: datetime,
        said: Mapping[str, str],
        instance: InstanceLife | None,
        outlives: timedelta,
    ) -> datetime | None:
        gone = self._facts(FactKind.VOLUME_DELETED, volume_id)
        if gone:
            return max(created_at, _most_believed(gone).at)
        if said.get("ends_with_instance") != "yes" or instance is None:
            return None
        ends = self._ends(instance.id)
        is_terminated = any(fact.details.get("how") == "terminated" for fact in ends)
        last = instance.runs[-1].ends_at
        return max(created_at, last + outlives) if is_terminated and last else None

    def _with_known_root_disk(self) -> set[str]:
        """Name the instances whose root disk is known by its own id."""
        disks = ((key, _merged_details(facts)) for key, facts in self._of(FactKind.VOLUME))
        owners = {
            (said.get("instance_id", ""), key)
            for key, said in disks
            if said.get("ends_with_instance") == "yes"
        }
        return {instance for instance, key in owners if key != root_disk_of(instance)}

    def _disks_outlive(self, instances: Mapping[str, InstanceLife]) -> timedelta:
        """How long after its instance a disk goes, which AWS does not tell: the median of those that somebody saw go; 0 without any."""
        spans = []
        for volume_id, gone in self._of(FactKind.VOLUME_DELETED):
            said = _merged_details(self._facts(FactKind.VOLUME, volume_id))
            instance = instances.get(said.get("instance_id", ""))
            last = instance.runs[-1].ends_at if instance else None
            if last and timedelta(0) <= _most_believed(gone).at - last <= _DISK_GOES_WITHIN:
                spans.append(_most_believed(gone).at - last)
        return sorted(spans)[len(spans) // 2] if spans else timedelta(0)

    def _asked(self, known: Mapping[str, LaunchRecord]) -> tuple[Asked, ...]:
        """Join each attempt with what came of it: a launch has one instance at most, at the place that was asked last."""
        made = {
            (launch.launch_id, launch.zone, launch.instance_type): launch.instance_id
            for launch in known.values()
        }
        found = []
        for token, facts in self._of(FactKind.INTENT):
            said = _merged_details(facts)
            launch_id, zone, kind = (
                said.get(k, "") for k in ("launch_id", "zone", "instance_type")
            )
            found.append(Asked(token, launch_id, min(f.at for f in facts), zone, kind))
        newest_first = sorted(found, key=lambda one: (one.at, one.token), reverse=True)
        joined = [
            replace(one, instance_id=made.pop((one.launch_id, one.zone, one.instance_type), ""))
            for one in newest_first
        ]
        return tuple(reversed(joined))

    def _statements(self) -> tuple[StatementRead, ...]:
        found = [self._statement(digest, facts) for digest, facts in self._of(FactKind.STATEMENT)]
        return tuple(sorted(found, key=lambda one: (one.read_at, one.digest)))

    def _statement(self, digest: str, facts: list[Fact]) -> StatementRead:
        first = min(facts, key=lambda fact: fact.at)
        said = first.details
        sums = {c: _signed(said.get(f"{c}_usd")) for c in Category}
        return StatementRead(
            digest=digest,
            read_at=first.at,
            path=said.get("path", ""),
            format=said.get("format", ""),
            lines=_whole(said.get("lines", "")) or 0,
            first_day=_day(said.get("first_day", "")),
            last_day=_day(said.get("last_day", "")),
            by_category={category: usd for category, usd in sums.items() if usd is not None},
        )

    def _usage(self, instance_id: str, facts: list[Fact]) -> tuple[Usage, ...]:
        """Take of each span the longest word: it is told while it goes on, and again at its end."""
        longest: dict[datetime, Usage] = {}
        for fact in facts:
            said = fact.details
            seconds, idle = said.get("seconds", ""), said.get("idle_seconds", "")
            is_usual = len(seconds) <= _MOST_DIGITS >= len(idle)
            if is_usual and seconds.isdecimal() and idle.isdecimal():
                one = Usage(instance_id, fact.at, int(seconds), int(idle))
                longest[fact.at] = max(one, longest.get(fact.at, one))
            else:
                self._unreadable(fact)
        return tuple(longest.values())

    def _name_unlaunched(self, known: Mapping[str, LaunchRecord]) -> None:
        for kind in (FactKind.STARTED, FactKind.ENDED):
            for instance_id, _ in self._of(kind):
                if instance_id not in known:
                    cause = "it ran, but its launch was never written; it is not charged"
                    self._complain(DiscrepancyKind.NO_LAUNCH, instance_id, cause)

    def _decimal(self, fact: Fact, key: str) -> Decimal | None:
        value = _amount(fact.details.get(key))
        if value is None:
            self._unreadable(fact)
        return value

    def _unreadable(self, fact: Fact) -> None:
        cause = f"a fact of kind {fact.kind} at {fact.at:%Y-%m-%dT%H:%M:%SZ} cannot be read; it is left out"
        self._complain(DiscrepancyKind.UNREADABLE_FACT, fact.subject, cause)


def _running_from(launched_at: datetime, seen: list[datetime], ends: list[Fact]) -> datetime:
    """AWS bills from the state running, some seconds after the launch time; take it where somebody saw it."""
    last = min([launched_at + _BOOTS_WITHIN, *(end.at for end in ends[:1])])
    return next((at for at in seen if launched_at <= at <= last), launched_at)


def _is_outlived(end: Fact, used: Usage) -> bool:
    is_foreseen = end.source is Source.AGENT or (
        end.source is Source.LAPTOP and "by" not in end.details
    )
    return is_foreseen and used.begins_at <= end.at < used.until - _ENDS_WITHIN


def _most_believed(facts: list[Fact]) -> Fact:
    return facts[0] if len(facts) == 1 else min(facts, key=_belief)


def _belief(fact: Fact) -> tuple[int, datetime]:
    return _BELIEVED[fact.source], fact.at


def _seen_to_begin(fact: Fact) -> tuple[int, datetime]:
    """Order who tells of a launch: whoever asked for it has AWS's answer, and the instance has its user's word."""
    return _SEEN_TO_BEGIN[fact.source], fact.at


def _merged_details(
    facts: list[Fact], belief: Callable[[Fact], tuple[int, datetime]] = _belief
) -> Mapping[str, str]:
    """Join what several sources say; the most believed one wins each key."""
    if len(facts) == 1:
        return facts[0].details
    merged: dict[str, str] = {}
    for fact in sorted(facts, key=belief, reverse=True):
        merged |= fact.details
    return merged


def _joined(first: PriceSeries, history: PriceSeries, begin: datetime) -> PriceSeries:
    later = [(at, usd) for at, usd in zip(history.at, history.usd, strict=True) if at > begin]
    return PriceSeries(
        (*first.at, *(at for at, _ in later)), (*first.usd, *(usd for _, usd in later))
    )


@lru_cache(maxsize=4096)
def _amount(text: str | None) -> Decimal | None:
    try:
        value = Decimal(text) if text else None
    except InvalidOperation:
        return None
    if value is None or not value.is_finite() or value < 0:
        return None
    return value if value.adjusted() in _USUAL and len(text or "") <= _LONGEST_AMOUNT else None


def _signed(text: str | None) -> Decimal | None:
    """Read an amount that may be below 0, as credits are."""
    usd = _amount(text.removeprefix("-")) if text else None
    return -usd if usd is not None and text and text.startswith("-") else usd


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None
