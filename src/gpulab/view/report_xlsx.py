"""A report as a workbook. Hides xlsxwriter; refuses formulas and control characters in every cell."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from gpulab.model.report import Dimension, Report
from gpulab.view.console import csv_cell
from gpulab.view.report_table import (
    BILL_COLUMNS,
    ROW_COLUMNS,
    STATEMENT_COLUMNS,
    STUDENT_COLUMNS,
    bill_json,
    row_json,
    statement_json,
    student_json,
)

_PROBLEM_COLUMNS = ("kind", "subject", "cause")
# A sheet has 1,048,576 rows at most.
_MOST_ROWS = 1_000_000
# Characters that XML cannot hold; every other control character is gone already.
_NOT_XML = {0xFFFE: "�", 0xFFFF: "�"}


def workbook(report: Report) -> bytes:
    """
    Write a workbook: one sheet for each dimension, the students and the problems; with statements, what was read and the bill by day.

    Amounts are numbers to a sheet, so they lose what a double cannot hold; `--json` has every digit.
    """
    from xlsxwriter import Workbook  # type: ignore[import-untyped]

    content = io.BytesIO()
    book = Workbook(
        content,
        {"in_memory": True, "strings_to_formulas": False, "strings_to_urls": False},
    )
    formats = {
        "head": book.add_format({"bold": True, "bottom": 1}),
        "usd": book.add_format({"num_format": "$#,##0.00"}),
        "exact usd": book.add_format({"num_format": "$#,##0.000000"}),
        "count": book.add_format({"num_format": "#,##0"}),
        "hours": book.add_format({"num_format": "#,##0.0"}),
    }
    sheets: list[tuple[str, Sequence[str], Iterable[Mapping[str, Any]]]] = [
        (f"by {d.value}", ROW_COLUMNS, [row_json(row) for row in report.rows[d]]) for d in Dimension
    ]
    sheets.append(("students", STUDENT_COLUMNS, [student_json(s) for s in report.students]))
    problems = [{"kind": p.kind, "subject": p.subject, "cause": p.cause} for p in report.problems]
    sheets.append(("problems", _PROBLEM_COLUMNS, problems))
    if report.statements:
        read = [statement_json(one) for one in report.statements]
        sheets.append(("statements", STATEMENT_COLUMNS, read))
    days = report.bill.days
    for number, first in enumerate(range(0, len(days), _MOST_ROWS), 1):
        some = [
            bill_json(day) | {"resource": day.resource or "everything else"}
            for day in days[first : first + _MOST_ROWS]
        ]
        sheets.append((f"bill {number}" if number > 1 else "bill", BILL_COLUMNS, some))
    for name, columns, rows in sheets:
        _fill(book.add_worksheet(name), columns, list(rows), formats)
    book.close()
    return content.getvalue()


def _fill(
    sheet: Any, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], formats: dict[str, Any]
) -> None:
    for x, column in enumerate(columns):
        sheet.write_string(0, x, column.replace("_", " "), formats["head"])
        for y, row in enumerate(rows, 1):
            _write(sheet, y, x, row[column], formats[_format_of(column)])
    sheet.freeze_panes(1, 1)
    sheet.autofilter(0, 0, max(1, len(rows)), len(columns) - 1)
    sheet.autofit()


def _format_of(column: str) -> str:
    if column in BILL_COLUMNS and column.endswith("usd"):
        return "exact usd"
    if column.endswith("usd"):
        return "usd"
    return "hours" if column.endswith("hours") else "count"


def _write(sheet: Any, y: int, x: int, value: Any, number_format: Any) -> None:
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        sheet.write_number(y, x, float(value), number_format)
    elif value is not None:
        sheet.write_string(y, x, csv_cell(value).translate(_NOT_XML))
