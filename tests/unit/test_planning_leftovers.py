"""What `gpulab sweep` would delete, and what it never does."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gpulab.model.leftover import Kind, Tagged
from gpulab.planning.leftovers import sort_out

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
OLD = NOW - timedelta(hours=3)
LIVE = Tagged(
    Kind.INSTANCE,
    "i-1",
    "us-east-1",
    "week4",
    "l1",
    created_at=OLD,
    expires_at=NOW + timedelta(hours=1),
)


def a_thing(kind: Kind, **changes) -> Tagged:
    return replace(Tagged(kind, "x-1", "us-east-1", "week4", "l1", created_at=OLD), **changes)


def judged(
    resource: Tagged, *others: Tagged, kept_at=None, known=("l1",), moved_to=None
) -> tuple[bool, str]:
    over, stays = sort_out(
        [resource, *others],
        known_launches=known,
        kept_at=kept_at or {},
        now=NOW,
        moved_to=moved_to or {},
    )
    verdict = {item.resource.id: (True, item.why) for item in over}
    return (verdict | {item.resource.id: (False, item.why) for item in stays})[resource.id]


@pytest.mark.parametrize(
    ("resource", "verdict"),
    [
        (LIVE, (False, "it is within its time; `gpulab stop` saves its work and ends it")),
        (replace(LIVE, expires_at=NOW - timedelta(minutes=11)), (True, "its time is over")),
        (
            replace(LIVE, expires_at=NOW - timedelta(minutes=9)),
            (False, "it is within its time; `gpulab stop` saves its work and ends it"),
        ),
        (
            replace(LIVE, launch_id="l9"),
            (
                False,
                "another computer launched it, and it is within its time; `gpulab stop` saves its work and ends it",
            ),
        ),
        (replace(LIVE, launch_id="l9", expires_at=None), (True, "it has no end")),
        (
            replace(LIVE, launch_id="l9", created_at=NOW - timedelta(minutes=9)),
            (False, "it is younger than 10 min"),
        ),
    ],
    ids=["within its time", "over", "just over", "unknown", "no end", "unknown and young"],
)
def test_an_instance_is_left_over_when_its_time_is_over(resource, verdict):
    """A training that runs is not touched, whichever laptop started it: its work is nowhere else yet."""
    assert verdict == judged(resource)


@pytest.mark.parametrize(
    ("moved_to", "expected"),
    [
        (NOW + timedelta(hours=1), (False, "it is within its time; `gpulab stop` saves its work and ends it")),
        (NOW - timedelta(minutes=11), (True, "its time is over")),
        (None, (False, "its time is over by its tag, and whether it was extended could not be read")),
    ],
    ids=["extended", "over all the same", "not read"],
)  # fmt: skip
def test_an_end_that_was_moved_beside_the_tag_counts(moved_to, expected):
    """Where the tag could not be written the agent goes by its own end: the training runs, and its work is nowhere else."""
    late = replace(LIVE, expires_at=NOW - timedelta(hours=1))

    assert expected == judged(late, moved_to={late.id: moved_to})


@pytest.mark.parametrize("state", ["stopping", "stopped"])
@pytest.mark.parametrize("expires_at", [NOW - timedelta(hours=1), None])
def test_an_instance_that_was_stopped_stays_with_its_disk(state, expires_at):
    """AWS stops one for maintenance; nobody has saved what is on its disk, and ending it deletes that."""
    off = replace(LIVE, launch_id="l9", state=state, expires_at=expires_at)

    is_over, why = judged(off)

    assert not is_over
    assert (
        f"it is {state}, and its disk may hold work that is kept nowhere else; `gpulab stop --no-save` ends it"
        == why
    )


@pytest.mark.parametrize("kind", [Kind.VOLUME, Kind.SNAPSHOT, Kind.IMAGE])
def test_what_may_hold_the_only_copy_of_work_is_never_deleted(kind):
    """A forgotten disk costs cents; the thesis on it does not come back."""
    resource = a_thing(kind, state="available")
    later, earlier = OLD + timedelta(hours=1), OLD - timedelta(hours=1)

    assert (False, "it may hold work that is kept nowhere else") == judged(resource)
    assert (False, "it may hold work that is kept nowhere else") == judged(
        resource, kept_at={"week4": earlier}
    )
    assert (True, "nothing uses it, and the work of week4 is kept") == judged(
        resource, kept_at={"week4": later}
    )


def test_a_volume_that_an_instance_uses_stays():
    """Its end comes with its instance."""
    attached = a_thing(Kind.VOLUME, uses="i-1", state="in-use")

    assert (False, "i-1 uses it") == judged(attached, LIVE, kept_at={"week4": NOW})
    assert (False, "an instance uses it") == judged(attached, kept_at={"week4": NOW})


@pytest.mark.parametrize(
    ("kind", "uses", "with_live", "verdict"),
    [
        (Kind.SPOT_REQUEST, "i-1", True, (False, "i-1 is up")),
        (Kind.SPOT_REQUEST, "i-1", False, (True, "its instance has ended")),
        (Kind.SCHEDULE, "i-1", True, (False, "i-1 is up")),
        (Kind.SCHEDULE, "i-1", False, (True, "its instance has ended")),
        (Kind.ADDRESS, "eni-1", False, (False, "it is in use")),
        (Kind.ADDRESS, "", False, (True, "nothing uses it")),
        (Kind.SECURITY_GROUP, "", True, (False, "instances there use it")),
        (Kind.SECURITY_GROUP, "", False, (True, "no instance uses it")),
        (Kind.KEY_PAIR, "", False, (True, "no instance uses it")),
        (Kind.KEPT_WORK, "", False, (False, "`gpulab rm` deletes it")),
    ],
)
def test_what_serves_an_instance_goes_when_the_instance_has_gone(kind, uses, with_live, verdict):
    """A schedule removed too early would take away the end of a running instance."""
    others = (LIVE,) if with_live else ()

    assert verdict == judged(a_thing(kind, uses=uses), *others)


def test_users_are_deleted_before_what_they_use():
    """A security group cannot go while an instance is in it."""
    over, _ = sort_out(
        [a_thing(kind, id=kind.value) for kind in reversed(Kind)],
        known_launches=(),
        kept_at={"week4": NOW},
        now=NOW,
    )

    kinds = [item.resource.kind for item in over]
    assert kinds == sorted(kinds, key=list(Kind).index)
    assert Kind.INSTANCE is kinds[0]


BAKED = {"bake_id": "b1", "state": "available", "name": "bake-tf2"}


@pytest.mark.parametrize(
    ("changes", "others", "verdict"),
    [
        ({}, (), (True, "a bake that did not end has left it")),
        ({"is_usable": True}, (), (False, "`gpulab image prune` deletes old ones")),
        ({"state": "pending"}, (), (False, "AWS is still making it")),
        ({"created_at": NOW}, (), (False, "it is younger than 10 min")),
        ({}, (replace(LIVE, name="bake-test-tf2"),), (False, "a bake is under way")),
        ({}, (LIVE,), (True, "a bake that did not end has left it")),
    ],
)
def test_images_of_bakes_go_only_when_nobody_uses_or_makes_them(changes, others, verdict):
    """A course boots from them; half-made ones cost like whole ones."""
    image = a_thing(Kind.IMAGE, **{**BAKED, **changes})

    assert verdict == judged(image, *others)


def test_the_snapshot_of_a_tested_image_stays_with_it():
    """It is the image: without it nothing boots."""
    snapshot = a_thing(Kind.SNAPSHOT, **BAKED)
    image = replace(a_thing(Kind.IMAGE, **BAKED), id="ami-1", is_usable=True)

    assert (False, "`gpulab image prune` deletes old ones") == judged(snapshot, image)
    assert (True, "a bake that did not end has left it") == judged(snapshot)
