"""The live screen of a class: what is wrong stays in sight, whatever the height of the terminal."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from gpulab.errors import AwsError
from gpulab.fleets.members import Member
from gpulab.model.status import read_status
from gpulab.view.fleet_members import live_text, rows_of, totals_text

_spec = importlib.util.spec_from_file_location(
    "fleet_builders", Path(__file__).with_name("fleet_builders.py")
)
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)


@pytest.fixture
def rows():
    """A class of thirty: the last one's account does not answer, the others run."""
    seats = build.wanted(build.a_course(), build.students(30)).everyone
    members = [Member(s.account, s, build.an_instance(s.name)) for s in seats[:-1]]
    members.append(Member(seats[-1].account, seats[-1], None, AwsError("no \x1b[2J answer")))
    return rows_of(members, {}, {})


def test_everybody_is_on_a_tall_screen_trouble_first(rows):
    """Who needs help stands above who does not."""
    lines = live_text(rows, title="c1 w1", now=build.NOW, height=100).split("\n")

    assert ["c1 w1", "29 running, 1 unknown, 1 in trouble"] == lines[:2]
    assert lines[5].startswith("s000029")
    assert 5 + 30 == len(lines)


def test_who_is_setting_up_is_counted():
    """At ten past one the question is how many are still on their way."""
    seats = build.wanted(build.a_course(), build.students(3)).everyone
    members = [Member(s.account, s, build.an_instance(s.name)) for s in seats]
    statuses = {
        member.name: read_status(
            '{"version": 1, "at": "2026-11-16T09:10:00Z", "phases":'
            f' [{{"name": "jupyter", "state": "{state}", "seconds": 1.0, "message": "no disk"}}]}}'
        )
        for member, state in zip(members, ("done", "running", "failed"), strict=True)
    }

    assert "3 running, 1 setting up, 1 in trouble" == totals_text(rows_of(members, statuses, {}))


def test_a_short_screen_says_how_much_is_missing(rows):
    """A screen that scrolls would show the end of the class and hide the trouble."""
    lines = live_text(rows, title="c1 w1", now=build.NOW, height=12).split("\n")

    assert 10 == len(lines)
    assert lines[5].startswith("s000029")
    assert "... and 26 more lines" == lines[-1]
