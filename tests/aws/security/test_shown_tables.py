"""Names and tags that are formulas, in every table we write for a spreadsheet: texts, whatever they begin with."""

from __future__ import annotations

import csv
import importlib.util
import io
import re
import sys
import zipfile
from pathlib import Path

import pytest
from tests.aws.security.hostile import FORMULA, unfiltered
from tests.aws.security.hostile_pages import handed, report
from tests.aws.security.test_shown import launch

from gpulab.cli.main import run
from gpulab.launch.upkeep import sweep
from gpulab.view import console
from gpulab.view.console import Console
from gpulab.view.handout import merge_csv
from gpulab.view.report_files import report_files

CHECKOUT = Path(__file__).parents[3]
needs_sheets = pytest.mark.skipif(
    importlib.util.find_spec("xlsxwriter") is None, reason="needs the extra `report`"
)
# Full-width forms, which some spreadsheets fold, stand in rosters as well: they are letters there.
FORMULAS = (FORMULA, "@SUM(A1)", "+1", "-2+3", "\uff1dHYPERLINK(1)", "\t=1", " =1")


def unquoted():
    """The weak set-up: our tables as they are, but for what quotes a cell."""
    return unfiltered(also={console.csv_cell: lambda value: "" if value is None else str(value)})


def formulas(text):
    """Cells that a spreadsheet would take for a formula."""
    cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
    return [cell for cell in cells if cell.strip()[:1] in tuple("=+-@\uff1d\uff0b\uff0d\uff20")]


def shown_csv(text):
    out = io.StringIO()
    screen = Console(out, io.StringIO(), False, False, lambda: 0.0)
    screen.show_csv([{"name": text}], ["name"])
    return out.getvalue()


TABLES = {
    "every listing's --csv": shown_csv,
    "the mail merge of a handout": lambda text: merge_csv([handed(text)], lab=text),
    "a closed course's by-student.csv": lambda text: report_files(report(text), title="c1")[
        "by-student.csv"
    ].decode("utf-8-sig"),
}


@pytest.mark.parametrize("text", FORMULAS, ids=ascii)
@pytest.mark.parametrize("name", TABLES)
def test_no_table_holds_a_formula(name, text, monkeypatch):
    """A cell that begins with `=` runs when a teacher opens the file; quoting it keeps the text and takes the meaning."""
    # The page beside the table, which takes longer, is made only where its module can be had.
    monkeypatch.setitem(sys.modules, "gpulab.view.report_html", None)
    with unquoted():
        weak = TABLES[name](text)

    ours = TABLES[name](text)

    assert {text.strip()} <= {cell.strip() for cell in formulas(weak)}
    assert [] == formulas(ours)
    assert f"'{text}".replace("\t", " ") in [c for r in csv.reader(io.StringIO(ours)) for c in r]


@pytest.mark.parametrize(
    "arguments", [("ls", "--quick", "--csv"), ("sweep", "--csv")], ids=" ".join
)
def test_no_tag_is_a_formula_in_a_listing(sandbox, capsys, monkeypatch, arguments):
    """Everybody in a shared account may tag; the list of it is opened in a spreadsheet."""
    monkeypatch.setattr(sweep, "enabled_regions", lambda *_, **__: ("us-east-1",))
    launch(name=FORMULA, owner="me", launch="l1", env=FORMULA)
    sandbox.advance(20)
    assert 0 == run(list(arguments))
    ours = capsys.readouterr().out

    with unquoted():
        run(list(arguments))

    assert FORMULA in formulas(capsys.readouterr().out)
    assert [] == formulas(ours)
    assert f"'{FORMULA}" in [cell for row in csv.reader(io.StringIO(ours)) for cell in row]


@needs_sheets
def test_a_workbook_holds_texts_only(monkeypatch):
    """A workbook can hold formulas as such; saved as CSV, even its texts would become some."""
    import xlsxwriter
    from xlsxwriter.worksheet import Worksheet

    from gpulab.view.report_xlsx import workbook

    ours = _sheets(workbook(report(FORMULA)))
    with unquoted():
        unquoted_only = _sheets(workbook(report(FORMULA)))
        plain = xlsxwriter.Workbook
        monkeypatch.setattr(xlsxwriter, "Workbook", lambda file, _options: plain(file))
        monkeypatch.setattr(Worksheet, "write_string", Worksheet.write)
        weak = _sheets(workbook(report(FORMULA)))

    assert ("<f>" in weak, FORMULA[1:8] in weak) == (True, True)
    assert ("<f>" in unquoted_only, f"<t>{FORMULA[:5]}" in unquoted_only) == (False, True)
    assert ("<f>" in ours, f"<t>{FORMULA[:5]}" in ours) == (False, False)
    assert f"<t>'{FORMULA[:5]}" in ours


def _sheets(content):
    with zipfile.ZipFile(io.BytesIO(content)) as book:
        names = [n for n in book.namelist() if "worksheets" in n or "sharedStrings" in n]
        return "".join(book.read(name).decode() for name in names)


def test_every_writer_of_tables_is_one_of_these():
    """A new table is a new hole unless it is tried here as well."""
    package = CHECKOUT / "src" / "gpulab"
    writers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(
            r"csv\.(?:writer|DictWriter)\(|import Workbook", path.read_text(encoding="utf-8")
        )
    }

    assert {
        "view/console.py",
        "view/handout.py",
        "view/report_files.py",
        "view/report_xlsx.py",
    } == writers
