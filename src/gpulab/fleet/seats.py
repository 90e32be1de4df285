"""Whom each instance of a lab serves, and which account pays. Refuses nothing: a student without a way into an account is a problem, as data."""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from gpulab.model.budget import Allowance
from gpulab.model.course import Course, Lab, Problem, Student
from gpulab.model.fleet import AccountRef, Seat, Step

# A name is at most 40 characters: the lab's part, a dash, and an owner of eleven.
_LAB_PART = 28


def seats_of(
    course: Course, lab: Lab, students: Iterable[Student], *, secret: bytes
) -> tuple[Seat, ...]:
    """
    Name every instance a lab needs.

    Args:
        students: Those whose account can be reached, see `unreachable`; others are left out.
        secret: The course's key; it makes the opaque ids of groups and the external ids of roles.

    Returns:
        One seat for each student, or for each group where the lab says so (students without a group have their own), in the
        roster's order.
    """
    seats = []
    for members in _members(lab, students):
        ref = account_of(course, members[0], secret=secret)
        if not isinstance(ref, str):
            seats.append(_seat(lab, members, ref, secret))
    return tuple(seats)


def unreachable(
    course: Course, students: Iterable[Student], *, secret: bytes, roster_file: str
) -> tuple[Problem, ...]:
    """Name each student whose account there is no way into, with the line of the roster."""
    found = ((s, account_of(course, s, secret=secret)) for s in students)
    return tuple(
        Problem(roster_file, student.line, ref, _HOW)
        for student, ref in found
        if isinstance(ref, str)
    )


def accounts_in(steps: Iterable[Step]) -> tuple[AccountRef, ...]:
    """Return the accounts that some steps are about, each once, in the order of the steps."""
    return tuple({step.account.key: step.account for step in steps}.values())


def account_of(course: Course, student: Student, *, secret: bytes) -> AccountRef | str:
    """Say who pays for a student and how the account is reached; a sentence when nobody knows."""
    profile = course.accounts.profile
    if course.accounts.kind == "shared":
        return AccountRef(f"profile-{profile}", profile)
    if student.profile:
        return AccountRef(f"profile-{student.profile}", student.profile)
    arn = student.role or _role_arn(course, student)
    if not arn:
        return f"{student.id} has neither `account`, `role` nor `profile`"
    number = arn.split(":")[4]
    if student.account and student.account != number:
        return f"{student.id}'s role is in account {number}, not in {student.account}"
    return AccountRef(number, profile, arn, external_id(student, secret=secret))


def allowance_of(course: Course, seat: Seat | None, owner: str) -> Allowance:
    """
    Say what a seat's students may spend over the term: a group's members together, who have also had instances of their own.

    Args:
        seat: `None` for an instance that serves nobody in the roster: one student's, by its owner.
    """
    who = {seat.owner, *(s.owner for s in seat.students)} if seat else {owner}
    usd = course.budget_usd
    return Allowance(usd and usd * (len(seat.students) if seat else 1), frozenset(who))


def through(
    course: Course, students: Iterable[Student], *, profile: str
) -> tuple[Course, tuple[Student, ...]]:
    """Let one profile stand for every one the files name: a rehearsal must reach no real account."""
    moved = replace(course, accounts=replace(course.accounts, profile=profile))
    return moved, tuple(replace(s, profile=profile) if s.profile else s for s in students)


def external_id(student: Student, *, secret: bytes) -> str:
    """
    Return what a student's role must be asked with; the same each time, another one for each student.

    Source:
        https://docs.aws.amazon.com/IAM/latest/UserGuide/confused-deputy.html
    """
    return external_id_of(student.owner, secret=secret)


def external_id_of(owner: str, *, secret: bytes) -> str:
    """Return the external id of an owner, of whom the roster need not know any more."""
    text = f"external-id/{owner}".encode()
    return "gpulab-" + hmac.new(secret, text, hashlib.sha256).hexdigest()[:32]


def group_owner(group: str, *, secret: bytes) -> str:
    """Return the opaque owner id of a group's instance."""
    digest = hmac.new(secret, f"group/{group}".encode(), hashlib.sha256).hexdigest()
    return f"g{digest[:10]}"


def instance_name(lab_id: str, owner: str) -> str:
    """Name the instance of an owner in a lab; two labs never share a name."""
    if len(lab_id) <= _LAB_PART:
        return f"{lab_id}-{owner}"
    short = hashlib.sha256(lab_id.encode()).hexdigest()[:5]
    return f"{lab_id[: _LAB_PART - 5]}{short}-{owner}"


def chosen(
    seats: Sequence[Seat], *, only: Sequence[str] = (), groups: Sequence[str] = ()
) -> tuple[Seat, ...]:
    """
    Choose seats by globs over student ids, owners, names of instances and e-mail addresses, and by group.

    Args:
        only: Any may fit; empty for all.
        groups: Exact names; empty for all.
    """
    return tuple(
        seat
        for seat in seats
        if (not only or any(fnmatch.fnmatchcase(w, g) for w in _words(seat) for g in only))
        and (not groups or seat.group in groups)
    )


_HOW = "Fill the column `account` (with `role_name` in course.toml), `role` or `profile`"


def _role_arn(course: Course, student: Student) -> str:
    name = course.accounts.role_name
    return f"arn:aws:iam::{student.account}:role/{name}" if student.account and name else ""


def _members(lab: Lab, students: Iterable[Student]) -> Iterator[tuple[Student, ...]]:
    if not lab.by_group:
        yield from ((student,) for student in students)
        return
    groups: dict[str, list[Student]] = {}
    for student in students:
        # No group can have a colon before a student's id, so a lone student's key is their own.
        groups.setdefault(student.group or f":{student.id}", []).append(student)
    yield from map(tuple, groups.values())


def _seat(lab: Lab, members: tuple[Student, ...], ref: AccountRef, secret: bytes) -> Seat:
    first = members[0]
    if lab.by_group and first.group:
        owner, label = group_owner(first.group, secret=secret), first.group
    else:
        owner, label = first.owner, first.id
    seat = Seat("", owner, label, first.group, members, ref)
    return replace(seat, name=instance_name(lab.id, owner))


def _words(seat: Seat) -> Iterator[str]:
    yield from (seat.name, seat.owner, seat.label)
    for student in seat.students:
        yield from (student.id, student.owner, student.email)
