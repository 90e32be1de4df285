"""A report as a folder of files that last: for programs, for spreadsheets, as text, and as a page where the extra `report` is installed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpulab.model.report import Dimension, Report
from gpulab.view.console import csv_cell, plain
from gpulab.view.report_table import csv_rows, report_json, report_lines
from gpulab.view.words import clean

_SHOWN = 1000


def report_files(report: Report, *, title: str) -> dict[str, bytes]:
    """Write each file's bytes, by its name."""
    text = [title, "", *report_lines(report, Dimension.STUDENT, bar="#", limit=_SHOWN)]
    files = {
        "report.json": json.dumps(report_json(report), default=plain, indent=1).encode() + b"\n",
        "report.txt": (clean("\n".join(text)) + "\n").encode(),
        "by-student.csv": _csv(*csv_rows(report, Dimension.STUDENT)),
    }
    try:
        from gpulab.view.report_html import page

        files["report.html"] = page(report, title=title).encode()
    except ImportError:
        # Its plots come with the extra; the figures are in the other files.
        pass
    return files


def _csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([csv_cell(row.get(column)) for column in columns] for row in rows)
    return out.getvalue().encode("utf-8-sig")
