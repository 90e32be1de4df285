"""A whole term: a class of students, thirteen Mondays, bad weather; and the count of what came of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3

from gpulab.model.fact import Fact, FactKind
from gpulab.model.timeline import Timeline
from gpulab.sandbox import Sandbox
from gpulab.sandbox.clock import ManualClock
from gpulab.spending.charging import cost_of
from gpulab.spending.exact import Usd
from gpulab.spending.facts import timeline_of
from soaking.clockwork import Clockwork
from soaking.figures import Figures
from soaking.machines import Machines, Tally
from soaking.student import Student
from soaking.weather import Weather

# In the past: files are compared with this computer's clock, which must not be behind them.
_FIRST_MONDAY = datetime(2026, 2, 2, 11, 35, tzinfo=UTC)
_WEEK = timedelta(weeks=1)
_LABS = 6
_CENT = Decimal("0.01")
_OLD_VERSIONS = timedelta(days=30)


@dataclass(frozen=True)
class Size:
    """
    How large a term is.

    Attributes:
        swept_everywhere: So many students sweep every region, which takes the simulated AWS seconds each; the others their own.
        first: The number of the first student, where this is a share of a larger term.
    """

    students: int
    weeks: int
    swept_everywhere: int = 1
    first: int = 0
    sessions_a_week: float = 1.0


@dataclass
class Term:
    """One term in one simulated AWS; each student has an account of the own."""

    size: Size
    seed: int
    world: Sandbox
    clockwork: Clockwork
    machines: Machines
    figures: Figures
    regions: tuple[str, ...] = ("us-east-1",)

    def now(self) -> datetime:
        """The simulated moment."""
        return self.world.now()

    def play(self, folder: Path, say: Callable[[str], None]) -> None:
        """Let everybody live through the term, then count."""
        numbers = range(self.size.first, self.size.first + self.size.students)
        students = [Student(self, n, folder / f"s{n:03}") for n in numbers]
        zones = [f"{self.regions[0]}{letter}" for letter in "abcdf"]
        weather = Weather(self.clockwork, zones, self.seed, share=self.size.first)
        self.machines.on_boot = weather.interrupt_later
        hours = [random.Random(f"{self.seed}/hours/{n}") for n in numbers]
        for week in range(self.size.weeks):
            monday = _FIRST_MONDAY + week * _WEEK
            weather.begin_week(monday)
            self._plan_week(zip(students, hours, strict=True), week, monday)
            self.clockwork.run(monday + timedelta(days=6))
            self._sunday(students, monday + timedelta(days=6))
            say(self._progress(week))
        self.figures.outages = weather.outages
        self._end(students)

    def _plan_week(
        self, students: Iterable[tuple[Student, random.Random]], week: int, monday: datetime
    ) -> None:
        """Labs begin on Monday within a quarter of an hour; later in the term everybody works on a project at any time."""
        for student, chance in students:
            if week < _LABS:
                starts = [monday + timedelta(seconds=chance.uniform(0, 900))]
            else:
                count = max(1, round(self.size.sessions_a_week * chance.uniform(0.5, 1.5)))
                starts = [monday + timedelta(hours=chance.uniform(0, 110)) for _ in range(count)]
            name = f"week{week + 1}" if week < _LABS else "project"
            for start in sorted(starts):
                minutes = chance.triangular(20, 200, 90)
                self.clockwork.begin(start, _bound(student, name, minutes))

    def _sunday(self, students: list[Student], at: datetime) -> None:
        for number, student in enumerate(students):
            self.clockwork.begin(at + timedelta(seconds=20 * number), student.sunday)
        self.clockwork.run(at + timedelta(hours=23))
        self.figures.calls += len(self.world.calls)
        self.world.calls.clear()
        self._expire_old_versions()

    def _expire_old_versions(self) -> None:
        """Do what the buckets' own lifecycle rule says, which moto only stores."""
        before = self.now() - _OLD_VERSIONS
        s3 = boto3.client("s3")
        for bucket in s3.list_buckets()["Buckets"]:
            pages = s3.get_paginator("list_object_versions").paginate(Bucket=bucket["Name"])
            old = [
                {"Key": version["Key"], "VersionId": version["VersionId"]}
                for page in pages
                for version in page.get("Versions", [])
                if not version["IsLatest"] and version["LastModified"] < before
            ]
            for first in range(0, len(old), 1000):
                chosen: Any = {"Objects": old[first : first + 1000]}
                s3.delete_objects(Bucket=bucket["Name"], Delete=chosen)

    def _progress(self, week: int) -> str:
        seen = self.figures.sample(self.now(), self.machines.tally.booted)
        failed = sum(self.figures.failures.values())
        return (
            f"week {week + 1:>2}: {seen.launches} launches, {self.machines.tally.interrupted} interruptions,"
            f" {failed} commands failed, {seen.memory_mb} MB, {seen.threads} threads, {seen.files} files"
        )

    # -- the end ---------------------------------------------------------------------------------------------------------------

    def _end(self, students: list[Student]) -> None:
        self.clockwork.run(self.now() + timedelta(hours=20))
        self.figures.running_at_end = len(self.world.instances("pending", "running"))
        self.clockwork.begin(self.now(), lambda: self._last_day(students))
        self.clockwork.run(self.now() + timedelta(days=2))
        self.figures.orphans = self._orphans()
        self._compare_dollars(students)
        self.figures.tracebacks = self.clockwork.tracebacks

    def _last_day(self, students: list[Student]) -> None:
        """Sweep and fetch, one student after the other; all but some look in the profile's regions only, as most accounts may."""
        for number, student in enumerate(students, self.size.first):
            if number == max(self.size.first, self.size.swept_everywhere):
                self.world.deny("ec2:DescribeRegions")
            student.sunday()
            student.last_day()
            self.figures.wrong_at_end += [f"{student.account}: {f}" for f in student.wrong_files()]

    def _orphans(self) -> list[str]:
        """Name everything that would be billed from now on, as the simulated AWS itself knows it."""
        alive = self.world.instances("pending", "running", "stopping", "stopped")
        held = self.world.bill(self.now()).lines
        recent = self.now() - timedelta(minutes=1)
        billed = {f"{line.kind} {line.resource_id}" for line in held if line.ends_at > recent}
        return sorted(billed | {f"instance {i['InstanceId']}" for i in alive})

    def _compare_dollars(self, students: list[Student]) -> None:
        billed: dict[str, Decimal] = {}
        named: dict[str, set[str]] = {}
        bill = self.world.bill()
        for line in bill.lines:
            billed[line.account] = billed.get(line.account, Decimal(0)) + line.usd
            if line.kind == "instance":
                named.setdefault(line.account, set()).add(line.resource_id)
        self.figures.billed_usd = sum(billed.values(), Decimal(0))
        for student in students:
            timeline = timeline_of(student.ledger().ledger.facts()).timeline
            usd = Usd.of(cost_of(timeline, as_of=self.now()).charges).rounded()
            known = {life.id for life in timeline.instances}
            owed = billed.get(student.account, Decimal(0))
            missing = named.get(student.account, set()) - known
            self.figures.unknown_resources += [
                f"{student.account}: {id_}" for id_ in sorted(missing)
            ]
            self.figures.unknown_usd += sum((bill.of(id_) for id_ in missing), Decimal(0))
            self.figures.estimated_usd += usd
            apart = abs(usd - owed)
            if apart > self.figures.most_apart[1]:
                self.figures.most_apart = (student.account, apart)
            if apart > _CENT:
                self._tell_apart(student, timeline)

    def _tell_apart(self, student: Student, timeline: Timeline) -> None:
        """Name the instances whose estimate is more than a cent off, with every end that the ledger knows of them."""
        ends: dict[str, list[Fact]] = {}
        for fact in student.ledger().ledger.facts(FactKind.ENDED):
            ends.setdefault(fact.subject, []).append(fact)
        bill = self.world.bill()
        for life in timeline.instances:
            volumes = tuple(v for v in timeline.volumes if v.instance_id == life.id)
            own = Timeline((life,), volumes)
            usd = Usd.of(cost_of(own, as_of=self.now()).charges).rounded()
            owed = bill.of(life.id) + sum((bill.of(v.id) for v in volumes), Decimal(0))
            known = ends.get(life.id, [])
            if usd - owed > _CENT and known and all(_is_guessed_end(fact) for fact in known):
                self.figures.end_unknown.append(usd - owed)
            elif abs(usd - owed) > _CENT:
                told = [f"{e.at:%d %H:%M:%S} {e.source} {e.details.get('reason')}" for e in known]
                begun = f"{life.runs[0].begins_at:%m-%d %H:%M:%S}"
                self.figures.apart.append(
                    f"{student.account} {life.id} from {begun}: estimated {usd:.4f}, billed {owed:.4f}; ends {told}"
                )


def _is_guessed_end(fact: Fact) -> bool:
    """Whether the ledger says that it had to guess, because AWS had forgotten the instance before anybody looked."""
    return fact.details.get("reason", "").startswith("gone; its end is not known")


def play(
    size: Size, *, seed: int, folder: Path, say: Callable[[str], None]
) -> tuple[Figures, Tally]:
    """Play a term and return what came of it."""
    began = time.monotonic()
    machines = Machines(folder / "machines", f"{seed}/{size.first}")
    start = _FIRST_MONDAY - timedelta(hours=2)
    with Sandbox(seed=seed, clock=ManualClock(start), machines=machines) as world:
        machines.clockwork = Clockwork(world)
        world.set_credit("5000")
        for code in ("L-3819A6DF", "L-DB2E81BA"):
            world.set_quota(code, "us-east-1", 64)
        term = Term(size, seed, world, machines.clockwork, machines, Figures())
        with machines.clockwork.botocore_waits_here():
            term.play(folder, say)
    term.figures.real_s = time.monotonic() - began
    return term.figures, machines.tally


def _bound(student: Student, name: str, minutes: float) -> Callable[[], None]:
    return lambda: student.session(name, minutes=minutes)
