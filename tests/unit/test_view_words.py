"""Amounts, spans and foreign text as people read them."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from gpulab.view.words import clean, counted, local_time, money, per_hour, percent, span


@pytest.mark.parametrize(
    ("usd", "expected"),
    [
        ("0.16", "$0.16"),
        ("2.105", "$2.11"),
        ("1234.5", "$1,234.50"),
        ("0", "$0.00"),
        ("0.004", "$0.0040"),
        ("-1.5", "-$1.50"),
    ],
)
def test_money_is_written_in_dollars_and_cents(usd, expected):
    """A price under a cent must not read as free, and thousands must not be misread."""
    text = money(Decimal(usd))

    assert expected == text


def test_a_rate_keeps_the_decimals_in_which_spot_prices_move():
    """$0.2158 and $0.2210 would both read $0.22."""
    text = per_hour(Decimal("0.21580"))

    assert "$0.2158/h" == text


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (timedelta(hours=2, minutes=10), "2 h 10 min"),
        (timedelta(seconds=45), "45 s"),
        (timedelta(days=3, hours=4, minutes=9), "3 d 4 h"),
        (timedelta(hours=4), "4 h"),
        (timedelta(hours=1, seconds=5), "1 h"),
        (timedelta(hours=1, minutes=59, seconds=58), "2 h"),
        (timedelta(hours=23, minutes=59, seconds=40), "1 d"),
        (timedelta(minutes=59, seconds=20), "59 min 20 s"),
        (timedelta(0), "0 s"),
        (timedelta(seconds=-3), "0 s"),
    ],
)
def test_a_span_is_written_by_its_two_largest_units(length, expected):
    """Nobody plans a lab by seconds when hours are left."""
    text = span(length)

    assert expected == text


def test_a_moment_on_another_day_names_the_day():
    """'Ends 09:00' must not be taken for this evening."""
    now = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)

    same, other = local_time(now, now=now), local_time(now + timedelta(days=2), now=now)

    assert (True, True) == ("Nov" not in same, "25 Nov" in other)


def test_a_share_of_nothing_is_unknown():
    """A credit of zero must not end in a division."""
    assert ("2 %", "0.4 %", "? %") == (
        percent(Decimal(2), Decimal(100)),
        percent(Decimal("0.4"), Decimal(100)),
        percent(Decimal(1), Decimal(0)),
    )


@pytest.mark.parametrize(
    "hostile",
    [
        "\x1b[2J",
        "\x9b31m",
        "a\rb",
        "\x07",
        "\u202eevil",
        "\udc80",
        "\x7f",
        "\x00",
        "\x1b]52;c;aGk=\x07",
    ],
)
def test_text_from_outside_cannot_drive_the_terminal(hostile):
    """An instance's log could otherwise clear the screen or write to the clipboard."""
    text = clean(f"x{hostile}y\n\tz")

    assert not [c for c in text if (ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0]
    assert not set(text) & {"\u202e", "\udc80"}
    assert text.startswith("x")
    assert text.endswith("y\n\tz")


def test_one_of_a_thing_is_not_told_in_the_plural():
    """Before a question about money, "1 instances" reads as a program that cannot count."""
    assert ["0 runs", "1 run", "1,200 runs"] == [counted(n, "run") for n in (0, 1, 1200)]
