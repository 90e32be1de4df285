"""A course as its teacher reads it: labs, people, and everything that is wrong with the files."""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from gpulab.model.course import Course, Lab, Problem, Student
from gpulab.view.console import table
from gpulab.view.words import counted, in_line, money


def problem_lines(problems: Iterable[Problem]) -> list[str]:
    """Write each problem as `file:line: what`, as compilers do, so that editors can jump there; its hint below it."""
    lines = []
    for problem in problems:
        where = f"{problem.file}:{problem.line}" if problem.line else problem.file
        lines.append(f"{where}: {problem.text}")
        if problem.hint:
            lines.append(f"    {problem.hint}")
    return [in_line(line) for line in lines]


def course_text(course: Course, students: Sequence[Student]) -> str:
    """Describe the course: its labs in local time, its accounts, its limits."""
    zone = zoneinfo.ZoneInfo(course.timezone)
    groups = {student.group for student in students if student.group}
    paid = (
        f"one course account (profile {course.accounts.profile})"
        if course.accounts.kind == "shared"
        else "each student's own account"
    )
    head = [
        f"{course.id}: {course.name}",
        f"term       {course.first_day:%d %b %Y} to {course.last_day:%d %b %Y}, times in {course.timezone}",
        f"people     {counted(len(students), 'student')} in {counted(len(groups), 'group')}",
        f"accounts   {paid}",
        f"regions    {', then '.join(course.regions)}",
        f"limits     {_limits(course)}",
    ]
    rows = [_lab_cells(lab, zone) for lab in course.labs]
    return "\n".join(
        [
            *head,
            "",
            table(rows, ["LAB", "WHEN", "FOR", "GPU", "ENVIRONMENT", "BUDGET", "TITLE"], right=[5]),
            *_hand_ins(course, zone),
        ]
    )


def course_json(course: Course, students: Sequence[Student]) -> dict[str, Any]:
    """Return the course for programs; of the students only how many, and their opaque ids."""
    return {
        "course": course,
        "students": len(students),
        "owners": [student.owner for student in students],
    }


def _hand_ins(course: Course, zone: zoneinfo.ZoneInfo) -> list[str]:
    rows = [
        [hand_in.id, f"{hand_in.due_at.astimezone(zone):%a %d %b %H:%M}", hand_in.title]
        for hand_in in course.hand_ins
    ]
    return ["", table(rows, ["HAND-IN", "DUE", "TITLE"])] if rows else []


def _limits(course: Course) -> str:
    words = [counted(course.max_instances, "instance")]
    if course.max_usd is not None:
        words.append(f"{money(course.max_usd)} worst case of one plan")
    if course.budget_usd is not None:
        words.append(f"{money(course.budget_usd)} a student and term")
    return ", ".join(words)


def _lab_cells(lab: Lab, zone: zoneinfo.ZoneInfo) -> list[str]:
    return [
        lab.id,
        _when(lab.starts_at.astimezone(zone), lab.ends_at.astimezone(zone)),
        "groups" if lab.by_group else "students",
        lab.instance_type or lab.gpu,
        lab.environment,
        money(lab.budget_usd) if lab.budget_usd is not None else "-",
        lab.title,
    ]


def _when(starts: datetime, ends: datetime) -> str:
    if starts.date() == ends.date():
        return f"{starts:%a %d %b %H:%M}-{ends:%H:%M}"
    return f"{starts:%a %d %b %H:%M} - {ends:%a %d %b %H:%M}"
