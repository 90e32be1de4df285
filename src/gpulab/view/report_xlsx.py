"""A report as a workbook. Hides xlsxwriter; refuses formulas and control characters in every cell."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from gpulab.model.report import Dimension, Report
from gpulab.view.console import csv_cell
from gpulab.view.report_table import ROW_COLUMNS, STUDENT_COLUMNS, row_json, student_json

_PROBLEM_COLUMNS = ("kind", "subject", "cause")
_AMOUNTS = {"usd", "instance_usd", "ebs_usd", "ipv4_usd", "saved_usd", "wasted_usd"} | {
    "spent_usd",
    "budget_usd",
    "left_usd",
}
# Characters that XML cannot hold; every other control character is gone already.
_NOT_XML = {0xFFFE: "�", 0xFFFF: "�"}


def workbook(report: Report) -> bytes:
    """
    Write a workbook: one sheet for each dimension, the students and the problems.

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
        "count": book.add_format({"num_format": "#,##0"}),
        "hours": book.add_format({"num_format": "#,##0.0"}),
    }
    sheets: list[tuple[str, Sequence[str], Iterable[Mapping[str, Any]]]] = [
        (f"by {d.value}", ROW_COLUMNS, [row_json(row) for row in report.rows[d]]) for d in Dimension
    ]
    sheets.append(("students", STUDENT_COLUMNS, [student_json(s) for s in report.students]))
    problems = [{"kind": p.kind, "subject": p.subject, "cause": p.cause} for p in report.problems]
    sheets.append(("problems", _PROBLEM_COLUMNS, problems))
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
    if column in _AMOUNTS:
        return "usd"
    return "hours" if column.endswith("hours") else "count"


def _write(sheet: Any, y: int, x: int, value: Any, number_format: Any) -> None:
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        sheet.write_number(y, x, float(value), number_format)
    elif value is not None:
        sheet.write_string(y, x, csv_cell(value).translate(_NOT_XML))
