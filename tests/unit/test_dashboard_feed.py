"""What stands between one look and many pages: the last good one stays, failures are lines, the button does not hurry AWS."""

from __future__ import annotations

import importlib.util
from datetime import timedelta
from pathlib import Path

import pytest

from gpulab.dashboard.feed import Feed
from gpulab.errors import Throttled

_BUILDERS = Path(__file__).with_name("dashboard_builders.py")
_spec = importlib.util.spec_from_file_location("dashboard_builders", _BUILDERS)
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)


class Clock:
    """A clock that stands still but for sleeping."""

    def __init__(self) -> None:
        self.at = build.NOW

    def __call__(self):
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@pytest.fixture
def feed() -> Feed:
    clock = Clock()
    return Feed("c1 w1", now=clock, sleep=clock.sleep)


def failing():
    raise Throttled("AWS has a bad minute")
    yield


def test_before_the_first_look_there_is_a_page(feed):
    """The first look takes seconds; a browser that opened in one must not see an error."""
    state = feed.state()

    assert ("c1 w1", "", [], []) == tuple(state[k] for k in ("title", "looked_at", "tiles", "log"))


def test_a_look_that_fails_is_a_line_and_the_last_one_stays(feed):
    """A lost Wi-Fi must not empty the board, and must not be taken for the present."""
    feed.look(lambda: iter([build.board(build.tile("s1"))]))
    feed.look(failing)
    feed.look(failing)

    state = feed.state()

    assert ["s1"] == [tile["who"] for tile in state["tiles"]]
    assert [True] == [
        note.endswith("could not look: AWS has a bad minute") for note in state["notes"]
    ]
    assert ["could not look: AWS has a bad minute", "First look: 1 up"] == [
        entry["text"] for entry in state["log"]
    ]


def test_the_first_look_that_works_again_says_so(feed):
    """The line goes away by itself."""
    feed.look(failing)
    feed.look(lambda: iter([build.board(build.tile("s1"))]))

    state = feed.state()

    assert [] == state["notes"]
    assert "Looking works again" == state["log"][1]["text"]


def test_the_log_does_not_grow_for_ever(feed):
    """A dashboard runs for a whole day."""
    for n in range(400):
        feed.publish(build.board(build.tile("s1", instance=f"i-{n}")))

    log = feed.state()["log"]

    assert (300, "s1: was replaced by i-399") == (len(log), log[0]["text"])


@pytest.mark.parametrize(("is_wanted", "seconds"), [(False, 15), (True, 5)])
def test_the_button_looks_sooner_but_never_at_once(is_wanted, seconds):
    """Somebody who presses it all the time must not cost the class its calls."""
    clock = Clock()
    feed = Feed("c1 w1", now=clock, sleep=clock.sleep)
    if is_wanted:
        feed.want()

    feed.rest(timedelta(seconds=15))
    first = clock.at - build.NOW
    feed.rest(timedelta(seconds=15))

    assert [seconds, seconds + 15] == [s.total_seconds() for s in (first, clock.at - build.NOW)]
