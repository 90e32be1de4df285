"""What a launch tells a person, one line a step."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from decimal import Decimal

from gpulab.errors import NoCapacity, Throttled
from gpulab.launch import events
from gpulab.model.instance import Instance, State
from gpulab.model.market import InstanceType, Market, Offer, Place
from gpulab.planning.failover import Next
from gpulab.view.console import Console
from gpulab.view.events import Teller

NOW = datetime(2026, 11, 23, 9, tzinfo=UTC)
T4 = InstanceType("g4dn.xlarge", 4, Decimal(16), "T4", 1, Decimal(16), "G")
OFFER = Offer(
    Place("us-east-1", "us-east-1b", "g4dn.xlarge", Market.SPOT),
    T4,
    Decimal("0.1685"),
    Decimal("0.526"),
    NOW,
)


def told(*happened: events.Event) -> str:
    console = Console(io.StringIO(), io.StringIO(), False, False, lambda: 0.0)
    teller = Teller(console)
    for event in happened:
        teller.tell(event)
    teller.close()
    assert "" == console.out.getvalue()
    return console.err.getvalue()


def test_a_full_zone_is_one_line_that_names_it_once():
    """Eleven full zones are eleven lines; each must be read at a glance."""
    error = NoCapacity(
        "could not launch g4dn.xlarge in us-east-1b: the zone has none free (Insuff)"
    )

    said = told(
        events.Attempting(NOW, OFFER, 1), events.PlaceRefused(NOW, OFFER, error, Next.OTHER_ZONE)
    )

    assert (
        "  Asking us-east-1b for a g4dn.xlarge (spot, $0.1685/h): the zone has none free (Insuff), 0.0 s\n"
    ) == said


def test_a_call_that_was_repeated_ends_as_if_it_had_been_the_first():
    """That AWS was busy for a second is of no interest once the instance is there."""
    busy = Throttled("could not launch g4dn.xlarge in us-east-1b: AWS got too many calls (Rate)")

    said = told(
        events.Attempting(NOW, OFFER, 1),
        events.Repeating(NOW, busy, 2.0),
        events.Launched(NOW, an_instance(), OFFER),
    )

    assert said.startswith("  Asking us-east-1b for a g4dn.xlarge (spot, $0.1685/h): i-1, 0.0 s\n")


def test_one_file_is_not_files():
    """A student's first notebook is one file."""
    said = told(events.Saved(NOW, "s3://bucket/week4/", 1, 344))

    assert "  Saved and compared: 1 file, 344 B, in s3://bucket/week4/\n" == said


def test_what_came_of_the_work_is_told():
    """Whether yesterday's notebook is back is the first thing a student wants to know."""
    said = told(
        events.PhaseChanged(NOW, "work", "done", 0.5, "2 files, 293.0 KiB, compared by hash")
    )

    assert (
        "  Bringing your work back: done, 0.5 s on the instance: 2 files, 293.0 KiB, compared by hash\n"
    ) == said


def test_an_instance_that_was_found_does_not_tell_its_whole_start_again():
    """`gpulab up` a second time opens the notebook; nine old lines would look like a second launch."""
    instance = an_instance()

    said = told(
        events.AlreadyUp(NOW, instance),
        events.Running(NOW, instance),
        events.LoggedIn(NOW),
        events.PhaseChanged(NOW, "armed", "done", 0.1, ""),
        events.PhaseChanged(NOW, "environment", "running", 0, ""),
        events.PhaseChanged(NOW, "environment", "done", 40, ""),
    )

    assert (
        "  week4 is up already (i-1); nothing new is started\n"
        "  Waiting for ssh: it answers, 0.0 s\n"
        "  Installing the lab's environment: done, 40.0 s on the instance\n"
    ) == said


def an_instance() -> Instance:
    return Instance(
        id="i-1",
        name="week4",
        owner="me",
        place=OFFER.place,
        state=State.RUNNING,
        state_reason="",
        address="54.214.1.2",
        private_address="",
        launched_at=NOW,
        expires_at=None,
        launch_id="l-1",
    )


def test_a_step_that_failed_shows_its_last_words_and_what_to_do():
    """The student sees the cause where the waiting was, and knows that nothing has to be typed for another try."""
    said = told(
        events.PhaseChanged(NOW, "environment", "running", 0, ""),
        events.PhaseChanged(
            NOW, "environment", "failed", 2.0, "uv failed with exit code 2\nno space"
        ),
    )

    assert (
        "  Installing the lab's environment: failed, 2.0 s on the instance: uv failed with exit code 2\n"
        "    | no space\n"
        "    it tries again by itself, six times in an hour; `gpulab logs --follow` shows everything, `gpulab stop` ends it\n"
    ) == said
