"""What of an account's ledger is a course's, and what each account of a course has to hold."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from gpulab.errors import WrongUsage
from gpulab.fleet.books import facts_of
from gpulab.fleet.needs import needs_of
from gpulab.fleet.seats import group_owner
from gpulab.model.fact import Fact, FactKind, address, ended, price, volume

_spec = importlib.util.spec_from_file_location(
    "fleet_builders", Path(__file__).with_name("fleet_builders.py")
)
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)
NOW = build.NOW


def a_launch(instance_id, course):
    return Fact(FactKind.LAUNCHED, instance_id, NOW, {"course": course} if course else {})


def an_attempt(token, course):
    return Fact(FactKind.INTENT, token, NOW, {"course": course} if course else {})


def test_a_teachers_own_instance_is_no_part_of_the_courses_books():
    """One account, a course and somebody's research: the department pays the former only."""
    ours = [
        an_attempt("l-1-1", "c1"),
        a_launch("i-1", "c1"),
        address("i-1", at=NOW, usd_per_hour=Decimal("0.005")),
        ended("i-1", at=NOW + timedelta(hours=1), by=None, reason="-"),
        volume("vol-1", at=NOW, type="gp3", size_gb=60, usd_per_gb_month=None, instance_id="i-1"),
        price(zone="us-east-1a", instance_type="g4dn.xlarge", at=NOW, usd_per_hour=Decimal("0.2")),
    ]
    others = [
        an_attempt("l-3-1", ""),
        a_launch("i-2", "c2"),
        a_launch("i-3", ""),
        volume("vol-3", at=NOW, type="gp3", size_gb=60, usd_per_gb_month=None, instance_id="i-3"),
    ]

    found = facts_of("c1", [*others, *ours, *ours])

    assert sorted(f.digest for f in ours) == sorted(f.digest for f in found)


def test_an_account_needs_the_room_of_its_largest_lab():
    """A quota takes days to be raised; the second lab's eight GPUs must be asked for in time."""
    lab = 'gpu = "T4"\n[[labs]]\nid = "w2"\ndate = 2026-09-14\nstarts = "13:00"\nends = "17:00"\n'
    course = build.a_course(lab=lab + 'instance_type = "g4dn.2xlarge"')

    (need,) = needs_of(course, build.students(3), secret=build.SECRET)

    assert ({"G": 24}, ("s000000", "s000001", "s000002"), None) == (
        need.vcpus,
        need.who,
        need.budget_usd,
    )


def test_accounts_of_ones_own_need_one_each_and_groups_share():
    """The first student's account pays for the group."""
    course = build.a_course("own", lab='gpu = "T4"\nby_group = true', head='budget_usd = "50"')
    people = tuple(replace(s, group="g1") for s in build.students(2, own=True))

    needs = needs_of(course, people, secret=build.SECRET)

    assert [{"G": 4}, {}] == [need.vcpus for need in needs]
    assert [Decimal(50)] * 2 == [need.budget_usd for need in needs]
    # Either may have the group's instance, whoever is first in the roster.
    group = group_owner("g1", secret=build.SECRET)
    assert [{s.owner, group} for s in people] == [set(need.owners) for need in needs]


def test_a_lab_with_a_gpu_nobody_knows_is_named():
    """Found by the check, not on Monday at 13."""
    course = build.a_course()
    lab = replace(course.labs[0], gpu="T5")

    with pytest.raises(WrongUsage, match="T5"):
        needs_of(replace(course, labs=(lab,)), build.students(1), secret=build.SECRET)
