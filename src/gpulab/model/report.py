"""What a report says, as data: sums by dimension, where each student stands, what does not add up. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum

from gpulab.model.discrepancy import Discrepancy
from gpulab.model.statement import StatementRead
from gpulab.model.timeline import PriceRule


class Dimension(StrEnum):
    """What a report can be sorted by."""

    STUDENT = "student"
    GROUP = "group"
    LAB = "lab"
    WEEK = "week"
    TYPE = "type"
    MARKET = "market"


@dataclass(frozen=True, slots=True)
class Row:
    """
    The sums of one student, group, lab, week, instance type or market. Amounts in USD, ten decimals.

    Attributes:
        key: Owner id, group, lab id, ISO week `2026-W43`, type or market; `-` where none is named.
        runs: Starts of instances.
        hours: Of instances running, not of seconds billed.
        gpu_hours: Hours times GPUs.
        saved_usd: Less than the same hours on demand; only of spot runs whose on-demand price is known.
        idle_hours: Hours in which neither GPU nor CPU worked, as the instances saw it.
        wasted_usd: What the idle hours cost.
        interruptions: Runs that AWS ended.
    """

    key: str
    runs: int
    hours: Decimal
    gpu_hours: Decimal
    usd: Decimal
    instance_usd: Decimal
    ebs_usd: Decimal
    ipv4_usd: Decimal
    saved_usd: Decimal
    idle_hours: Decimal
    wasted_usd: Decimal
    interruptions: int


class Standing(StrEnum):
    """Where a student stands."""

    NOT_STARTED = "not started"
    FINE = "fine"
    RUNS_OUT = "runs out"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class StudentStanding:
    """
    One student against the budget.

    Attributes:
        name: Empty unless names were asked for.
        budget_usd: `None` when there is none.
        left_usd: Never below 0; `None` without a budget.
        ends_at: When the budget ends at the last seven days' pace; `None` when nothing was spent then.
    """

    owner: str
    name: str
    group: str
    standing: Standing
    spent_usd: Decimal
    budget_usd: Decimal | None
    left_usd: Decimal | None
    ends_at: datetime | None


@dataclass(frozen=True, slots=True)
class Interruption:
    """AWS took an instance away; `was_free` when it was in its first hour."""

    at: datetime
    owner: str
    instance_type: str
    zone: str
    was_free: bool


@dataclass(frozen=True, slots=True)
class BillDay:
    """
    One instance or disk on one UTC day, the ledger beside AWS's statements.

    Attributes:
        resource: Empty for everything else of that day: addresses, transfer, tax, what is not ours.
        ledger_usd: `None` for everything else, which is not compared.
        usage_usd: Gross, before credits.
    """

    day: date
    resource: str
    ledger_usd: Decimal | None
    usage_usd: Decimal
    credit_usd: Decimal
    tax_usd: Decimal
    other_usd: Decimal


@dataclass(frozen=True, slots=True)
class FeedCompared:
    """
    What a spot data feed says of instances and days that a full statement bills too; one of the two counts.

    Attributes:
        instance_days: How many pairs of instance and UTC day both have.
        from_feed: For how many of them the feed counts, since it has more of a day that no statement has whole.
        open_days: Those days.
    """

    instance_days: int
    feed_usd: Decimal
    statement_usd: Decimal
    from_feed: int = 0
    open_days: tuple[date, ...] = ()


@dataclass(frozen=True)
class Bill:
    """
    What AWS's own statements say for the same time, gross usage, credit and tax apart.

    Attributes:
        feed: `None` where no feed and full statement speak of the same.
        days: Sorted; empty unless asked for, as a term has hundreds of thousands.
        first_day, last_day: UTC days that the statements cover; `None` without statements.
        ledger_usd: What the ledger counts for these days, of what the statements name by resource.
        statement_usd: The same from the statements.
        left_out: Names of the files whose bill another file holds, newer or in another format.
    """

    by_category: Mapping[str, Decimal] = field(default_factory=dict)
    first_day: date | None = None
    last_day: date | None = None
    ledger_usd: Decimal = Decimal(0)
    statement_usd: Decimal = Decimal(0)
    left_out: tuple[str, ...] = ()
    feed: FeedCompared | None = None
    days: tuple[BillDay, ...] = ()


@dataclass(frozen=True, slots=True)
class Pace:
    """
    How fast the budget goes, beside how long it has to last.

    Attributes:
        usd_per_day: Of the last seven days.
        ends_at: When what is left ends at this pace; `None` when nothing was spent, or not for ten years.
        deadline: Until when it has to last; `None` when nobody said, or when that is over.
        needed_usd: What this pace takes until the deadline; `None` without one.
    """

    usd_per_day: Decimal
    ends_at: datetime | None
    deadline: datetime | None
    needed_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class Attempts:
    """How often AWS was asked for an instance, and how many it launched."""

    asked: int = 0
    taken: int = 0


@dataclass(frozen=True)
class Report:
    """
    A whole report.

    Attributes:
        begin, end: The span that was reported; aware UTC.
        rows: By dimension, each sorted by key.
        spent_by_day: Local days, ascending, without gaps.
        spent_by_week_and_lab: (week, lab) to USD.
        hours_by_weekday: 7 x 24 instance-hours, Monday first, local time.
        pace: `None` without a budget.
        statements: That the ledger knows of, by the moment at which they were read first.
    """

    begin: datetime
    end: datetime
    price_rule: PriceRule
    timezone: str
    total: Row
    rows: Mapping[Dimension, tuple[Row, ...]]
    students: tuple[StudentStanding, ...]
    spent_by_day: tuple[tuple[date, Decimal], ...]
    spent_by_week_and_lab: Mapping[tuple[str, str], Decimal]
    hours_by_weekday: tuple[tuple[Decimal, ...], ...]
    interruptions: tuple[Interruption, ...]
    budget_usd: Decimal | None
    pace: Pace | None
    attempts: Attempts
    statements: tuple[StatementRead, ...]
    bill: Bill
    problems: tuple[Discrepancy, ...]
