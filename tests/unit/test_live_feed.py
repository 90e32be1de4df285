"""What the live test of spot prices compares: our rule's own moment against AWS's charge, so that a wrong rule is refuted."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from gpulab.model.timeline import PriceSeries, Run

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.live import feed

BEGIN = datetime(2026, 11, 23, 10, 20, tzinfo=UTC)
# It moves at 11:00, inside the first instance-hour (10:20 to 11:20), and again at 11:30, inside the second.
PRICES = PriceSeries(
    (BEGIN - timedelta(hours=5), BEGIN + timedelta(minutes=40), BEGIN + timedelta(minutes=70)),
    (Decimal("0.1580"), Decimal("0.1640"), Decimal("0.1700")),
)
RUN = Run(BEGIN, BEGIN + timedelta(minutes=90))


@pytest.mark.parametrize(
    ("minute", "usd", "fits"),
    [
        (0, "0.158", True),
        (59, "0.158", True),
        # The price at the clock's hour, and at the hour's end: near ones, of other rules.
        (0, "0.164", False),
        # The second hour was used for 30 minutes: 0.1640 / 2.
        (60, "0.082", True),
        (60, "0.164", False),
        (60, "0.085", False),
    ],
)
def test_a_charge_by_another_rule_is_refuted(minute, usd, fits):
    """Taking whichever price is nearest to the charge would prove every rule there is."""
    line = feed.Line(BEGIN + timedelta(minutes=minute), "i-1", Decimal(usd))

    assert fits is (line.charged_usd == feed.expected_usd(line, RUN, PRICES))


def test_an_hour_without_a_known_price_is_not_taken_for_right():
    """AWS keeps prices for 90 days; a line that is older proves nothing."""
    line = feed.Line(BEGIN, "i-1", Decimal("0.158"))

    assert feed.expected_usd(line, RUN, PriceSeries((), ())) is None


def test_the_feed_is_read_as_aws_writes_it():
    """The sandbox has no feed, so a misread column would be seen only after a day in a real account."""
    text = (
        "#Version: 1.0\n#Fields: Timestamp UsageType Operation InstanceID MyBidID MyMaxPrice MarketPrice Charge Version\n"
        "2026-11-23 10:20:00 UTC\tSpotUsage:g4dn.xlarge\tRunInstances:SV002\ti-0123456789abcdef0\tsir-1\t0.526 USD\t0.158 USD\t0.158 USD\t1\n"
    )

    assert [feed.Line(BEGIN, "i-0123456789abcdef0", Decimal("0.158"))] == list(feed.lines_of(text))
