"""What each account of a course has to hold: the vCPUs of its largest lab and the term's budget of whom it pays for. Refuses nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from gpulab.fleet.lab import request_for
from gpulab.fleet.seats import account_of, seats_of
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
    """

    account: AccountRef
    who: tuple[str, ...]
    vcpus: Mapping[str, int]
    budget_usd: Decimal | None


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
        )
        for key, ref in refs.items()
    )


def _smallest(course: Course, lab: Lab) -> InstanceType:
    request = request_for(course, lab, now=lab.starts_at, longest=timedelta(days=1))
    return min(types_for(request, instance_types()), key=lambda t: (t.vcpus, t.name))
