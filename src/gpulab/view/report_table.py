"""A report for the terminal, for CSV and for JSON. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gpulab.model.report import (
    BillDay,
    Dimension,
    FeedCompared,
    Report,
    Row,
    Standing,
    StudentStanding,
)
from gpulab.model.statement import Category, StatementRead
from gpulab.view.console import table
from gpulab.view.words import counted, in_line, money, percent

ROW_COLUMNS = (
    "key",
    "runs",
    "hours",
    "gpu_hours",
    "usd",
    "instance_usd",
    "ebs_usd",
    "ipv4_usd",
    "saved_usd",
    "idle_hours",
    "wasted_usd",
    "interruptions",
)
STUDENT_COLUMNS = (
    "owner",
    "name",
    "group",
    "standing",
    "spent_usd",
    "budget_usd",
    "left_usd",
    "ends_at",
)
BILL_COLUMNS = (
    "day",
    "resource",
    "ledger_usd",
    "usage_usd",
    "difference_usd",
    "credit_usd",
    "tax_usd",
    "other_usd",
)
STATEMENT_COLUMNS = (
    "read_at",
    "path",
    "format",
    "lines",
    "first_day",
    "last_day",
    "usage_usd",
    "credit_usd",
    "tax_usd",
    "other_usd",
)
# What a row by student has beside the sums.
_OF_STUDENTS = ("name", "group", "standing", "budget_usd", "left_usd", "ends_at")
_HEADINGS = ("RUNS", "HOURS", "GPU-HOURS", "SPENT", "", "SAVED", "IDLE", "ENDED BY AWS")
# The column of the bars, and their greatest length.
_BAR, _BAR_WIDTH = 5, 24


def row_json(row: Row) -> dict[str, Any]:
    """Make a row of plain values."""
    return {column: getattr(row, column) for column in ROW_COLUMNS}


def student_json(student: StudentStanding) -> dict[str, Any]:
    """Make a student of plain values."""
    return {column: getattr(student, column) for column in STUDENT_COLUMNS}


def bill_json(day: BillDay) -> dict[str, Any]:
    """Make one instance or disk on one day of plain values; what is not compared has no difference."""
    ours = day.ledger_usd
    difference = None if ours is None else ours - day.usage_usd
    return {
        column: difference if column == "difference_usd" else getattr(day, column)
        for column in BILL_COLUMNS
    }


def statement_json(read: StatementRead) -> dict[str, Any]:
    """Make that a statement was read of plain values; its category without a line is 0."""
    sums = {f"{c}_usd": read.by_category.get(c, Decimal(0)) for c in Category}
    return {column: sums.get(column, getattr(read, column, None)) for column in STATEMENT_COLUMNS}


def report_json(report: Report) -> dict[str, Any]:
    """Make the document of `--json`."""
    by_week: dict[str, dict[str, Decimal]] = {}
    for (week, lab), usd in report.spent_by_week_and_lab.items():
        by_week.setdefault(week, {})[lab] = usd
    return {
        "begin": report.begin,
        "end": report.end,
        "price_rule": report.price_rule,
        "timezone": report.timezone,
        "total": row_json(report.total),
        **{f"by_{d.value}": [row_json(row) for row in report.rows[d]] for d in Dimension},
        "students": [student_json(student) for student in report.students],
        "spent_by_day": {day.isoformat(): usd for day, usd in report.spent_by_day},
        "spent_by_week_and_lab": by_week,
        "hours_by_weekday": report.hours_by_weekday,
        "interruptions": report.interruptions,
        "budget_usd": report.budget_usd,
        "pace": report.pace,
        "attempts": report.attempts,
        "statements": [
            {**statement_json(read), "digest": read.digest} for read in report.statements
        ],
        "bill": {
            "first_day": report.bill.first_day,
            "last_day": report.bill.last_day,
            "by_category": report.bill.by_category,
            "ledger_usd": report.bill.ledger_usd,
            "statement_usd": report.bill.statement_usd,
            "left_out": report.bill.left_out,
            "feed": report.bill.feed,
            "days": [bill_json(day) for day in report.bill.days],
        },
        "problems": [
            {"kind": one.kind, "subject": one.subject, "cause": one.cause}
            for one in report.problems
        ],
    }


def csv_rows(report: Report, dimension: Dimension) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Return the rows of `--csv` and their columns; by student with what is known of each beside the sums."""
    rows = [row_json(row) for row in report.rows[dimension]]
    if dimension is not Dimension.STUDENT or not report.students:
        return rows, ROW_COLUMNS
    known = {one.owner: student_json(one) for one in report.students}
    for row in rows:
        row |= {column: known.get(row["key"], {}).get(column) for column in _OF_STUDENTS}
    return rows, (*ROW_COLUMNS, *_OF_STUDENTS)


def report_lines(
    report: Report, dimension: Dimension, *, bar: str, limit: int, width: int | None = None
) -> list[str]:
    """
    Write a report for people: the sums, one table with bars, students to talk to, problems.

    Args:
        bar: The character of the bars; `#` where the terminal knows no blocks.
        limit: Rows and problems to show at most.
        width: Of the terminal; the bars take what the columns leave. `None` for no limit.
    """
    rows = sorted(report.rows[dimension], key=lambda row: -row.usd)
    if dimension is Dimension.WEEK:
        rows.sort(key=lambda row: row.key)
    names = {one.owner: one.name for one in report.students if dimension is Dimension.STUDENT}
    lines = [
        *_summary(report),
        "",
        _rows_table(rows[:limit], dimension, names=names, bar=bar, width=width),
    ]
    if len(rows) > limit:
        lines.append(f"... and {len(rows) - limit:,} more, see `--limit` and `--csv`")
    below = [
        *_students(report, limit),
        *_statements(report, limit),
        *_bill(report),
        *_problems(report, limit),
    ]
    return [*lines, *map(in_line, below)]


def span_text(report: Report) -> str:
    """Write from when to when, in the report's own time zone."""
    zone = zone_of(report)
    begin, end = report.begin.astimezone(zone), report.end.astimezone(zone)
    return f"{begin:%Y-%m-%d} to {end:%Y-%m-%d %H:%M %Z}"


def zone_of(report: Report) -> ZoneInfo:
    """Return the time zone of a report's days; UTC where this computer does not know it."""
    try:
        return ZoneInfo(report.timezone)
    except (ZoneInfoNotFoundError, ValueError):
        return ZoneInfo("UTC")


def _summary(report: Report) -> Sequence[str]:
    total = report.total
    parts = f"instances {money(total.instance_usd)}, disks {money(total.ebs_usd)}, addresses {money(total.ipv4_usd)}"
    idle = percent(total.idle_hours, total.hours)
    asked = report.attempts
    lines = [
        f"{money(total.usd)} from {span_text(report)}: {parts}",
        f"{counted(total.runs, 'run')}, {total.hours:,.1f} h, {total.gpu_hours:,.1f} GPU-hours, {counted(total.interruptions, 'interruption')}",
        f"saved {money(total.saved_usd)} against on-demand; idle {idle} of the hours, which cost {money(total.wasted_usd)}",
    ]
    if asked.asked:
        lines.append(f"asked AWS {counted(asked.asked, 'time')}, {asked.taken:,} taken")
    if report.budget_usd is not None:
        lines.append(
            f"budget {money(report.budget_usd)}, spent {percent(total.usd, report.budget_usd)}"
        )
    lines += [pace_text(report)] if report.pace else []
    return lines


def pace_text(report: Report) -> str:
    """Write how long the budget lasts at the last seven days' pace, and what that pace takes until the deadline; `""` without a budget."""
    pace, zone = report.pace, zone_of(report)
    if pace is None:
        return ""
    if not pace.usd_per_day:
        return "nothing was spent in the last 7 days"
    ends = (
        f"ends on {pace.ends_at.astimezone(zone):%Y-%m-%d}"
        if pace.ends_at
        else "lasts ten years and more"
    )
    text = f"at the pace of the last 7 days, {money(pace.usd_per_day)} a day, it {ends}"
    if pace.deadline is None or pace.needed_usd is None or report.budget_usd is None:
        return text
    left = max(report.budget_usd - report.total.usd, Decimal(0))
    return f"{text}; {money(pace.needed_usd)} needed until {pace.deadline.astimezone(zone):%Y-%m-%d}, {money(left)} left"


def _rows_table(
    rows: Sequence[Row],
    dimension: Dimension,
    *,
    names: Mapping[str, str],
    bar: str,
    width: int | None,
) -> str:
    """Write one line a row. A name comes last: its letters may be wider than a column counts."""
    has_names = any(names.values())
    headings = [dimension.value.upper(), *_HEADINGS, *(["NAME"] if has_names else [])]
    cells = [
        [
            row.key,
            f"{row.runs:,}",
            f"{row.hours:,.1f}",
            f"{row.gpu_hours:,.1f}",
            money(row.usd),
            "",
            money(row.saved_usd),
            percent(row.idle_hours, row.hours),
            f"{row.interruptions:,}",
            *([names.get(row.key, "")] if has_names else []),
        ]
        for row in rows
    ]
    right = [n for n in range(1, len(_HEADINGS) + 1) if n != _BAR]
    taken = max(len(line) for line in table(cells, headings, right=right).splitlines())
    room = _BAR_WIDTH if width is None else max(0, min(_BAR_WIDTH, width - taken))
    most = max((row.usd for row in rows), default=Decimal(0))
    for line, row in zip(cells, rows, strict=True):
        line[_BAR] = bar * (int(room * row.usd / most + Decimal("0.5")) if most else 0)
    return table(cells, headings, right=right)


def _students(report: Report, limit: int) -> Sequence[str]:
    lines: list[str] = []
    for standing, one_is, many_are in (
        (Standing.OVER, "over budget", "over budget"),
        (Standing.RUNS_OUT, "runs out before the deadline", "run out before the deadline"),
        (Standing.NOT_STARTED, "has not started", "have not started"),
    ):
        who = [one for one in report.students if one.standing is standing]
        if who:
            shown = ", ".join(
                f"{one.name} ({one.owner})" if one.name else one.owner for one in who[:limit]
            )
            more = f" and {len(who) - limit} more" if len(who) > limit else ""
            lines.append(f"{len(who)} {one_is if len(who) == 1 else many_are}: {shown}{more}")
    return ["", *lines] if lines else []


def _statements(report: Report, limit: int) -> Sequence[str]:
    """Write when each statement was read first, the newest ones."""
    if not report.statements:
        return []
    zone = zone_of(report)
    lines = [
        f"statement read on {one.read_at.astimezone(zone):%Y-%m-%d}: {one.path}, {one.format},"
        f" {counted(one.lines, 'line')}{_days_text(one)}: {sums_text(one.by_category)}"
        for one in report.statements[-limit:]
    ]
    return ["", *lines]


def _days_text(read: StatementRead) -> str:
    return f", {read.first_day} to {read.last_day}" if read.first_day else ""


def sums_text(by_category: Mapping[Category, Decimal]) -> str:
    """Write gross usage, credit and tax apart; `nothing` of an empty statement."""
    parts = [f"{one.value} {money(by_category[one])}" for one in Category if one in by_category]
    return ", ".join(parts) or "nothing"


def feed_text(feed: FeedCompared) -> str:
    """Write what a feed and a full statement both bill, and which of the two counts."""
    text = (
        f"the spot data feed's {counted(feed.instance_days, 'instance-day')} that the statements have too are compared"
        f" and not counted: feed {money(feed.feed_usd)}, statements {money(feed.statement_usd)}"
    )
    if not feed.from_feed:
        return text
    days = ", ".join(day.isoformat() for day in feed.open_days)
    return (
        f"{text}; but on {days}, which no statement has whole yet,"
        f" the feed says more of {counted(feed.from_feed, 'instance')}, and counts"
    )


def _bill(report: Report) -> Sequence[str]:
    bill = report.bill
    if bill.first_day is None:
        return []
    parts = ", ".join(f"{name} {money(usd)}" for name, usd in sorted(bill.by_category.items()))
    return [
        "",
        f"AWS's statements for {bill.first_day} to {bill.last_day}: {parts}",
        f"of what both know: ledger {money(bill.ledger_usd)}, statements {money(bill.statement_usd)}",
        *([feed_text(bill.feed)] if bill.feed else []),
        *(
            [f"left out, as another file holds that bill: {', '.join(bill.left_out)}"]
            if bill.left_out
            else []
        ),
    ]


def _problems(report: Report, limit: int) -> Sequence[str]:
    if not report.problems:
        return ["", "everything adds up"]
    lines = [f"  {one.kind}: {one.subject}: {one.cause}" for one in report.problems[:limit]]
    more = len(report.problems) - limit
    return [
        "",
        f"{counted(len(report.problems), 'problem')}:",
        *lines,
        *([f"  ... and {more:,} more, see `--json`"] if more > 0 else []),
    ]
