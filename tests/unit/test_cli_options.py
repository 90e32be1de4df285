"""What people type for durations, times and names."""

from datetime import UTC, datetime, timedelta

import pytest

from gpulab.cli.options import parse_duration, tomorrow_note, until_moment, valid_name
from gpulab.errors import WrongUsage

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", timedelta(hours=4)),
        ("1.5", timedelta(minutes=90)),
        ("90m", timedelta(minutes=90)),
        ("1h30m", timedelta(minutes=90)),
        ("20s", timedelta(seconds=20)),
        ("1d", timedelta(days=1)),
        ("", None),
        ("h", None),
        ("-1", None),
        ("4 weeks", None),
        ("1e9", None),
        ("99999999999d", None),
    ],
)
def test_a_duration_is_hours_unless_it_names_a_unit(text, expected):
    """`--hours 4` and `90m` are what people type; nonsense must not become a number."""
    assert expected == parse_duration(text)


def test_a_clock_time_that_has_passed_means_tomorrow():
    """At 23:00, `--until 01:00` is in two hours."""
    local = NOW.astimezone()
    past = f"{(local - timedelta(hours=1)):%H:%M}"

    moment = until_moment(past, now=NOW)

    assert timedelta(hours=23) == moment - NOW


@pytest.mark.parametrize("text", ["25:00", "soon", "2020-01-01T00:00", ""])
def test_a_time_that_is_none_or_past_is_refused(text):
    """An instance must never be planned to end before it starts."""
    with pytest.raises(WrongUsage):
        until_moment(text, now=NOW)


@pytest.mark.parametrize("name", ["", "-x", "../up", "A", "a b", "x" * 41, "a/", "\x1b", "con\n"])
def test_a_name_that_could_leave_its_folder_is_refused(name):
    """A name becomes a folder, a tag and an S3 prefix."""
    with pytest.raises(WrongUsage):
        valid_name(name)


def test_ordinary_names_pass():
    """What students type."""
    assert ["lab", "week4", "s123-gan", "x.1"] == [
        valid_name(n) for n in ("lab", "week4", "s123-gan", "x.1")
    ]


def test_a_clock_time_that_has_passed_today_is_said_to_be_tomorrows():
    """08:00 typed at 08:47 is a GPU for 23 hours; the date in the plan is easily overlooked."""
    now = datetime(2026, 11, 23, 8, 47).astimezone()
    moments = [until_moment(text, now=now) for text in ("08:00", "09:00", "2026-11-24T08:00")]

    notes = [
        tomorrow_note(text, moment, now=now)
        for text, moment in zip(("08:00", "09:00", "2026-11-24T08:00"), moments, strict=True)
    ]

    assert ["note: 08:00 has passed today, so it is tomorrow's", "", ""] == notes
