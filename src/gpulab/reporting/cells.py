"""Sums in small cells (who, which lab, which day, which type), from which every table of a report is added up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from typing import NamedTuple, TypeVar

from gpulab.model.report import Row
from gpulab.model.timeline import Charge, ChargeKind, Costs, EndedBy, InstanceLife, Run, Timeline
from gpulab.spending.charging import MINIMUM_SECONDS
from gpulab.spending.exact import Usd, seconds_between
from gpulab.spending.facts import LaunchRecord, LedgerReading

NOBODY = "-"
_ZERO = Usd()


class CellKey(NamedTuple):
    """What the sums of a cell have in common; `day` is local."""

    owner: str
    lab: str
    day: date
    instance_type: str
    market: str


@dataclass(slots=True)
class Cell:
    """Exact sums."""

    runs: int = 0
    seconds: int = 0
    gpu_seconds: int = 0
    idle_seconds: int = 0
    interruptions: int = 0
    instance: Usd = _ZERO
    ebs: Usd = _ZERO
    ipv4: Usd = _ZERO
    on_demand: Usd = _ZERO
    compared: Usd = _ZERO
    wasted: Usd = _ZERO

    def add(self, other: Cell) -> None:
        """Take another cell's sums in."""
        self.runs += other.runs
        self.seconds += other.seconds
        self.gpu_seconds += other.gpu_seconds
        self.idle_seconds += other.idle_seconds
        self.interruptions += other.interruptions
        self.instance += other.instance
        self.ebs += other.ebs
        self.ipv4 += other.ipv4
        if other.on_demand is not _ZERO:
            self.on_demand += other.on_demand
            self.compared += other.compared
        if other.wasted is not _ZERO:
            self.wasted += other.wasted

    @property
    def total(self) -> Usd:
        """Instances, disks and addresses."""
        return self.instance + self.ebs + self.ipv4

    def charge(self, kind: ChargeKind, usd: Usd) -> None:
        """Add an amount."""
        if kind is ChargeKind.INSTANCE:
            self.instance += usd
        elif kind is ChargeKind.EBS:
            self.ebs += usd
        else:
            self.ipv4 += usd


Cells = dict[CellKey, Cell]
Key = TypeVar("Key")
NewKey = TypeVar("NewKey")


@dataclass(frozen=True)
class Catalogue:
    """
    What is known of types beside the ledger; used where a launch did not write it down.

    Attributes:
        gpus: GPUs by instance type.
        on_demand_usd_per_hour: By (region, instance type).
    """

    gpus: Mapping[str, int] = field(default_factory=dict)
    on_demand_usd_per_hour: Mapping[tuple[str, str], Decimal] = field(default_factory=dict)

    def gpus_of(self, launch: LaunchRecord) -> int:
        """Count a launch's GPUs; 0 when nobody knows."""
        return self.gpus.get(launch.instance_type, 0) if launch.gpus is None else launch.gpus

    def on_demand_of(self, launch: LaunchRecord) -> Decimal | None:
        """Return what the type costs on demand; `None` when nobody knows."""
        if launch.on_demand_usd_per_hour is not None:
            return launch.on_demand_usd_per_hour
        region = launch.zone.rstrip("abcdefghijklmnopqrstuvwxyz")
        return self.on_demand_usd_per_hour.get((region, launch.instance_type))


def cells_of(
    reading: LedgerReading,
    costs: Costs,
    *,
    begin: datetime,
    now: datetime,
    zone: tzinfo,
    catalogue: Catalogue,
) -> Cells:
    """Add up everything from `begin` up to now, by local day."""
    adder = _Adder(reading, begin, now, zone, catalogue)
    adder.add_charges(costs)
    adder.add_runs(reading.timeline)
    adder.add_usage(reading)
    return adder.cells


def folded(cells: Mapping[Key, Cell], key_of: Callable[[Key], NewKey]) -> dict[NewKey, Cell]:
    """Add cells up by a coarser key."""
    found: dict[NewKey, Cell] = {}
    for key, cell in cells.items():
        new = key_of(key)
        total = found.get(new)
        if total is None:
            total = found[new] = Cell()
        total.add(cell)
    return found


def rows_of(cells: Mapping[str, Cell]) -> tuple[Row, ...]:
    """Round every cell; sorted by key."""
    return tuple(row_of(key, cells[key]) for key in sorted(cells))


def row_of(key: str, cell: Cell) -> Row:
    """Round a cell's sums, once."""
    return Row(
        key=key,
        runs=cell.runs,
        hours=_hours(cell.seconds),
        gpu_hours=_hours(cell.gpu_seconds),
        usd=cell.total.rounded(),
        instance_usd=cell.instance.rounded(),
        ebs_usd=cell.ebs.rounded(),
        ipv4_usd=cell.ipv4.rounded(),
        saved_usd=(cell.on_demand - cell.compared).rounded(),
        idle_hours=_hours(cell.idle_seconds),
        wasted_usd=cell.wasted.rounded(),
        interruptions=cell.interruptions,
    )


def week_of(day: date) -> str:
    """Name the ISO week of a day."""
    year, week, _ = day.isocalendar()
    return f"{year}-W{week:02}"


def by_local_day(
    begin: datetime, end: datetime, zone: tzinfo
) -> list[tuple[date, datetime, datetime]]:
    """Cut a span at local midnights; an empty span has no parts."""
    if begin >= end:
        return []
    day, last = begin.astimezone(zone).date(), end.astimezone(zone)
    if day == last.date():
        return [(day, begin, end)]
    parts = []
    while begin < end:
        midnight = datetime.combine(day + timedelta(days=1), time(), zone).astimezone(UTC)
        parts.append((day, begin, min(end, midnight)))
        begin, day = midnight, day + timedelta(days=1)
    return parts


def _hours(seconds: int) -> Decimal:
    return (Decimal(seconds) / 3600).quantize(Decimal("0.0001"))


def _names(launch: LaunchRecord) -> tuple[str, str, str, str]:
    market = launch.market.value
    return launch.owner or NOBODY, launch.lab or NOBODY, launch.instance_type, market


class _Adder:
    def __init__(
        self,
        reading: LedgerReading,
        begin: datetime,
        end: datetime,
        zone: tzinfo,
        catalogue: Catalogue,
    ) -> None:
        self.cells: Cells = {}
        self._launches = reading.launches
        self._instance_of = {v.id: v.instance_id for v in reading.timeline.volumes}
        self._begin, self._end, self._zone, self._catalogue = begin, end, zone, catalogue
        # The seconds that pad a run to its minimum may lie beyond now; they are certain, so they belong here.
        self._padded_end = end + timedelta(seconds=MINIMUM_SECONDS)
        self._names = {key: _names(launch) for key, launch in reading.launches.items()}
        self._lives = {life.id: life for life in reading.timeline.instances}

    def add_charges(self, costs: Costs) -> None:
        for charge in costs.charges:
            launch = self._launch_of(charge.resource)
            is_compared = (
                charge.kind is ChargeKind.INSTANCE
                and launch is not None
                and self._catalogue.on_demand_of(launch) is not None
                and launch.market == "spot"
            )
            last = charge.begins_at + timedelta(seconds=charge.seconds)
            for day, begin, end in self._days(charge.begins_at, last, self._padded_end):
                cell = self._cell(launch, charge, day)
                usd = Usd.part(charge, seconds_between(begin, end))
                cell.charge(charge.kind, usd)
                if is_compared:
                    cell.compared += usd

    def add_runs(self, timeline: Timeline) -> None:
        for life in timeline.instances:
            launch = self._launches[life.id]
            for run in life.runs:
                self._add_run(life, launch, run)

    def _add_run(self, life: InstanceLife, launch: LaunchRecord, run: Run) -> None:
        gpus = self._catalogue.gpus_of(launch)
        on_demand = self._catalogue.on_demand_of(launch)
        if self._begin <= run.begins_at < self._end:
            self._cell_at(launch, run.begins_at).runs += 1
        if run.ended_by is EndedBy.AWS and run.ends_at and self._begin <= run.ends_at < self._end:
            self._cell_at(launch, run.ends_at).interruptions += 1
        for day, begin, end in self._days(run.begins_at, run.ends_at or self._end, self._end):
            cell, seconds = self._cell_of(launch, day), seconds_between(begin, end)
            cell.seconds += seconds
            cell.gpu_seconds += seconds * gpus
        if launch.market == "spot" and on_demand is not None:
            self._add_on_demand(launch, run, on_demand)

    def _add_on_demand(self, launch: LaunchRecord, run: Run, usd_per_hour: Decimal) -> None:
        """Count what the run would have cost on demand, where it has the same minimum as on spot."""
        last = max(run.ends_at or self._end, run.begins_at + timedelta(seconds=MINIMUM_SECONDS))
        for day, begin, end in self._days(run.begins_at, last, self._padded_end):
            cell = self._cell_of(launch, day)
            cell.on_demand += Usd.hourly(usd_per_hour, seconds_between(begin, end))

    def add_usage(self, reading: LedgerReading) -> None:
        for span in reading.usage:
            launch = self._launches.get(span.instance_id)
            if launch is None or not self._begin <= span.begins_at < self._end:
                continue
            cell = self._cell_at(launch, span.begins_at)
            idle = min(span.idle_seconds, span.seconds)
            cell.idle_seconds += idle
            usd = self._lives[launch.instance_id].prices.in_force(span.begins_at)
            if usd is not None and idle:
                cell.wasted += Usd.hourly(usd, idle)

    def _days(
        self, begin: datetime, end: datetime, limit: datetime
    ) -> Iterable[tuple[date, datetime, datetime]]:
        return by_local_day(max(begin, self._begin), min(end, limit), self._zone)

    def _launch_of(self, resource: str) -> LaunchRecord | None:
        return self._launches.get(self._instance_of.get(resource, resource))

    def _cell(self, launch: LaunchRecord | None, charge: Charge, day: date) -> Cell:
        if launch is not None:
            return self._cell_of(launch, day)
        key = CellKey(charge.owner or NOBODY, NOBODY, day, NOBODY, NOBODY)
        return self.cells.setdefault(key, Cell())

    def _cell_at(self, launch: LaunchRecord, moment: datetime) -> Cell:
        return self._cell_of(launch, moment.astimezone(self._zone).date())

    def _cell_of(self, launch: LaunchRecord, day: date) -> Cell:
        owner, lab, instance_type, market = self._names[launch.instance_id]
        key = CellKey(owner, lab, day, instance_type, market)
        found = self.cells.get(key)
        if found is None:
            found = self.cells[key] = Cell()
        return found
