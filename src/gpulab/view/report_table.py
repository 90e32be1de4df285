"""A report for the terminal, for CSV and for JSON. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from gpulab.model.report import Dimension, Report, Row, Standing, StudentStanding
from gpulab.view.console import table
from gpulab.view.words import money, percent

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
_BAR_WIDTH = 24


def row_json(row: Row) -> dict[str, Any]:
    """Make a row of plain values."""
    return {column: getattr(row, column) for column in ROW_COLUMNS}


def student_json(student: StudentStanding) -> dict[str, Any]:
    """Make a student of plain values."""
    return {column: getattr(student, column) for column in STUDENT_COLUMNS}


def counted(number: int, noun: str) -> str:
    """Write `1 run`, `2 runs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


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
        "bill": {
            "first_day": report.bill.first_day,
            "last_day": report.bill.last_day,
            "by_category": report.bill.by_category,
            "ledger_usd": report.bill.ledger_usd,
            "statement_usd": report.bill.statement_usd,
            "left_out": report.bill.left_out,
        },
        "problems": [
            {"kind": one.kind, "subject": one.subject, "cause": one.cause}
            for one in report.problems
        ],
    }


def report_lines(report: Report, dimension: Dimension, *, bar: str, limit: int) -> list[str]:
    """
    Write a report for people: the sums, one table with bars, students to talk to, problems.

    Args:
        bar: The character of the bars; `#` where the terminal knows no blocks.
        limit: Rows and problems to show at most.
    """
    rows = sorted(report.rows[dimension], key=lambda row: (-row.usd, row.key))
    if dimension is Dimension.WEEK:
        rows.sort(key=lambda row: row.key)
    lines = [*_summary(report), "", _rows_table(rows[:limit], dimension, bar=bar)]
    if len(rows) > limit:
        lines.append(f"... and {len(rows) - limit} more, see `--csv`")
    return [*lines, *_students(report, limit), *_bill(report), *_problems(report, limit)]


def _summary(report: Report) -> Sequence[str]:
    total = report.total
    span = f"{report.begin.astimezone():%Y-%m-%d} to {report.end.astimezone():%Y-%m-%d %H:%M %Z}"
    parts = f"instances {money(total.instance_usd)}, disks {money(total.ebs_usd)}, addresses {money(total.ipv4_usd)}"
    lines = [
        f"{money(total.usd)} from {span}: {parts}",
        f"{counted(total.runs, 'run')}, {total.hours:.1f} h, {total.gpu_hours:.1f} GPU-hours, {counted(total.interruptions, 'interruption')}",
        f"saved {money(total.saved_usd)} against on-demand; idle {percent(total.idle_hours, total.hours)} of the hours, {money(total.wasted_usd)}",
    ]
    if report.budget_usd is not None:
        lines.append(
            f"budget {money(report.budget_usd)}, spent {percent(total.usd, report.budget_usd)}"
        )
    return lines


def _rows_table(rows: Sequence[Row], dimension: Dimension, *, bar: str) -> str:
    most = max((row.usd for row in rows), default=Decimal(0))
    cells = [
        [
            row.key,
            str(row.runs),
            f"{row.hours:.1f}",
            f"{row.gpu_hours:.1f}",
            money(row.usd),
            money(row.saved_usd),
            percent(row.idle_hours, row.hours),
            str(row.interruptions),
            bar * (int(_BAR_WIDTH * row.usd / most + Decimal("0.5")) if most else 0),
        ]
        for row in rows
    ]
    headings = [
        dimension.value.upper(),
        "RUNS",
        "HOURS",
        "GPU-HOURS",
        "SPENT",
        "SAVED",
        "IDLE",
        "ENDED BY AWS",
        "",
    ]
    return table(cells, headings, right=range(1, 8))


def _students(report: Report, limit: int) -> Sequence[str]:
    lines: list[str] = []
    for standing, title in (
        (Standing.OVER, "over budget"),
        (Standing.RUNS_OUT, "will run out before the deadline"),
        (Standing.NOT_STARTED, "have not started"),
    ):
        who = [one for one in report.students if one.standing is standing]
        if who:
            shown = ", ".join(f"{one.name or one.owner}" for one in who[:limit])
            more = f" and {len(who) - limit} more" if len(who) > limit else ""
            lines.append(f"{len(who)} {title}: {shown}{more}")
    return ["", *lines] if lines else []


def _bill(report: Report) -> Sequence[str]:
    bill = report.bill
    if bill.first_day is None:
        return []
    parts = ", ".join(f"{name} {money(usd)}" for name, usd in sorted(bill.by_category.items()))
    return [
        "",
        f"AWS's statements for {bill.first_day} to {bill.last_day}: {parts}",
        f"of what both know: ledger {money(bill.ledger_usd)}, statements {money(bill.statement_usd)}",
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
        *([f"  ... and {more} more, see `--json`"] if more > 0 else []),
    ]
