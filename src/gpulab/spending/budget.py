"""How much of a budget is gone: what the ledger counts, and what runs until its end. Refuses nothing; planning does."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

from gpulab.model.budget import TermBudget
from gpulab.model.timeline import InstanceLife, Timeline
from gpulab.spending.facts import LedgerReading
from gpulab.spending.forecast import burn_of, spent_between


def term_budget(
    reading: LedgerReading,
    usd: Decimal,
    *,
    owners: Container[str | None],
    now: datetime,
    besides: str = "",
) -> TermBudget:
    """
    Compare a budget with a ledger.

    Args:
        owners: Whose instances and disks count; `None` among them for those that name nobody.
        besides: An instance for whose time to come nothing is kept, because it is just being asked what that may cost.
    """
    mine = _of(reading.timeline, owners)
    spent = spent_between(mine, None, now)
    others = (life for life in mine.instances if life.id != besides)
    promised = sum((_promised(life, mine, reading, now) for life in others), Decimal(0))
    return TermBudget(usd, spent, promised)


def most_usd_per_hour(reading: LedgerReading, instance_id: str, *, now: datetime) -> Decimal | None:
    """
    Return what an hour of an instance may cost, with its disk and address; `None` when a price is not known.

    A spot price may rise to the on-demand price, which AWS takes as the cap.
    """
    lives = tuple(i for i in reading.timeline.instances if i.id == instance_id)
    if not lives:
        return None
    disks = tuple(v for v in reading.timeline.volumes if v.instance_id == instance_id)
    burn = burn_of(Timeline(lives, disks), now=now)
    price, cap = lives[0].prices.in_force(now), reading.launches[instance_id].on_demand_usd_per_hour
    if not burn.is_complete or price is None:
        return None
    return burn.usd_per_hour + max(Decimal(0), (cap or price) - price)


def _of(timeline: Timeline, owners: Container[str | None]) -> Timeline:
    return replace(
        timeline,
        instances=tuple(life for life in timeline.instances if life.owner in owners),
        volumes=tuple(volume for volume in timeline.volumes if volume.owner in owners),
    )


def _promised(
    life: InstanceLife, timeline: Timeline, reading: LedgerReading, now: datetime
) -> Decimal:
    """Price what is left of an instance's time, with its disk and address; nothing for one that has ended or names no end."""
    ends_at = reading.launches[life.id].expires_at
    runs = bool(life.runs) and life.runs[-1].ends_at is None
    if not runs or ends_at is None or ends_at <= now:
        return Decimal(0)
    disks = tuple(volume for volume in timeline.volumes if volume.instance_id == life.id)
    hours = Decimal((ends_at - now) // timedelta(seconds=1)) / 3600
    return burn_of(Timeline((life,), disks), now=now).usd_per_hour * hours
