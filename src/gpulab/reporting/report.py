"""The report: ledgers, roster and statements joined. Hides the order of the sums; collects every problem it meets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal

from gpulab.model.course import Student
from gpulab.model.discrepancy import Discrepancy, DiscrepancyKind
from gpulab.model.report import Attempts, Dimension, Interruption, Report, Row
from gpulab.model.statement import Statement
from gpulab.model.timeline import Costs, EndedBy, PriceRule
from gpulab.reporting.cells import (
    NOBODY,
    Catalogue,
    Cell,
    Cells,
    cells_of,
    folded,
    row_of,
    rows_of,
    week_of,
)
from gpulab.reporting.reconcile import reconcile
from gpulab.reporting.standing import Budget, pace_of, standing_problems, standings_of
from gpulab.spending.charging import cost_of, is_free
from gpulab.spending.facts import LedgerReading


@dataclass(frozen=True)
class Question:
    """
    What to report.

    Attributes:
        begin: From when; `None` for the first charge.
        now: Up to when, and what open things are billed to; aware UTC.
        zone: Of days, weeks and hours; a `ZoneInfo` or `UTC`.
        has_names: Whether students' names may be shown.
    """

    now: datetime
    begin: datetime | None = None
    price_rule: PriceRule = PriceRule.HOUR_START
    zone: tzinfo = UTC
    budget: Budget = field(default_factory=Budget)
    catalogue: Catalogue = field(default_factory=Catalogue)
    has_names: bool = False


def report_of(
    reading: LedgerReading,
    question: Question,
    *,
    students: Iterable[Student] = (),
    statements: Iterable[Statement] = (),
    has_bill_days: bool = False,
) -> Report:
    """
    Make a report.

    Args:
        reading: Of one ledger, or of the facts of many together.
        students: The roster; empty when there is none, and then no owner is unknown.
        has_bill_days: Whether the bill lists every instance and disk by day.
    """
    roster = tuple(students)
    now = question.now.astimezone(UTC).replace(microsecond=0)
    costs = cost_of(reading.timeline, as_of=now, price_rule=question.price_rule)
    begin = question.begin or min((c.begins_at for c in costs.charges), default=now)
    cells = cells_of(
        reading,
        costs,
        begin=begin,
        now=now,
        zone=question.zone,
        catalogue=question.catalogue,
    )
    groups = {student.owner: student.group or NOBODY for student in roster}
    folds = _Folds.of(cells)
    week = _week(cells, question, now)
    standings = standings_of(
        roster,
        spent={owner: cell.total.rounded() for owner, cell in folds.by_owner.items()},
        week=week,
        budget=question.budget,
        now=now,
        has_names=question.has_names,
    )
    total = folds.total()
    budget = replace(question.budget, usd=_of_all(question.budget.usd, len(standings)))
    bill, differences = reconcile(statements, costs.charges, has_days=has_bill_days)
    return Report(
        begin=begin,
        end=now,
        price_rule=question.price_rule,
        timezone=str(question.zone),
        total=total,
        rows=folds.rows(groups),
        students=standings,
        spent_by_day=folds.spent_by_day(),
        spent_by_week_and_lab=folds.spent_by_week_and_lab(),
        hours_by_weekday=_hours_by_weekday(reading, begin, now, question.zone),
        interruptions=_interruptions(reading, begin, now),
        budget_usd=budget.usd,
        pace=pace_of(budget, spent=total.usd, week_usd=sum(week.values(), Decimal(0)), now=now),
        attempts=_attempts(reading, question.begin, now),
        statements=reading.statements,
        bill=bill,
        problems=(
            *reading.problems,
            *_unpriced(costs),
            *_past_their_end(reading, now),
            *_unknown_owners(reading, roster),
            *standing_problems(standings),
            *differences,
        ),
    )


@dataclass(frozen=True)
class _Folds:
    """The cells added up three ways; every table comes from these, so that no cell is added six times."""

    by_owner: Mapping[str, Cell]
    by_day_and_lab: Mapping[tuple[date, str], Cell]
    by_kind: Mapping[tuple[str, str], Cell]

    @classmethod
    def of(cls, cells: Cells) -> _Folds:
        return cls(
            folded(cells, lambda key: key.owner),
            folded(cells, lambda key: (key.day, key.lab)),
            folded(cells, lambda key: (key.instance_type, key.market)),
        )

    def rows(self, groups: Mapping[str, str]) -> dict[Dimension, tuple[Row, ...]]:
        return {
            Dimension.STUDENT: rows_of(self.by_owner),
            Dimension.GROUP: rows_of(folded(self.by_owner, lambda o: groups.get(o, NOBODY))),
            Dimension.LAB: rows_of(folded(self.by_day_and_lab, lambda key: key[1])),
            Dimension.WEEK: rows_of(folded(self.by_day_and_lab, lambda key: week_of(key[0]))),
            Dimension.TYPE: rows_of(folded(self.by_kind, lambda key: key[0])),
            Dimension.MARKET: rows_of(folded(self.by_kind, lambda key: key[1])),
        }

    def total(self) -> Row:
        return row_of("total", folded(self.by_kind, lambda _: "").get("", Cell()))

    def spent_by_day(self) -> tuple[tuple[date, Decimal], ...]:
        days = folded(self.by_day_and_lab, lambda key: key[0])
        if not days:
            return ()
        first, nothing = min(days), Cell()
        every = (first + timedelta(days=n) for n in range((max(days) - first).days + 1))
        return tuple((day, days.get(day, nothing).total.rounded()) for day in every)

    def spent_by_week_and_lab(self) -> dict[tuple[str, str], Decimal]:
        found = folded(self.by_day_and_lab, lambda key: (week_of(key[0]), key[1]))
        return {key: found[key].total.rounded() for key in sorted(found)}


def _week(cells: Cells, question: Question, now: datetime) -> dict[str, Decimal]:
    """Return what was spent in the last seven days, by owner."""
    since = (now - timedelta(days=7)).astimezone(question.zone).date()
    recent = folded({k: c for k, c in cells.items() if k.day > since}, lambda key: key.owner)
    return {owner: cell.total.rounded() for owner, cell in recent.items()}


def _of_all(usd: Decimal | None, students: int) -> Decimal | None:
    return None if usd is None else usd * max(1, students)


def _attempts(reading: LedgerReading, begin: datetime | None, end: datetime) -> Attempts:
    some = [one for one in reading.asked if one.at <= end and (begin is None or begin <= one.at)]
    return Attempts(len(some), sum(bool(one.instance_id) for one in some))


def _hours_by_weekday(
    reading: LedgerReading, begin: datetime, end: datetime, zone: tzinfo
) -> tuple[tuple[Decimal, ...], ...]:
    # Full hours of UTC are full hours of nearly every zone, and where not, half an hour off is no harm here.
    by_hour: dict[int, int] = defaultdict(int)
    for life in reading.timeline.instances:
        for run in life.runs:
            at = int(max(run.begins_at, begin).timestamp())
            last = int(min(run.ends_at or end, end).timestamp())
            while at < last:
                until = min(last, at - at % 3600 + 3600)
                by_hour[at // 3600] += until - at
                at = until
    seconds = [[0] * 24 for _ in range(7)]
    for hour, count in by_hour.items():
        local = datetime.fromtimestamp(hour * 3600, zone)
        seconds[local.weekday()][local.hour] += count
    hundredth = Decimal("0.01")
    return tuple(tuple((Decimal(s) / 3600).quantize(hundredth) for s in day) for day in seconds)


def _interruptions(
    reading: LedgerReading, begin: datetime, end: datetime
) -> tuple[Interruption, ...]:
    found = [
        Interruption(
            run.ends_at,
            life.owner or NOBODY,
            life.instance_type,
            life.zone,
            is_free(run, life.market),
        )
        for life in reading.timeline.instances
        for run in life.runs
        if run.ended_by is EndedBy.AWS and run.ends_at and begin <= run.ends_at <= end
    ]
    return tuple(sorted(found, key=lambda one: (one.at, one.owner)))


def _unpriced(costs: Costs) -> Iterable[Discrepancy]:
    for one in costs.unpriced:
        cause = f"{one.what} is not known; it is left out, so the sums are too low"
        yield Discrepancy(DiscrepancyKind.NO_PRICE, one.resource, cause)


def _past_their_end(reading: LedgerReading, now: datetime) -> Iterable[Discrepancy]:
    """Name instances whose planned end is over and whose real end nobody wrote."""
    for life in reading.timeline.instances:
        expires_at = reading.launches[life.id].expires_at
        if (
            life.runs[-1].ends_at is None
            and expires_at
            and expires_at < now - timedelta(minutes=15)
        ):
            cause = f"it should have ended at {expires_at:%Y-%m-%dT%H:%MZ} and no end was written; it is charged until now"
            yield Discrepancy(DiscrepancyKind.NO_END, life.id, cause)


def _unknown_owners(reading: LedgerReading, roster: tuple[Student, ...]) -> Iterable[Discrepancy]:
    known = {student.owner for student in roster}
    owners = {launch.owner or NOBODY for launch in reading.launches.values()}
    for owner in sorted(owners - known) if roster else ():
        yield Discrepancy(
            DiscrepancyKind.UNKNOWN_OWNER, owner, "it has spent money and is not in the roster"
        )
