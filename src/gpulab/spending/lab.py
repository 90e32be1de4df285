"""What one lab of a course has cost by a ledger. Refuses to let an end that nobody wrote down cost for ever."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from gpulab.model.timeline import EndedBy, InstanceLife, Timeline, VolumeLife
from gpulab.spending.facts import LedgerReading
from gpulab.spending.forecast import burn_of, spent_between


@dataclass(frozen=True)
class CourseSpending:
    """
    What a course's instances have cost, with their disks and addresses.

    Attributes:
        lab_usd: Of one lab.
        term_usd: Of all labs.
        usd_per_hour: What that lab's instances cost now.
    """

    lab_usd: Decimal = Decimal(0)
    term_usd: Decimal = Decimal(0)
    usd_per_hour: Decimal = Decimal(0)

    def __add__(self, other: CourseSpending) -> CourseSpending:
        return CourseSpending(
            self.lab_usd + other.lab_usd,
            self.term_usd + other.term_usd,
            self.usd_per_hour + other.usd_per_hour,
        )


def course_spending(
    reading: LedgerReading, *, course: str, lab: str, alive: Container[str] | None, now: datetime
) -> CourseSpending:
    """
    Add up one ledger.

    Args:
        alive: Ids of what EC2 shows alive of this lab; what the ledger believes to run beside them counts until its planned end.
            `None` when EC2 could not be asked: then all of it still runs.
    """
    term = [i for i in reading.timeline.instances if reading.launches[i.id].course == course]
    lost = {i.id: _end(i, reading, now) for i in term if alive is not None and i.id not in alive}
    of_term = _closed(reading.timeline, term, lost)
    mine = [i for i in term if reading.launches[i.id].lab == lab]
    of_lab = _closed(reading.timeline, mine, lost)
    return CourseSpending(
        spent_between(of_lab, None, now),
        spent_between(of_term, None, now),
        burn_of(of_lab, now=now).usd_per_hour,
    )


def _end(life: InstanceLife, reading: LedgerReading, now: datetime) -> datetime | None:
    """Say when something ended that is open in the books only: nothing of ours outlives its planned end."""
    if not life.runs or life.runs[-1].ends_at is not None:
        return None
    planned = reading.launches[life.id].expires_at or now
    return max(life.runs[-1].begins_at, min(now, planned))


def _closed(
    timeline: Timeline, lives: Iterable[InstanceLife], lost: Mapping[str, datetime | None]
) -> Timeline:
    """Take some instances and their disks, those that were lost with their ends."""
    chosen = {life.id: _ended(life, lost.get(life.id)) for life in lives}
    disks = (v for v in timeline.volumes if v.instance_id in chosen)
    return Timeline(
        tuple(chosen.values()), tuple(_deleted(v, lost.get(v.instance_id)) for v in disks)
    )


def _ended(life: InstanceLife, at: datetime | None) -> InstanceLife:
    if at is None:
        return life
    last = replace(life.runs[-1], ends_at=at, ended_by=EndedBy.USER)
    return replace(life, runs=(*life.runs[:-1], last))


def _deleted(volume: VolumeLife, at: datetime | None) -> VolumeLife:
    if at is None or volume.deleted_at is not None:
        return volume
    return replace(volume, deleted_at=max(at, volume.created_at))
