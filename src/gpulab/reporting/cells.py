"""Sums in small cells (who, which lab, which day, which type), from which every table of a report is added up."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import NamedTuple, TypeVar

from gpulab.model.market import Market
from gpulab.model.report import Row
from gpulab.model.timeline import Charge, ChargeKind, Costs, EndedBy, InstanceLife, Run, Timeline
from gpulab.reporting.days import LocalDays
from gpulab.spending.charging import MINIMUM_SECONDS
from gpulab.spending.exact import Usd, seconds_between
from gpulab.spending.facts import LaunchRecord, LedgerReading

NOBODY = "-"
_ZERO = Usd()
_DIGITS = re.compile(r"([0-9]{1,18})")


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
    saved: Usd = _ZERO
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
        if other.saved is not _ZERO:
            self.saved += other.saved
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
    """Round every cell; sorted by key, and numbers in it by their size: `g2` comes before `g10`."""
    return tuple(row_of(key, cells[key]) for key in sorted(cells, key=_by_numbers))


def _by_numbers(key: str) -> list[tuple[int, str]]:
    """Split a key where digits begin and end."""
    parts = _DIGITS.split(key)
    return [(int(part), "") if n % 2 else (0, part) for n, part in enumerate(parts)]


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
        saved_usd=cell.saved.rounded(),
        idle_hours=_hours(cell.idle_seconds),
        wasted_usd=cell.wasted.rounded(),
        interruptions=cell.interruptions,
    )


def week_of(day: date) -> str:
    """Name the ISO week of a day."""
    year, week, _ = day.isocalendar()
    return f"{year}-W{week:02}"


def _hours(seconds: int) -> Decimal:
    return (Decimal(seconds) / 3600).quantize(Decimal("0.0001"))


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
        self._begin, self._end, self._catalogue = begin, end, catalogue
        # The seconds that pad a run to its minimum may lie beyond now; they are certain, so they belong here.
        self._padded_end = end + timedelta(seconds=MINIMUM_SECONDS)
        self._days = LocalDays(begin, self._padded_end, zone)
        self._lives = {life.id: life for life in reading.timeline.instances}
        self._on_demand = {
            key: usd
            for key, launch in reading.launches.items()
            if launch.market is Market.SPOT and (usd := catalogue.on_demand_of(launch)) is not None
        }
        self._cell_by_launch: dict[tuple[str, date], Cell] = {}

    def add_charges(self, costs: Costs) -> None:
        for charge in costs.charges:
            instance_id = self._instance_of.get(charge.resource, charge.resource)
            is_saving = charge.kind is ChargeKind.INSTANCE and instance_id in self._on_demand
            last = charge.begins_at + timedelta(seconds=charge.seconds)
            for day, begin, end in self._parts(charge.begins_at, last, self._padded_end):
                usd = Usd.part(charge, seconds_between(begin, end))
                cell = self._cell(instance_id, charge, day)
                cell.charge(charge.kind, usd)
                if is_saving:
                    cell.saved -= usd

    def add_runs(self, timeline: Timeline) -> None:
        for life in timeline.instances:
            gpus = self._catalogue.gpus_of(self._launches[life.id])
            for run in life.runs:
                self._add_run(life, gpus, run)

    def _add_run(self, life: InstanceLife, gpus: int, run: Run) -> None:
        if self._begin <= run.begins_at < self._end:
            self._cell_of(life.id, self._days.of(run.begins_at)).runs += 1
        if run.ended_by is EndedBy.AWS and run.ends_at and self._begin <= run.ends_at < self._end:
            self._cell_of(life.id, self._days.of(run.ends_at)).interruptions += 1
        for day, begin, end in self._parts(run.begins_at, run.ends_at or self._end, self._end):
            cell, seconds = self._cell_of(life.id, day), seconds_between(begin, end)
            cell.seconds += seconds
            cell.gpu_seconds += seconds * gpus
        if life.id in self._on_demand:
            self._add_on_demand(life, run)

    def _add_on_demand(self, life: InstanceLife, run: Run) -> None:
        """Count what the run would have cost on demand, where it has the same minimum as on spot."""
        usd_per_hour = self._on_demand[life.id]
        last = max(run.ends_at or self._end, run.begins_at + timedelta(seconds=MINIMUM_SECONDS))
        for day, begin, end in self._parts(run.begins_at, last, self._padded_end):
            cell = self._cell_of(life.id, day)
            cell.saved += Usd.hourly(usd_per_hour, seconds_between(begin, end))

    def add_usage(self, reading: LedgerReading) -> None:
        for span in reading.usage:
            life = self._lives.get(span.instance_id)
            if life is None or not self._begin <= span.begins_at < self._end:
                continue
            cell = self._cell_of(life.id, self._days.of(span.begins_at))
            idle = min(span.idle_seconds, span.seconds)
            cell.idle_seconds += idle
            usd = life.prices.in_force(span.begins_at)
            if usd is not None and idle:
                cell.wasted += Usd.hourly(usd, idle)

    def _parts(
        self, begin: datetime, end: datetime, limit: datetime
    ) -> list[tuple[date, datetime, datetime]]:
        return self._days.cut(max(begin, self._begin), min(end, limit))

    def _cell(self, instance_id: str, charge: Charge, day: date) -> Cell:
        if instance_id in self._launches:
            return self._cell_of(instance_id, day)
        key = CellKey(charge.owner or NOBODY, NOBODY, day, NOBODY, NOBODY)
        return self.cells.setdefault(key, Cell())

    def _cell_of(self, instance_id: str, day: date) -> Cell:
        found = self._cell_by_launch.get((instance_id, day))
        if found is None:
            launch = self._launches[instance_id]
            key = CellKey(
                launch.owner or NOBODY,
                launch.lab or NOBODY,
                day,
                launch.instance_type,
                launch.market.value,
            )
            found = self.cells.setdefault(key, Cell())
            self._cell_by_launch[instance_id, day] = found
        return found
