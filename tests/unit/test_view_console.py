"""What goes to which stream, and what a spreadsheet may read."""

import io
import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from gpulab.errors import QuotaTooLow, WrongUsage
from gpulab.view.console import Console, csv_cell, table


def a_console(*, is_live=False, has_colour=False, **more):
    ticks = iter(range(100))
    return Console(
        io.StringIO(), io.StringIO(), is_live, has_colour, lambda: float(next(ticks)), **more
    )


class Ticker:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.do = None

    def __call__(self, do):
        self.do = do
        return self.stop

    def stop(self):
        self.do = None


def test_an_error_is_a_sentence_a_blank_line_and_a_hint():
    """This form is a contract: people and scripts look for it."""
    console = a_console()

    console.say_error(QuotaTooLow("99 h is over the 12 h limit", hint="Ask a TA for longer"))

    assert (
        "error: 99 h is over the 12 h limit\n\nhint: Ask a TA for longer\n"
        == console.err.getvalue()
    )
    assert "" == console.out.getvalue()


def test_an_error_from_outside_cannot_drive_the_terminal():
    """AWS messages quote names that others chose."""
    console = a_console(has_colour=True)

    console.say_error(QuotaTooLow("no\x1b[2J", hint="\x9b"))

    assert "\x1b[1;31merror:\x1b[0m no�[2J" in console.err.getvalue()
    assert "\x9b" not in console.err.getvalue()


def test_a_step_piped_to_a_file_is_one_plain_line():
    """A log of a lab must not be full of cursor movements."""
    console = a_console()

    with console.step("Waiting for an address") as step:
        step.detail("us-east-1a")

    assert "  Waiting for an address us-east-1a: done, 1.0 s\n" == console.err.getvalue()


def test_a_failed_step_says_so_and_lets_the_error_through():
    """The reader must see which step broke."""
    console = a_console()

    with pytest.raises(QuotaTooLow):
        with console.step("Starting"):
            raise QuotaTooLow("no")

    assert "  Starting: failed, 1.0 s\n" == console.err.getvalue()


def test_the_seconds_of_a_step_run_on_while_one_waits():
    """A line that says `0.0 s` for half a minute looks as if gpulab hung."""
    ticker = Ticker()
    console = a_console(is_live=True, ticking=ticker)

    with console.step("Waiting"):
        ticker.do()
        ticker.do()

    drawn = console.err.getvalue().split("\r\x1b[2K")
    assert ["  Waiting ... 1.0 s", "  Waiting ... 2.0 s", "  Waiting ... 3.0 s"] == drawn[1:4]
    assert "  Waiting: done, 4.0 s\n" == drawn[-1]
    assert None is ticker.do


def test_a_long_step_piped_to_a_file_says_each_minute_that_it_goes_on():
    """`gpulab image bake | tee log` said nothing for the four minutes that AWS takes to make an image."""
    ticker, at = Ticker(), [0.0]
    console = Console(io.StringIO(), io.StringIO(), False, False, lambda: at[0], ticking=ticker)

    with console.step("Waiting for AWS to make the image") as step:
        step.detail("(pending)")
        for at[0] in (59.0, 60.0, 61.0, 119.5, 121.0, 185.0):
            ticker.do()

    assert [
        "  Waiting for AWS to make the image (pending): still under way, 1 min",
        "  Waiting for AWS to make the image (pending): still under way, 2 min",
        "  Waiting for AWS to make the image (pending): still under way, 3 min",
        "  Waiting for AWS to make the image (pending): done, 185.0 s",
    ] == console.err.getvalue().splitlines()
    assert "" == console.out.getvalue()
    assert None is ticker.do


def test_what_is_quick_is_never_seen():
    """`gpulab ls` in a moment needs no line about itself."""
    console = a_console()

    with console.patience("Looking"):
        pass

    assert ("", "") == (console.err.getvalue(), console.out.getvalue())


def test_what_is_slow_is_said_once_it_is():
    """Three seconds without a word read as a hang; the line begins while one waits."""
    ticker = Ticker()
    console = a_console(is_live=True, ticking=ticker)

    with console.patience("Looking"):
        before = console.err.getvalue()
        for _ in range(2):
            ticker.do()
        meanwhile = console.err.getvalue()

    assert "" == before
    assert "Looking ... 3.0 s" in meanwhile
    assert console.err.getvalue().endswith("  Looking: done, 4.0 s\n")
    assert ticker.do is None


def test_a_step_never_wraps_but_ends_whole():
    """A wrapped line cannot be drawn over, and the screen would fill with copies of it."""
    console = a_console(is_live=True, columns=lambda: 30)

    with console.step("Asking us-east-1b for a g4dn.xlarge"):
        pass

    drawn = console.err.getvalue().split("\r\x1b[2K")
    assert "  Asking us-east-1b ... 1.0 s" == drawn[1]
    assert "  Asking us-east-1b ... 1.0 s" == drawn[1]


def test_a_watched_screen_is_drawn_line_over_line():
    """Clearing first would flicker at every look."""
    console = a_console(is_live=True, is_watched=True)

    console.redraw("one\ntwo", is_first=False)

    assert "\x1b[Hone\x1b[K\ntwo\x1b[K\n\x1b[J" == console.out.getvalue()


def test_where_nobody_can_answer_the_question_is_told():
    """A script's log must say what it was that needed a yes."""
    with pytest.raises(WrongUsage) as refused:
        a_console().confirm("Delete the kept work of lab: 2 files?")

    assert (
        "nobody is there to answer: Delete the kept work of lab: 2 files?" == refused.value.message
    )
    assert "Add `--yes` to agree beforehand" == refused.value.hint


def test_json_keeps_money_exact():
    """A float would turn 0.1 into something else."""
    console = a_console()

    console.show_json({"usd": Decimal("0.10"), "at": datetime(2026, 1, 1, tzinfo=UTC)})

    assert {"usd": "0.10", "at": "2026-01-01T00:00:00+00:00"} == json.loads(console.out.getvalue())


@pytest.mark.parametrize(
    "cell",
    [
        "=1+1",
        "+1",
        "-1+2",
        "@x",
        "\t=1",
        "\r=1",
        "  =cmd",
        "\uff1dx",
        "\uff0bx",
        "\uff0dx",
        "\uff20x",
    ],
)
def test_a_cell_that_begins_a_formula_is_quoted(cell):
    """A roster's cell could otherwise run a command in the TA's spreadsheet."""
    assert csv_cell(cell).startswith("'")


@pytest.mark.parametrize(
    ("cell", "expected"), [(Decimal("-1.50"), "-1.50"), (3, "3"), ("plain", "plain"), (None, "")]
)
def test_numbers_stay_numbers_in_csv(cell, expected):
    """A quoted number cannot be summed."""
    assert expected == csv_cell(cell)


def test_a_table_aligns_numbers_to_the_right_and_ends_lines_without_blanks():
    """Prices are compared by eye, and a diff of two outputs must not show blanks."""
    text = table([["a", "1.00"], ["long", "10.00"]], ["NAME", "USD"], right=[1])

    assert "NAME    USD\na      1.00\nlong  10.00" == text
