"""
What each account of a course has to hold, the vCPUs of its largest lab and the term's budget of whom it pays for, and how far a course reaches.

Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from gpulab.fleet.lab import request_for
from gpulab.fleet.seats import account_of, group_owner, seats_of
from gpulab.model.course import Course, Lab, Student
from gpulab.model.fleet import AccountRef
from gpulab.model.market import InstanceType
from gpulab.planning.catalogue import instance_types
from gpulab.planning.wishes import types_for


@dataclass(frozen=True)
class Need:
    """
    What one account needs.

    Attributes:
        who: Roster ids of whom it pays for; stays on this computer.
        vcpus: Most vCPUs that one lab has running at once, by quota family.
        budget_usd: What the course allows them over the term; `None` where it says nothing.
        owners: Owners of what may run there: the students', and their groups' where a lab is done by groups; sorted.
    """

    account: AccountRef
    who: tuple[str, ...]
    vcpus: Mapping[str, int]
    budget_usd: Decimal | None
    owners: tuple[str, ...] = ()


def needs_of(course: Course, students: Iterable[Student], *, secret: bytes) -> tuple[Need, ...]:
    """
    Say what each account needs, in the roster's order.

    Args:
        students: Those without a way into an account are left out, see `unreachable`.

    Raises:
        WrongUsage, Refused: A lab names a GPU or a type that nobody knows.
    """
    people = tuple(students)
    refs: dict[str, AccountRef] = {}
    payers: dict[str, list[Student]] = {}
    for student in people:
        ref = account_of(course, student, secret=secret)
        if not isinstance(ref, str):
            refs.setdefault(ref.key, ref)
            payers.setdefault(ref.key, []).append(student)
    most: dict[str, dict[str, int]] = {key: {} for key in refs}
    for lab in course.labs:
        kind = _smallest(course, lab)
        used: dict[str, int] = {}
        for seat in seats_of(course, lab, people, secret=secret):
            used[seat.account.key] = used.get(seat.account.key, 0) + kind.vcpus
        for key, vcpus in used.items():
            family = most[key]
            family[kind.quota_family] = max(family.get(kind.quota_family, 0), vcpus)
    return tuple(
        Need(
            ref,
            tuple(s.id for s in payers[key]),
            most[key],
            None if course.budget_usd is None else course.budget_usd * len(payers[key]),
            _owners(course, payers[key], secret),
        )
        for key, ref in refs.items()
    )


def types_of(course: Course) -> tuple[str, ...]:
    """
    Name every instance type that a lab of the course may be given, sorted.

    Raises:
        WrongUsage, Refused: A lab names a GPU or a type that nobody knows.
    """
    return tuple(sorted({kind.name for lab in course.labs for kind in _kinds(course, lab)}))


def _owners(course: Course, students: Iterable[Student], secret: bytes) -> tuple[str, ...]:
    people = tuple(students)
    owners = {student.owner for student in people}
    if any(lab.by_group for lab in course.labs):
        owners |= {group_owner(student.group, secret=secret) for student in people if student.group}
    return tuple(sorted(owners))


def _smallest(course: Course, lab: Lab) -> InstanceType:
    return min(_kinds(course, lab), key=lambda t: (t.vcpus, t.name))


def _kinds(course: Course, lab: Lab) -> tuple[InstanceType, ...]:
    request = request_for(course, lab, now=lab.starts_at, longest=timedelta(days=1))
    return types_for(request, instance_types())
