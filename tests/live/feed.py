"""AWS's spot data feed, and what our rule says of each of its lines: the price in force when the instance-hour began, by the second. No cloud."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal

from gpulab.model.timeline import PriceSeries, Run
from gpulab.spending.charging import HOUR_SECONDS


@dataclass(frozen=True)
class Line:
    """
    One instance-hour as AWS charged it.

    Attributes:
        at: The moment AWS names for it, in the hour that is charged.
        charged_usd: With as many digits as the feed has.
    """

    at: datetime
    instance: str
    charged_usd: Decimal


def lines_of(text: str) -> Iterator[Line]:
    """Read a file of the feed: tab-separated, one line an instance-hour. https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-data-feeds.html"""
    for row in (line.split("\t") for line in text.splitlines() if line and line[0] != "#"):
        at = datetime.strptime(row[0], "%Y-%m-%d %H:%M:%S %Z").replace(tzinfo=UTC)
        yield Line(at, row[3], Decimal(row[7].split()[0]))


def hour_of(line: Line, run: Run) -> datetime:
    """Begin of the instance-hour that a line is in; hours count from the run's begin, not from the clock's."""
    seconds = (line.at - run.begins_at).total_seconds()
    return run.begins_at + timedelta(hours=seconds // HOUR_SECONDS)


def expected_usd(line: Line, run: Run, prices: PriceSeries) -> Decimal | None:
    """
    What our rule charges for a line, rounded to the feed's digits.

    Args:
        prices: Of the instance's own zone.

    Returns:
        `None` where no price is known at the hour's begin.
    """
    begin = hour_of(line, run)
    usd = prices.in_force(begin)
    if usd is None:
        return None
    whole = timedelta(seconds=HOUR_SECONDS)
    used = whole if run.ends_at is None else min(whole, run.ends_at - begin)
    exact = usd * int(used.total_seconds()) / HOUR_SECONDS
    return exact.quantize(line.charged_usd, ROUND_HALF_UP)
