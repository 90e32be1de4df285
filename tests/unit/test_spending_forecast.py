"""How long the money lasts: the pace now, the pace of the week, a planned lab."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from gpulab.model.fact import address, ended, launched, price, volume
from gpulab.model.market import Market
from gpulab.model.timeline import EndedBy
from gpulab.spending.facts import timeline_of
from gpulab.spending.forecast import burn_of, last_price, lasts_until, planned_lab, spent_between

NOW = datetime(2026, 10, 23, 18, tzinfo=UTC)


def a_launch(instance_id: str, hours_ago: int, usd: str = "0.20"):
    at = NOW - timedelta(hours=hours_ago)
    return (
        launched(
            instance_id,
            at=at,
            zone="us-east-1d",
            instance_type="g4dn.xlarge",
            market=Market.SPOT,
            usd_per_hour=Decimal(usd),
        ),
        address(instance_id, at=at, usd_per_hour=Decimal("0.005")),
    )


def a_disk(size_gb: int, rate: str | None = "0.08"):
    usd = None if rate is None else Decimal(rate)
    at = NOW - timedelta(hours=5)
    return volume("v", at=at, type="gp3", size_gb=size_gb, usd_per_gb_month=usd)


def test_the_pace_counts_instances_addresses_and_disks_at_todays_prices():
    """The price that moved this afternoon, not the one at launch; a stopped instance's disk too."""
    moved = price(
        "us-east-1d", "g4dn.xlarge", at=NOW - timedelta(hours=1), usd_per_hour=Decimal("0.30")
    )
    gone = ended("i-2", at=NOW - timedelta(hours=1), by=EndedBy.USER)

    burn = burn_of(
        timeline_of([*a_launch("i-1", 3), moved, *a_launch("i-2", 4), gone, a_disk(93)]).timeline,
        now=NOW,
    )

    assert (Decimal("0.315"), 1, 1, True) == (
        burn.usd_per_hour,
        burn.instances,
        burn.volumes,
        burn.is_complete,
    )


def test_a_pace_with_an_unknown_price_says_so():
    """A lower bound must not look like the whole."""
    burn = burn_of(timeline_of([a_disk(60, rate=None)]).timeline, now=NOW)

    assert (Decimal(0), False) == (burn.usd_per_hour, burn.is_complete)


def test_what_accrued_in_a_span():
    """The last week's spending, cut at its first second."""
    timeline = timeline_of(a_launch("i-1", 10)).timeline

    assert Decimal("0.4100000000") == spent_between(timeline, NOW - timedelta(hours=2), NOW)
    assert Decimal("2.0500000000") == spent_between(timeline, None, NOW)


def test_a_balance_ends_at_its_pace():
    """$2 at $0.50 an hour are four hours; nothing that flows, or a decade, is no date."""
    assert NOW + timedelta(hours=4) == lasts_until(Decimal(2), Decimal("0.5"), now=NOW)
    assert None is lasts_until(Decimal(2), Decimal(0), now=NOW)
    assert None is lasts_until(Decimal(100), Decimal("0.001"), now=NOW)


def test_a_planned_lab_is_never_cheaper_than_it_turns_out():
    """The disk is priced for the shortest month."""
    lab = planned_lab(Decimal(4), usd_per_hour=Decimal("0.25"), disk_gb=60)

    assert "1.0486" == str(lab.at_most_usd.quantize(Decimal("0.0001")))


def test_the_last_price_is_that_of_the_newest_launch():
    """A plan without a price takes what was paid last."""
    reading = timeline_of([*a_launch("i-1", 9, "0.40"), *a_launch("i-2", 2, "0.22")])

    assert Decimal("0.22") == last_price(reading)
    assert None is last_price(timeline_of([]))
