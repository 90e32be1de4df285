"""A made-up term as ledger facts: 300 students, 13 weeks, labs on Monday afternoons, nights of training, moving prices."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from gpulab.model.fact import (
    Fact,
    Source,
    address,
    ended,
    intent,
    launched,
    price,
    started,
    usage,
    volume,
)
from gpulab.model.market import Market
from gpulab.model.timeline import EndedBy

FIRST_MONDAY = datetime(2026, 8, 31, 11, 35, tzinfo=UTC)
ZONES = ("us-east-1a", "us-east-1b", "us-east-1d")
TYPES = {"g4dn.xlarge": ("0.16", "0.526"), "g5.xlarge": ("0.42", "1.006")}


def term(*, students: int = 300, weeks: int = 13, seed: int = 1) -> Iterator[Fact]:
    """Yield the facts of a term; about 100,000 with the defaults."""
    rng = random.Random(seed)
    end = FIRST_MONDAY + timedelta(weeks=weeks)
    yield from _prices(rng, FIRST_MONDAY - timedelta(days=2), end)
    number = 0
    for week in range(weeks):
        for student in range(students):
            lab = f"week{week + 1}" if week < 6 else "project"
            for turn in range(1 if week < 6 else rng.randint(2, 5)):
                number += 1
                begin = _begin(rng, week, turn)
                yield from _run(rng, number, f"s{student:03}", lab, begin)


def _begin(rng: random.Random, week: int, turn: int) -> datetime:
    monday = FIRST_MONDAY + timedelta(weeks=week)
    if week < 6:
        return monday + timedelta(seconds=rng.randint(0, 900))
    return monday + timedelta(days=turn, seconds=rng.randint(0, 80_000))


def _prices(rng: random.Random, begin: datetime, end: datetime) -> Iterator[Fact]:
    for zone in ZONES:
        for kind, (base, _) in TYPES.items():
            at, usd = begin, Decimal(base)
            while at < end:
                yield price(zone, kind, at=at, usd_per_hour=usd)
                at += timedelta(seconds=rng.randint(3_000, 20_000))
                usd = max(Decimal("0.05"), usd + Decimal(rng.randint(-8, 8)).scaleb(-3))


def _run(rng: random.Random, number: int, owner: str, lab: str, begin: datetime) -> Iterator[Fact]:
    kind, instance = rng.choice(list(TYPES)), f"i-{number:08x}"
    zone, market = rng.choice(ZONES), Market.SPOT if rng.random() < 0.9 else Market.ON_DEMAND
    # One in ten finds its first place full.
    for attempt in range(1, 3 if number % 10 == 0 else 2):
        yield intent(
            f"l{number:08x}-{attempt}",
            at=begin - timedelta(seconds=3),
            launch_id=f"l{number:08x}",
            zone=zone,
            instance_type=kind,
            market=market,
            at_most_usd_per_hour=Decimal(TYPES[kind][1]),
            owner=owner,
            course="02456",
            lab=lab,
        )
    yield launched(
        instance,
        at=begin,
        zone=zone,
        instance_type=kind,
        market=market,
        usd_per_hour=Decimal(TYPES[kind][0]),
        on_demand_usd_per_hour=Decimal(TYPES[kind][1]),
        launch_id=f"l{number:08x}",
        owner=owner,
        course="02456",
        lab=lab,
        gpus=1,
        source=Source.AWS,
    )
    yield address(instance, at=begin, usd_per_hour=Decimal("0.005"), source=Source.AWS)
    yield volume(
        f"vol-{number:08x}",
        at=begin,
        type="gp3",
        size_gb=60,
        usd_per_gb_month=Decimal("0.08"),
        instance_id=instance,
        ends_with_instance=True,
        owner=owner,
    )
    yield started(instance, at=begin + timedelta(seconds=rng.randint(9, 17)))
    last = begin + timedelta(seconds=rng.randint(20, 16_000))
    if rng.random() < 0.1:
        yield ended(instance, at=last, by=EndedBy.USER, is_final=False)
        begin = last + timedelta(seconds=rng.randint(100, 90_000))
        yield started(instance, at=begin)
        last = begin + timedelta(seconds=rng.randint(20, 16_000))
    at = begin
    while at < last:
        span = min(3600, int((last - at).total_seconds()))
        yield usage(instance, at=at, seconds=span, idle_seconds=rng.randint(0, span // 2))
        at += timedelta(seconds=3600)
    by = EndedBy.AWS if rng.random() < 0.08 else EndedBy.USER
    yield ended(instance, at=last, by=by, source=Source.AWS)
