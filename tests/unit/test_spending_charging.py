"""Charges at the edges of hours, months and windows: whole pieces, none empty."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from gpulab.model.market import Market
from gpulab.model.timeline import InstanceLife, PriceSeries, Run, Timeline, VolumeLife
from gpulab.spending.charging import cost_of
from gpulab.spending.windows import within

BEGIN = datetime(2026, 10, 23, 16, 10, tzinfo=UTC)


def after(seconds: int) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


def a_life(end: datetime, *points: tuple[datetime, str]) -> InstanceLife:
    series = PriceSeries(tuple(at for at, _ in points), tuple(Decimal(usd) for _, usd in points))
    return InstanceLife(
        "i-1", None, "g4dn.xlarge", "us-east-1d", Market.SPOT, (Run(BEGIN, end),), series
    )


def test_a_run_that_ends_at_a_full_hour_has_no_empty_piece():
    """A price that changes in the last hour never shows up: no next hour begins."""
    life = a_life(after(3600), (BEGIN, "0.20"), (after(1800), "0.30"))

    charges = cost_of(Timeline((life,)), as_of=after(9999)).charges

    assert [(BEGIN, 3600, Decimal("0.20"))] == [(c.begins_at, c.seconds, c.usd) for c in charges]


def test_hours_of_one_price_are_one_charge():
    """`--explain` lists what differs, not every hour of a week."""
    life = a_life(
        after(7 * 86400), (BEGIN, "0.20"), (after(90_000), "0.20"), (after(95_000), "0.30")
    )

    charges = cost_of(Timeline((life,)), as_of=BEGIN).charges

    assert [97_200, 507_600] == [c.seconds for c in charges]


def test_a_disk_deleted_at_midnight_of_the_first_has_no_piece_in_the_new_month():
    """A month that was not lived in is not on the bill."""
    created = datetime(2026, 10, 31, 23, tzinfo=UTC)
    disk = VolumeLife("v", None, "gp3", Decimal(60), Decimal("0.08"), created, datetime(2026, 11, 1, tzinfo=UTC))  # fmt: skip

    charges = cost_of(Timeline(volumes=(disk,)), as_of=BEGIN).charges

    assert [(3600, 31 * 86400)] == [(c.seconds, c.unit_seconds) for c in charges]


def test_a_window_that_only_touches_a_charge_has_no_part_of_it():
    """A report of November does not list what ended at the last second of October."""
    charges = cost_of(Timeline((a_life(after(3600), (BEGIN, "0.20")),)), as_of=BEGIN).charges

    parts = [list(within(charges, *window)) for window in ((after(-60), BEGIN), (after(3600), after(9999)))]  # fmt: skip

    assert [[], []] == parts
