"""From where a class is let in: one range for all of its instances, and nobody is shut out without a word."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpulab.fleets.events import Narrowed, Requested
from gpulab.view.fleet import sentence

CAMPUS, HOME = "130.225.0.0/16", "203.0.113.7/32"


@pytest.fixture
def at_campus(make_class):
    """One student of two, launched for the campus by an option."""
    klass = make_class(2)
    klass.up("s000000", accounts=klass.accounts(cidr=CAMPUS))
    return klass


def let_in(ec2):
    """The ranges of the one group, sorted."""
    (group,) = (
        g
        for g in ec2.describe_security_groups()["SecurityGroups"]
        if g["GroupName"] == "gpulab-course-c1"
    )
    return sorted(r["CidrIp"] for rule in group["IpPermissions"] for r in rule["IpRanges"])


def narrowed(run):
    return [e for e in run.events if isinstance(e, Narrowed)]


def test_a_launch_from_another_address_says_whom_it_shuts_out(at_campus, sandbox, ec2):
    """One lost seat, launched again from home, takes the login of a whole auditorium."""
    run = at_campus.up(accounts=at_campus.accounts(cidr=HOME))

    (event,) = narrowed(run)
    kinds = [type(e) for e in run.events]
    assert kinds.index(Narrowed) < kinds.index(Requested)
    assert [HOME] == let_in(ec2)
    assert ("us-east-1", (CAMPUS,), HOME) == (event.region, event.former, event.cidr)
    assert sentence(event, now=sandbox.now()).startswith(
        f"In profile default, us-east-1, ssh is let in from {HOME} now and no more from {CAMPUS}"
    )


def test_a_wider_range_shuts_nobody_out(at_campus, ec2):
    """Nothing to be alarmed about: the campus lies within."""
    run = at_campus.up(accounts=at_campus.accounts(cidr="130.224.0.0/15"))

    assert [] == narrowed(run)
    assert ["130.224.0.0/15"] == let_in(ec2)


def test_the_range_of_the_course_is_every_command_s(at_campus, ec2):
    """Named once in course.toml, nobody can forget it in the middle of a lab."""
    course = at_campus.course
    at_campus.course = replace(course, accounts=replace(course.accounts, cidr=CAMPUS))

    run = at_campus.up(accounts=at_campus.accounts(cidr=""))

    assert ["kept", "launched"] == run.results()
    assert [] == narrowed(run)
    assert [CAMPUS] == let_in(ec2)
