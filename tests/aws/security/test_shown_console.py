"""Each way out of gpulab to a terminal has the filter, on its own: with it taken out there, a text from outside drives the terminal."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tests.aws.security.hostile import DRIVING, FORGED, drives, unfiltered
from tests.aws.security.hostile_pages import report

from gpulab.errors import WrongUsage
from gpulab.model.fleet import AccountRef, Outcome, Result, Trouble
from gpulab.model.report import Dimension, Standing
from gpulab.remote.copying import CopyReport
from gpulab.remote.manifest import Skipped
from gpulab.view import console
from gpulab.view.console import Console
from gpulab.view.copies import copy_text
from gpulab.view.fleet import outcome_line, outcomes_text
from gpulab.view.instances import pairs_text
from gpulab.view.report_files import report_files
from gpulab.view.report_table import report_lines

# What our own drawing writes; no text below holds any of it.
_OWN = re.compile(r"\r\x1b\[2K|\x1b\[[KHJ]")


class Ticker:
    """A minute a tick, whenever the test says so."""

    def __call__(self, do):
        self.do = do
        return lambda: None


def a_terminal(**changes):
    minutes = iter(range(0, 60_000, 61))
    parts = {"is_live": True, "has_colour": False, "is_watched": True, "ask": lambda: "no"}
    return Console(
        io.StringIO(), io.StringIO(), monotonic=lambda: float(next(minutes)), **parts | changes
    )


def a_file(**changes):
    return a_terminal(is_live=False, is_watched=False, **changes)


def stepping(terminal, text, detail=""):
    with terminal.step(text) as step:
        step.detail(detail)
    return terminal


def ticking(text):
    ticker = Ticker()
    terminal = a_file(ticking=ticker)
    with terminal.step("Waiting") as step:
        step.detail(text)
        ticker.do()
        # The last line is another way out.
        return SimpleNamespace(out=terminal.out, err=io.StringIO(terminal.err.getvalue()))


def half_drawn(text):
    """A step's line while it is under way, before the last one is said."""
    terminal = a_terminal()
    console.Step(terminal, text, 0.0).draw()
    return terminal


def one(way, **changes):
    def out_of(text):
        terminal = a_terminal(**changes)
        way(terminal, text)
        return terminal

    return out_of


def written(text):
    """What was laid out for a file or a screen, and is written by others."""
    return SimpleNamespace(out=io.StringIO(text), err=io.StringIO())


WAYS = {
    "say": one(lambda c, text: c.say(text)),
    "show": one(lambda c, text: c.show(text)),
    "show_table": one(lambda c, text: c.show_table([[text, "1"]], ["NAME", "N"])),
    "table": lambda text: written(console.table([[text, "1"]], ["NAME", "N"])),
    "table, heading": lambda text: written(console.table([["1"]], [text])),
    "show_csv": one(lambda c, text: c.show_csv([{"name": text}], ["name"])),
    "csv_cell": lambda text: written(console.csv_cell(text)),
    "confirm": one(lambda c, text: c.confirm(f"End {text}?")),
    "redraw": one(lambda c, text: c.redraw(text, is_first=False)),
    "redraw, piped": one(lambda c, text: c.redraw(text, is_first=False), is_watched=False),
    "step, drawn": half_drawn,
    "step, at its end": lambda text: stepping(a_file(), text),
    "step, detail": lambda text: stepping(a_file(), "Asking", text),
    "step, after a minute": ticking,
    "say_error": one(lambda c, text: c.say_error(WrongUsage(text))),
    "say_error, hint": one(lambda c, text: c.say_error(WrongUsage("no", hint=text))),
}
# The others take texts of several lines.
ONE_LINE = [
    "show_table",
    "table",
    "table, heading",
    "csv_cell",
    "step, drawn",
    "step, at its end",
    "step, detail",
    "step, after a minute",
    "say_error",
    "say_error, hint",
]


def streams(of):
    return _OWN.sub("", of.out.getvalue() + of.err.getvalue())


@pytest.mark.parametrize("way", WAYS)
def test_no_way_out_lets_a_text_drive_the_terminal(way):
    """Each is called with texts of AWS, of instances and of rosters by some command; one without the filter is enough."""
    with unfiltered():
        weak = streams(WAYS[way](DRIVING))

    ours = streams(WAYS[way](DRIVING))

    assert {"\x1b", "\x07", "\x9b", "\u202e", "\x7f"} <= set(drives(weak))
    assert [] == drives(ours)
    assert "52;c;cm0gLXJmIH4=" in ours


def test_json_escapes_what_would_drive_the_terminal(monkeypatch):
    """`--json` is looked at in terminals as well."""
    strict = one(lambda c, text: c.show_json({"name": text}))
    ours = streams(strict(DRIVING))
    loose = SimpleNamespace(dumps=lambda value, **_: json.dumps(value, ensure_ascii=False))
    monkeypatch.setattr(console, "json", loose)

    weak = streams(strict(DRIVING))

    assert {"\x9b", "\u202e"} <= set(drives(weak))
    assert [] == drives(ours)
    assert {"name": DRIVING} == json.loads(ours)


@pytest.mark.parametrize("way", ONE_LINE)
def test_no_text_begins_a_line_of_its_own(way):
    """A tag with a line break in it forges a row of a table, or an error with a hint that names a command."""
    with unfiltered():
        weak = streams(WAYS[way](FORGED))

    ours = streams(WAYS[way](FORGED))

    assert 1 == sum(line.startswith(FORGED.split("\n")[1]) for line in weak.splitlines())
    assert 0 == sum(line.startswith(FORGED.split("\n")[1]) for line in ours.splitlines())
    assert FORGED.split("\n")[1] in ours


def copied(text):
    skipped = (Skipped(text, "a link"), Skipped("a", text))
    return copy_text(CopyReport(1, 1, 0, skipped, (text,), 1, "", "tar"))


def failed(text):
    return Outcome(
        "week4-s1", AccountRef("default", "", "", ""), Result.FAILED, trouble=Trouble(text, text)
    )


def the_report(text):
    """Below the table stand those who have not started, by their names in the roster."""
    of_one = report("s1")
    (one,) = of_one.students
    lazy = replace(one, owner="s2", name=text, standing=Standing.NOT_STARTED)
    return "\n".join(
        report_lines(replace(of_one, students=(lazy,)), Dimension.STUDENT, bar="#", limit=9)
    )


LAID_OUT = {
    "a copy": copied,
    "what came of a seat": lambda text: outcome_line(1, failed(text)),
    "causes and what to do": lambda text: outcomes_text([failed(text)]),
    "a report": the_report,
    "a closed course's report.txt": lambda text: report_files(report(text), title="c1")[
        "report.txt"
    ].decode(),
}


@pytest.mark.parametrize("name", LAID_OUT)
def test_no_text_begins_a_line_of_what_is_laid_out_in_lines(name, monkeypatch):
    """Paths of an instance, names of a ledger and errors stand in lists, a line each; the lines are ours."""
    monkeypatch.setitem(sys.modules, "gpulab.view.report_html", None)  # a page beside it takes long
    with unfiltered():
        weak = LAID_OUT[name](FORGED)

    ours = LAID_OUT[name](FORGED)

    second = FORGED.split("\n")[1]
    assert 1 <= sum(line.startswith(second) for line in weak.splitlines())
    assert 0 == sum(line.startswith(second) for line in ours.splitlines())
    assert second in ours


def test_a_report_kept_as_text_drives_nothing(monkeypatch):
    """It is read with `cat` in five years; its title is the course's."""
    monkeypatch.setitem(sys.modules, "gpulab.view.report_html", None)
    with unfiltered():
        weak = report_files(report("s1"), title=DRIVING)["report.txt"].decode()

    ours = report_files(report("s1"), title=DRIVING)["report.txt"].decode()

    assert {"\x1b", "\x9b", "\u202e"} <= set(drives(weak))
    assert [] == drives(ours)


def test_a_fact_stays_on_its_line():
    """`gpulab show` writes tags beside what AWS says; a forged `state` below them would read as AWS's."""
    facts = {"environment": "tf2\nstate        terminated", "state": "running"}
    with unfiltered():
        weak = pairs_text(facts)

    ours = pairs_text(facts)

    assert ["environment  tf2", "state        terminated", "state        running"] == (
        weak.splitlines()
    )
    assert ["environment  tf2 state        terminated", "state        running"] == ours.splitlines()
