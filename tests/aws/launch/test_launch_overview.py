"""What runs, side by side: complete, or it says what is missing."""

from __future__ import annotations

import pytest

from gpulab.errors import WrongUsage
from gpulab.launch import instances, overview, stop

TWO_REGIONS = ("us-east-1", "eu-north-1")


def test_a_region_that_does_not_answer_is_named_beside_the_list(sandbox, make_student):
    """Whoever reads that nothing runs closes the laptop; an instance in a region nobody read goes on costing."""
    student = make_student(regions=TWO_REGIONS)
    sandbox.refuse("DescribeInstances", "UnauthorizedOperation", region="eu-north-1")

    seen = overview.look(student.context, ask_instances=False)

    assert () == seen.rows
    assert ["eu-north-1 was not read"] == [note.partition(":")[0] for note in seen.notes]


def test_an_unread_region_is_named_when_no_instance_fits(sandbox, make_student):
    """`gpulab stop` must not say that nothing is up when it could not look everywhere."""
    student = make_student(regions=TWO_REGIONS)
    sandbox.refuse("DescribeInstances", "UnauthorizedOperation", region="eu-north-1")

    with pytest.raises(WrongUsage) as refused:
        instances.find(student.context, None)

    assert refused.value.message.startswith("no instance is up; eu-north-1 was not read: ")


def test_what_has_ended_is_shown_only_when_asked_for(student):
    """After a lab a student looks up what it was and what it cost; the daily list stays short."""
    instance = student.up("week4").instance
    list(stop.stop(student.context, instance, save=False))

    daily = overview.look(student.context, ask_instances=False)
    full = overview.look(student.context, with_ended=True, ask_instances=False)

    assert () == daily.rows
    assert [("week4", "terminated")] == [
        (row.instance.name, str(row.instance.state)) for row in full.rows
    ]
